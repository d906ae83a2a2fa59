"""Long contexts as overlapping windows: pieces of the text, cut between words by the offsets of tokenizers."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any, NamedTuple

from raybrew.errors import DataError

__all__ = ["Cut", "cut_jointly", "cut_windows", "offsets_of", "shortened"]

Offsets = list[tuple[int, int]]


def offsets_of(
    tokenizer: Any,
    texts: Sequence[str],
    what: str = "question answering: answers cannot be mapped between characters and tokens",
) -> list[tuple[Offsets, list[int]]]:
    """For each text the characters (from, to) of every token, and the tokens with which words begin.

    DataError for tokenizers without offsets, in which `what` says what they are needed for.
    """
    if not tokenizer.is_fast:
        task, _, problem = what.partition(": ")
        raise DataError(
            f"{tokenizer.name_or_path}: {type(tokenizer).__name__} has no offsets, so {problem}; {task} needs a fast "
            "tokenizer (tokenizer.json)"
        )
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,  # texts longer than the model takes are what is being cut
    )
    found = []
    for place, offsets in enumerate(encoded["offset_mapping"]):
        words = encoded.word_ids(place)
        begins = [token for token, word in enumerate(words) if token == 0 or word != words[token - 1]]
        found.append(([(int(start), int(end)) for start, end in offsets], begins))
    return found


def shortened(text: str, offsets: Offsets, most: int) -> str:
    """`text` up to its token number `most`, or to an earlier one where characters of several tokens would be cut."""
    if len(offsets) <= most:
        return text
    while most and offsets[most][0] < offsets[most - 1][1]:
        most -= 1
    return text[: offsets[most - 1][1]] if most else ""


def cut_windows(
    num_characters: int, offsets: Offsets, begins: Sequence[int], room: int, stride: int
) -> list[tuple[int, int]]:
    """Characters (from, to) of windows of at most `room` tokens, neighbours sharing at least `stride` of them.

    `offsets` and `begins` are those of a text of `num_characters`, as `offsets_of` gives them.

    Windows begin and end between words, so that a window by itself has the tokens it has in the text; a word of more
    than `room` - `stride` tokens is cut. Together they cover the text.
    """
    if len(offsets) <= room:
        return [(0, num_characters)]
    windows: list[tuple[int, int]] = []
    first = 0
    while True:
        end = first + room
        if end >= len(offsets):
            windows.append((_start(offsets, first), num_characters))
            return windows
        whole = _last_begin(begins, end)
        if whole > first + stride:
            end = whole
        windows.append((_start(offsets, first), offsets[end - 1][1]))
        # Back by the stride, to the beginning of that word; forward by one token at least.
        target = end - stride
        whole = _last_begin(begins, target)
        first = whole if whole > first else max(target, first + 1)


def _start(offsets: Offsets, token: int) -> int:
    """The end of the token before: spaces in front belong to a word for some tokenizers."""
    return 0 if token == 0 else offsets[token - 1][1]


def _last_begin(begins: Sequence[int], token: int) -> int:
    """The last beginning of a word that is not behind `token`."""
    return begins[bisect.bisect_right(begins, token) - 1]


class Cut(NamedTuple):
    """How one tokenizer cuts a text: its tokens' characters, the tokens with which words begin, and a window's room."""

    offsets: Offsets
    begins: Sequence[int]
    room: int


def cut_jointly(num_characters: int, cuts: Sequence[Cut], stride: int) -> list[tuple[int, int]]:
    """Characters (from, to) of windows of at most `room` tokens of each of `cuts`, neighbours sharing `stride` of each.

    Windows begin and end where words begin for all tokenizers, if there is such a place far enough on, else at the end
    of some token. Together they cover the text.
    """
    ends = [[end for _, end in cut.offsets] for cut in cuts]
    borders = sorted(set.intersection(*({cut.offsets[token - 1][1] for token in cut.begins if token} for cut in cuts)))
    windows: list[tuple[int, int]] = []
    start = 0
    while True:
        first = [bisect.bisect_right(tokens, start) for tokens in ends]
        # Whatever is behind the last token belongs to the last window.
        fits = [
            num_characters if begin + cut.room >= len(tokens) else tokens[begin + cut.room - 1]
            for begin, cut, tokens in zip(first, cuts, ends, strict=True)
        ]
        end = min(fits)
        if end == num_characters:
            windows.append((start, end))
            return windows
        whole = _at_most(borders, end)
        if whole is not None and all(
            bisect.bisect_right(tokens, whole) > begin + stride for begin, tokens in zip(first, ends, strict=True)
        ):
            end = whole
        windows.append((start, end))
        back = min(tokens[max(bisect.bisect_right(tokens, end) - stride, 1) - 1] for tokens in ends)
        whole = _at_most(borders, back)
        following = min(tokens[begin] for begin, tokens in zip(first, ends, strict=True))
        start = whole if whole is not None and whole > start else max(back, following)


def _at_most(places: Sequence[int], most: int) -> int | None:
    """The last of the sorted `places` that is not behind `most`."""
    found = bisect.bisect_right(places, most)
    return places[found - 1] if found else None

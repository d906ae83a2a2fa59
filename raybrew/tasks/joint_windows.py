"""Windows of a long text that fit several tokenizers at once, whatever order these are given in."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

from raybrew.tasks.windows import Offsets

__all__ = ["Cut", "cut_jointly"]


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

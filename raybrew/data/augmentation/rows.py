"""Rows with other words, by the rules of `data.augment`: which words of which copy, decided by seed and content alone.

Words of a text are runs of letters and digits, and single characters of Chinese, Japanese and Korean, which are written
without spaces. Rows of tagging have words of their own.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import xxhash

from raybrew.config.augment import AugmentConfig
from raybrew.data.augmentation.tokens import deleting, long_disorder, masking, n_gram_sampling, short_disorder
from raybrew.tasks.base import Task
from raybrew.tasks.values import example_id

__all__ = [
    "Draw",
    "changed_by_rule",
    "draws_of",
    "joined",
    "new_rows",
    "pieces_of",
    "replaced",
    "sides_of",
    "word_spans",
]

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+(?:['’-][^\W_{_UNSPACED}]+)*")
_PIECE = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")


@dataclasses.dataclass(frozen=True)
class Draw:
    """For one text of one copy: the words to replace, and for each a number in [0, 1) that chooses among candidates."""

    words: tuple[int, ...]
    picks: tuple[float, ...]


def word_spans(text: str) -> list[tuple[int, int]]:
    """Characters (from, to) of the words of a text."""
    return [found.span() for found in _WORD.finditer(text)]


def pieces_of(text: str) -> list[str]:
    """A text as the token helpers take it: cut at spaces, and around each unspaced character."""
    return _PIECE.findall(text)


def joined(pieces: Sequence[str]) -> str:
    """The text of `pieces`, with a space wherever none of two neighbours is an unspaced character."""
    text = ""
    for piece in pieces:
        unspaced = not text or any(re.match(f"[{_UNSPACED}]", edge) for edge in (text[-1], piece[0]))
        text += piece if unspaced else f" {piece}"
    return text


def sides_of(row: Mapping[str, Any], config: AugmentConfig) -> tuple[str, ...]:
    """Names of the columns of `row` whose words change."""
    names = [name for name in ("text", "text_pair", "tokens") if name in row]
    return tuple(name for name in names if name == "tokens" or config.sides in ("both", name))


def changed_by_rule(row: Mapping[str, Any], identity: bytes, copy: int, config: AugmentConfig) -> dict[str, Any]:
    """Copy number `copy` of `row` by one of TextBrewer's token helpers."""
    changed = dict(row)
    for name in sides_of(row, config):
        rng, value = _generator(config, identity, copy, name), row[name]
        pieces = list(value) if name == "tokens" else pieces_of(value)
        new = _apply(pieces, config, rng)
        changed[name] = new if name == "tokens" else joined(new)
    return changed


def _apply(pieces: list[str], config: AugmentConfig, rng: random.Random) -> list[str]:
    if config.kind == "masking":
        return masking(pieces, config.share, config.mask, rng=rng)
    if config.kind == "deleting":
        return deleting(pieces, config.share, rng=rng)
    if config.kind == "n_gram_sampling":
        return n_gram_sampling(pieces, config.odds, config.lengths, rng=rng)
    if config.kind == "short_disorder":
        return short_disorder(pieces, config.odds, rng=rng)
    return long_disorder(pieces, config.share, config.span, rng=rng)


def draws_of(num_words: int, identity: bytes, copy: int, side: str, config: AugmentConfig) -> Draw:
    """Which of `num_words` words of a text are replaced in a copy, each with probability `p` (TinyBERT's rule)."""
    rng = _generator(config, identity, copy, side)
    drawn = [(rng.random(), rng.random()) for _ in range(num_words)]
    words = [word for word, (chance, _) in enumerate(drawn) if chance <= config.share]
    return Draw(tuple(words), tuple(drawn[word][1] for word in words))


def replaced(
    text: str, spans: Sequence[tuple[int, int]], draw: Draw, candidates: Mapping[int, Sequence[str]]
) -> tuple[str, list[str]]:
    """`text` with the words of `draw` replaced, and all its words; a word without candidates stays."""
    words = [text[start:end] for start, end in spans]
    for word, pick in zip(draw.words, draw.picks, strict=True):
        found = candidates.get(word, ())
        if found:
            words[word] = found[int(pick * len(found))]
    parts: list[str] = []
    place = 0
    for (start, end), new in zip(spans, words, strict=True):
        parts += [text[place:start], new]
        place = end
    return "".join([*parts, text[place:]]), words


def new_rows(task: Task, source: pa.Table, copies: Sequence[Sequence[Mapping[str, Any]]]) -> pa.Table:
    """The copies of each row of `source` as unlabelled rows of the task, but those that are empty or there already."""
    kept: dict[str, list[Any]] = {name: [] for name in source.column_names}
    for identity, changed in zip(source.column("id").to_pylist(), copies, strict=True):
        seen = {identity}
        for row in changed:
            if not all(value.strip() if isinstance(value, str) else value for value in row.values()):
                continue
            found = example_id(task.content(row))
            if found in seen:
                continue
            seen.add(found)
            for name, value in {**row, "id": found, "label": task.no_label(row)}.items():
                kept[name].append(value)
    return pa.table({name: pa.array(kept[name], source.schema.field(name).type) for name in source.column_names})


def _generator(config: AugmentConfig, identity: bytes, copy: int, side: str) -> random.Random:
    key = f"{config.kind} {config.seed} {copy} {side} ".encode() + identity
    return random.Random(xxhash.xxh3_64_intdigest(key))

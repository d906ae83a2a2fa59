"""Augmentation of token lists: new lists for a transfer set, from tokens or token ids alike.

Pure functions of their arguments. `rng` is a `random.Random`, which draws on from call to call, or a seed: with one
seed, lists of one length are changed in the same places, so use one generator for a whole corpus. ConfigError names
an argument that makes no sense.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TypeVar

from raybrew.errors import ConfigError

__all__ = ["deleting", "long_disorder", "masking", "n_gram_sampling", "short_disorder"]

Token = TypeVar("Token")
Mask = TypeVar("Mask")

#: What each case of `short_disorder` puts in place of the tokens a, b (, c): positions in the original.
_DISORDERS = ((0,), (1, 0), (2, 1, 0), (2, 0, 1), (1, 2, 0))


def masking(
    tokens: Sequence[Token], p: float = 0.1, mask: Mask | str = "[MASK]", *, rng: random.Random | int
) -> list[Token | Mask | str]:
    """Each token replaced by `mask` with probability `p`."""
    draw = _generator("masking", rng)
    _check_share("masking", p)
    return [mask if draw.random() < p else token for token in tokens]


def deleting(tokens: Sequence[Token], p: float = 0.1, *, rng: random.Random | int) -> list[Token]:
    """Each token left out with probability `p`; nothing may remain."""
    draw = _generator("deleting", rng)
    _check_share("deleting", p)
    return [token for token in tokens if draw.random() >= p]


def n_gram_sampling(
    tokens: Sequence[Token],
    p_ng: Sequence[float] = (0.2, 0.2, 0.2, 0.2, 0.2),
    l_ng: Sequence[int] = (1, 2, 3, 4, 5),
    *,
    rng: random.Random | int,
) -> list[Token]:
    """One span of consecutive tokens: its length is `l_ng[i]` with probability `p_ng[i]`, its place is uniform.

    A list that is shorter than the span is returned whole.
    """
    draw = _generator("n_gram_sampling", rng)
    _check_distribution("n_gram_sampling: p_ng", p_ng, len(l_ng))
    if any(length < 1 for length in l_ng):
        raise ConfigError(f"n_gram_sampling: l_ng: given {list(l_ng)}; allowed: lengths of at least 1")
    length = min(draw.choices(l_ng, weights=p_ng)[0], len(tokens))
    start = draw.randint(0, len(tokens) - length)
    return list(tokens[start : start + length])


def short_disorder(
    tokens: Sequence[Token], p: Sequence[float] = (0.9, 0.1, 0.0, 0.0, 0.0), *, rng: random.Random | int
) -> list[Token]:
    """Neighbours exchanged: from left to right abc stays, or becomes bac, cba, cab, bca, with probabilities `p`.

    What was exchanged is passed over. Before the last two tokens every case but the first swaps them.
    """
    draw = _generator("short_disorder", rng)
    _check_distribution("short_disorder: p", p, len(_DISORDERS))
    result = list(tokens)
    place = 0
    while place < len(result) - 1:
        order = draw.choices(_DISORDERS, weights=p)[0]
        if len(order) > len(result) - place:
            order = _DISORDERS[1]
        result[place : place + len(order)] = [tokens[place + offset] for offset in order]
        place += len(order)
    return result


def long_disorder(
    tokens: Sequence[Token], p: float = 0.1, length: float = 20, *, rng: random.Random | int
) -> list[Token]:
    """Halves of spans exchanged: from left to right, a span begins with probability `p` and is passed over then.

    `length` above 1 counts the tokens of a span, up to 1 it is its share of the list; odd spans are one longer. Lists
    shorter than a span stay as they are.
    """
    draw = _generator("long_disorder", rng)
    _check_share("long_disorder", p)
    if not 0.0 < length < math.inf:
        raise ConfigError(f"long_disorder: length: given {length}; allowed: more than 0")
    span = int(length if length > 1 else len(tokens) * length)
    half = max(1, (span + 1) // 2)
    result = list(tokens)
    place = 0
    while place + 2 * half <= len(result):
        if draw.random() < p:
            middle, end = place + half, place + 2 * half
            result[place:end] = result[middle:end] + result[place:middle]
            place = end
        else:
            place += 1
    return result


def _generator(name: str, rng: random.Random | int) -> random.Random:
    if isinstance(rng, random.Random):
        return rng
    if not isinstance(rng, int):
        raise ConfigError(f"{name}: rng: given {rng!r}; allowed: a random.Random or a seed")
    return random.Random(rng)


def _check_share(name: str, p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise ConfigError(f"{name}: p: given {p}; allowed: a probability from 0 to 1")


def _check_distribution(name: str, p: Sequence[float], count: int) -> None:
    if len(p) != count or not all(share >= 0.0 for share in p) or abs(sum(p) - 1.0) > 1e-6:
        raise ConfigError(f"{name}: given {list(p)}; allowed: {count} probabilities that sum to 1")

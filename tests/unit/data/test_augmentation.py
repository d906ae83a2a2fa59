"""Augmentation of token lists: what results keep of their input; TextBrewer's results where nothing is random."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybrew.data.augmentation import deleting, long_disorder, masking, n_gram_sampling, short_disorder
from raybrew.errors import ConfigError

TOKENS = st.lists(st.integers(0, 9), max_size=40)
SHARES = st.floats(0, 1)
CASES = st.integers(0, 4)

ALL = [masking, deleting, n_gram_sampling, short_disorder, long_disorder]


def certain(case: int) -> list[float]:
    return [float(number == case) for number in range(5)]


@pytest.mark.parametrize("function", ALL)
@given(tokens=TOKENS, seed=st.integers(0, 999))
def test_the_seed_decides_and_the_input_stays(function: Callable[..., list], tokens: list[int], seed: int) -> None:
    before = list(tokens)
    result = function(tokens, rng=seed)
    assert tokens == before
    assert result is not tokens
    assert result == function(tuple(tokens), rng=seed) == function(tokens, rng=random.Random(seed))


@pytest.mark.parametrize("function", ALL)
def test_one_generator_draws_on(function: Callable[..., list]) -> None:
    rng = random.Random(3)
    assert len({tuple(function(range(60), rng=rng)) for _ in range(20)}) > 10


@given(tokens=TOKENS, p=SHARES, seed=st.integers(0, 99))
def test_masking_keeps_places(tokens: list[int], p: float, seed: int) -> None:
    result = masking(tokens, p, mask=-1, rng=seed)
    assert len(result) == len(tokens)
    assert all(new in (old, -1) for new, old in zip(result, tokens, strict=True))


def test_masking_and_deleting_hit_the_share() -> None:
    tokens = list(range(20_000))
    rng = random.Random(0)
    assert masking(tokens, 0.3, rng=rng).count("[MASK]") / 20_000 == pytest.approx(0.3, abs=0.02)
    assert len(deleting(tokens, 0.3, rng=rng)) / 20_000 == pytest.approx(0.7, abs=0.02)
    assert masking(tokens, 0, rng=rng) == deleting(tokens, 0, rng=rng) == tokens
    assert masking(tokens[:3], 1, rng=rng) == ["[MASK]"] * 3
    assert deleting(tokens, 1, rng=rng) == []


@given(tokens=TOKENS, p=SHARES, seed=st.integers(0, 99))
def test_deleting_keeps_the_order(tokens: list[int], p: float, seed: int) -> None:
    rest = iter(tokens)
    assert all(token in rest for token in deleting(tokens, p, rng=seed))


@given(length=st.integers(0, 30), seed=st.integers(0, 99), case=CASES)
def test_an_n_gram_is_a_span(length: int, seed: int, case: int) -> None:
    tokens = list(range(length))
    result = n_gram_sampling(tokens, certain(case), rng=seed)
    assert len(result) == min(case + 1, length)
    assert not result or result == tokens[result[0] : result[0] + len(result)]


def test_n_grams_come_from_everywhere_with_their_probabilities() -> None:
    rng = random.Random(0)
    spans = [tuple(n_gram_sampling(range(6), [0.25, 0.75], [2, 6], rng=rng)) for _ in range(4000)]
    counts = Counter(spans)
    assert counts.pop(tuple(range(6))) / 4000 == pytest.approx(0.75, abs=0.03)
    assert set(counts) == {(start, start + 1) for start in range(5)}
    assert min(counts.values()) / sum(counts.values()) == pytest.approx(0.2, abs=0.05)


@given(tokens=TOKENS, seed=st.integers(0, 99), length=st.one_of(st.integers(1, 50), st.floats(0.01, 1)), p=SHARES)
def test_disorder_is_a_permutation(tokens: list[int], seed: int, length: float, p: float) -> None:
    rest = (1 - p) / 4
    assert sorted(short_disorder(tokens, [p, rest, rest, rest, rest], rng=seed)) == sorted(tokens)
    assert sorted(long_disorder(tokens, p, length, rng=seed)) == sorted(tokens)


@given(length=st.integers(0, 40), seed=st.integers(0, 99))
def test_short_disorder_moves_a_token_by_two_places_at_most(length: int, seed: int) -> None:
    result = short_disorder(range(length), [0.2] * 5, rng=seed)
    assert all(abs(place - token) <= 2 for place, token in enumerate(result))


@pytest.mark.parametrize(
    ("case", "result"), [(0, "abcdefgh"), (1, "badcfehg"), (2, "cbafedhg"), (3, "cabfdehg"), (4, "bcaefdhg")]
)
def test_each_short_disorder(case: int, result: str) -> None:
    assert "".join(short_disorder("abcdefgh", certain(case), rng=0)) == result


@pytest.mark.parametrize(
    ("length", "result"),
    [
        (4, [2, 3, 0, 1, 6, 7, 4, 5, 8, 9, 10]),
        (3, [2, 3, 0, 1, 6, 7, 4, 5, 8, 9, 10]),
        (0.4, [2, 3, 0, 1, 6, 7, 4, 5, 8, 9, 10]),
        (10, [5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 10]),
        (0.01, [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 10]),
        (1, list(range(11))),
        (20, list(range(11))),
    ],
)
def test_long_disorder_exchanges_halves(length: float, result: list[int]) -> None:
    assert long_disorder(range(11), 1, length, rng=0) == result
    assert long_disorder(range(11), 0, length, rng=0) == list(range(11))


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    """TextBrewer's own helpers."""
    reason = "needs textbrewer==0.2.1.post1, the peer to compare with"
    return pytest.importorskip("textbrewer.data_utils", reason=reason, exc_type=ImportError)


@given(tokens=st.lists(st.integers(0, 9), min_size=8, max_size=40), case=CASES, length=st.integers(2, 12))
def test_against_textbrewer_where_nothing_is_random(
    peer: ModuleType, tokens: list[int], case: int, length: int
) -> None:
    assert short_disorder(tokens, certain(case), rng=0) == peer.short_disorder(tokens, certain(case))
    assert long_disorder(tokens, 1, length, rng=0) == peer.long_disorder(tokens, 1, length)
    assert long_disorder(tokens, 1, 0.5, rng=0) == peer.long_disorder(tokens, 1, 0.5)
    assert masking(tokens, 1, rng=0) == peer.masking(tokens, 1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: masking([1], 1.5, rng=0), "masking: p: given 1.5"),
        (lambda: deleting([1], -0.1, rng=0), "deleting: p: given -0.1"),
        (lambda: long_disorder([1], 0.1, 0, rng=0), "long_disorder: length: given 0"),
        (lambda: long_disorder([1], float("nan"), rng=0), "long_disorder: p: given nan"),
        (lambda: short_disorder([1], [0.5, 0.4], rng=0), "short_disorder: p: given .* 5 probabilities that sum to 1"),
        (lambda: short_disorder([1], [0.5, 0.4, 0, 0, 0], rng=0), "5 probabilities that sum to 1"),
        (lambda: n_gram_sampling([1], [1.0], [1, 2], rng=0), "p_ng: given .* 2 probabilities"),
        (lambda: n_gram_sampling([1], [1.0], [0], rng=0), "l_ng: given .* at least 1"),
        (lambda: masking([1], rng="a"), "rng: given 'a'"),
    ],
)
def test_arguments_that_make_no_sense(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        call()

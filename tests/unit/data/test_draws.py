"""Draws that decide the order of training: what numpy gives today, whatever it gives tomorrow."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from raybrew.data import draws
from raybrew.data.draws import Shuffler, uniform
from raybrew.data.sampler import BatchSize, epoch_batches


@pytest.mark.parametrize("seed", range(8))
def test_permutations_in_a_row_equal_those_of_numpy(seed: int) -> None:
    ours = Shuffler([seed, 1], by_numpy=False)
    numpy = np.random.Generator(np.random.PCG64([seed, 1]))
    for count in (0, 1, 2, 3, 10, 17, 1000, 1, 5000):
        assert np.array_equal(ours.permutation(count), numpy.permutation(count))


def test_numbers_equal_those_of_numpy() -> None:
    for count in (1, 7, 1000):
        assert np.array_equal(uniform([3, 4, 5], count), np.random.default_rng([3, 4, 5]).random(count))


def test_this_numpy_is_used() -> None:
    assert draws._numpy_agrees()


@pytest.mark.parametrize("by_numpy", [True, False])
@pytest.mark.parametrize(
    ("size", "digest"),
    [
        (BatchSize(8), "db22d51dfd4cab6c"),
        (BatchSize(8, 200), "8b9936a9a10a703b"),
        (BatchSize(8, 200, bounded_lengths=True), "19130ef380931286"),
    ],
)
def test_order_of_batches_is_that_of_earlier_releases(
    size: BatchSize, digest: str, by_numpy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draws, "_numpy_agrees", lambda: by_numpy)
    lengths = np.arange(3000) % 37 + 1
    batches = epoch_batches(lengths, size, seed=7, epoch=3)
    content = b"".join(batch.astype("<i8").tobytes() + b"|" for batch in batches)
    assert hashlib.sha256(content).hexdigest()[:16] == digest

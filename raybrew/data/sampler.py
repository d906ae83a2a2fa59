"""The order of training rows: global batches as a pure function of (seed, epoch).

It does not depend on the number of workers, on timing, or on how a store is sharded, so that runs with other numbers of
workers, or resumed ones, see the same batches (mosaicml/streaming: streaming/base/sampling.py has the same aim).
"""

from __future__ import annotations

import numpy as np

__all__ = ["epoch_batches", "num_batches", "share_of_rank"]

#: Batches whose rows are sorted by length together. Large enough for little padding, small enough to stay random.
_BATCHES_PER_BUCKET = 50


def num_batches(num_rows: int, batch_size: int) -> int:
    """Batches of one epoch; the last rows make a smaller one."""
    return -(-num_rows // batch_size)


def epoch_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Row indices of each global batch of `epoch`, every row once.

    `lengths` (rows,) are in tokens. Rows are shuffled, cut into groups of 50 batches, sorted by length inside a group,
    and the batches are shuffled again: rows of one batch have like lengths, and their order is random.
    """
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = random.permutation(len(lengths))
    group = batch_size * _BATCHES_PER_BUCKET
    batches: list[np.ndarray] = []
    for start in range(0, len(order), group):
        rows = order[start : start + group]
        # Longest first: the one incomplete batch then holds the shortest rows.
        rows = rows[np.argsort(-lengths[rows].astype(np.int64), kind="stable")]
        batches += [rows[cut : cut + batch_size] for cut in range(0, len(rows), batch_size)]
    return [batches[index] for index in random.permutation(len(batches))]


def share_of_rank(batch: np.ndarray, rank: int, world_size: int, micro_batch_size: int | None) -> list[np.ndarray]:
    """The micro-batches of one worker, equally many on every rank; a share that ran short gives empty ones.

    Rows of a batch are sorted by length, so ranks take every `world_size`-th one and get like amounts of work.
    """
    mine = batch[rank::world_size]
    largest = -(-len(batch) // world_size)
    size = micro_batch_size or max(largest, 1)
    count = -(-largest // size)
    return [mine[index * size : (index + 1) * size] for index in range(count)]

"""The order of training rows: global batches as a pure function of (seed, epoch).

It does not depend on the number of workers, on timing, or on how a store is sharded, so that runs with other numbers of
workers, or resumed ones, see the same batches (mosaicml/streaming: streaming/base/sampling.py has the same aim).
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from pathlib import Path

import numpy as np

from raybrew.data.draws import Shuffler
from raybrew.data.hashes import read_note, write_note

__all__ = ["BatchSize", "Order", "count_batches", "epoch_batches", "num_batches", "padded_length", "share_of_rank"]

#: Batches whose rows are sorted by length together. Large enough for little padding, small enough to stay random.
_BATCHES_PER_BUCKET = 50


def padded_length(length: int, bounded: bool) -> int:
    """The length that rows of up to `length` tokens are padded to.

    `bounded`: one of few, for models that are compiled for each shape. Multiples of 16, beyond 128 of an eighth of the
    next power of two: 8 lengths up to 128 tokens, 16 up to 512.
    """
    if not bounded or length < 1:
        return length
    step = max(16, 1 << max(0, (length - 1).bit_length() - 3))
    return -(-length // step) * step


@dataclasses.dataclass(frozen=True)
class BatchSize:
    """What a global batch holds: `rows`, or as many rows as keep it within `tokens` tokens, padding included."""

    rows: int
    tokens: int | None = None
    bounded_lengths: bool = False

    def limit(self, longest: int) -> int:
        """Most rows of a batch whose longest row has `longest` tokens; 1 for a row beyond the budget."""
        if self.tokens is None:
            return self.rows
        return max(1, self.tokens // max(1, padded_length(longest, self.bounded_lengths)))


class Order:
    """The global batches of all epochs. Batches by tokens differ in number from epoch to epoch, and are counted.

    The folder `counts`, of these rows alone, keeps what was counted for other processes and runs.
    """

    def __init__(self, lengths: np.ndarray, size: BatchSize, seed: int, counts: Path | None = None) -> None:
        self.lengths = lengths
        self.size = size
        self.seed = seed
        name = f"order-{seed}-{size.tokens}-{size.bounded_lengths}.json"
        self._file = None if counts is None or size.tokens is None else counts / name
        self._starts = _known_starts(self._file, len(lengths))  # the step at which each epoch begins, as far as known
        self._lock = threading.RLock()  # the thread that prepares batches asks, and the one that trains

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Row indices of each global batch of `epoch`, every row once."""
        return epoch_batches(self.lengths, self.size, self.seed, epoch)

    def first_step(self, epoch: int) -> int:
        """Steps of all epochs before `epoch`."""
        if self.size.tokens is None:
            return epoch * num_batches(len(self.lengths), self.size.rows)
        with self._lock:
            if len(self._starts) <= epoch:
                while len(self._starts) <= epoch:
                    counted = count_batches(self.lengths, self.size, self.seed, len(self._starts) - 1)
                    self._starts.append(self._starts[-1] + counted)
                _keep_starts(self._file, len(self.lengths), self._starts)
            return self._starts[epoch]

    def epoch_of(self, step: int) -> int:
        """The epoch that `step`, counted from 0 over all epochs, belongs to."""
        if self.size.tokens is None:
            return step // num_batches(len(self.lengths), self.size.rows)
        with self._lock:
            while self._starts[-1] < step:  # the epoch that begins with `step` need not be counted
                self.first_step(len(self._starts))
        return int(np.searchsorted(self._starts, step, side="right")) - 1

    def progress(self, finished_steps: int) -> float:
        """Epochs that `finished_steps` steps make, with the part of the last one."""
        epoch = self.epoch_of(finished_steps)
        done = finished_steps - self.first_step(epoch)
        return epoch + done / (self.first_step(epoch + 1) - self.first_step(epoch)) if done else float(epoch)

    def batch(self, step: int) -> np.ndarray:
        """Row indices of the global batch of `step`."""
        epoch = self.epoch_of(step)
        return self.batches(epoch)[step - self.first_step(epoch)]


def num_batches(num_rows: int, batch_size: int) -> int:
    """Batches of one epoch; the last rows make a smaller one."""
    return -(-num_rows // batch_size)


def epoch_batches(lengths: np.ndarray, size: BatchSize, seed: int, epoch: int) -> list[np.ndarray]:
    """Row indices of each global batch of `epoch`, every row once.

    `lengths` (rows,) are in tokens. Rows are shuffled, cut into groups of about 50 batches, sorted by length inside a
    group, cut into batches, and the batches are shuffled again: rows of one batch have like lengths, the longest first,
    and the order of batches is random.
    """
    random = Shuffler([seed, epoch])
    order = random.permutation(len(lengths))
    batches: list[np.ndarray] = []
    for rows in _groups(order, lengths, size):
        # Longest first: the one incomplete batch then holds the shortest rows.
        rows = rows[np.argsort(-lengths[rows].astype(np.int64), kind="stable")]
        ends = _ends(lengths[rows], size)
        batches += [rows[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    return [batches[index] for index in random.permutation(len(batches))]


def count_batches(lengths: np.ndarray, size: BatchSize, seed: int, epoch: int) -> int:
    """How many batches `epoch_batches` gives, in half of its time."""
    if size.tokens is None:
        return num_batches(len(lengths), size.rows)
    order = Shuffler([seed, epoch]).permutation(len(lengths))
    return sum(len(_ends(np.sort(lengths[rows])[::-1], size)) for rows in _groups(order, lengths, size))


def _ends(lengths: np.ndarray, size: BatchSize) -> list[int]:
    """Where batches of rows with these lengths, the longest first, end."""
    ends: list[int] = []
    cut = 0
    while cut < len(lengths):
        cut += size.limit(int(lengths[cut]))
        ends.append(cut)
    return ends


def _known_starts(file: Path | None, num_rows: int) -> list[int]:
    """What `_keep_starts` wrote, else the start of the first epoch alone."""
    known = None if file is None else read_note(file)
    return list(known["starts"]) if known is not None and known["rows"] == num_rows else [0]


def _keep_starts(file: Path | None, num_rows: int, starts: list[int]) -> None:
    if file is not None:
        with contextlib.suppress(OSError):  # others count themselves then
            write_note(file, {"rows": num_rows, "starts": starts})


def _groups(order: np.ndarray, lengths: np.ndarray, size: BatchSize) -> list[np.ndarray]:
    """`order` in parts of about 50 batches."""
    if size.tokens is None:
        group = size.rows * _BATCHES_PER_BUCKET
        return [order[start : start + group] for start in range(0, len(order), group)]
    tokens = np.cumsum(lengths[order], dtype=np.int64)
    group = size.tokens * _BATCHES_PER_BUCKET
    cuts = np.searchsorted(tokens, np.arange(group, int(tokens[-1]) if len(tokens) else 0, group))
    return [rows for rows in np.split(order, cuts) if len(rows)]


def share_of_rank(batch: np.ndarray, rank: int, world_size: int, micro_batch_size: int | None) -> list[np.ndarray]:
    """The micro-batches of one worker, equally many on every rank; a share that ran short gives empty ones.

    Rows of a batch are sorted by length, so ranks take every `world_size`-th one and get like amounts of work.
    """
    mine = batch[rank::world_size]
    largest = -(-len(batch) // world_size)
    size = micro_batch_size or max(largest, 1)
    count = -(-largest // size)
    return [mine[index * size : (index + 1) * size] for index in range(count)]

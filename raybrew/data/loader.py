"""Batches of encoded rows, assembled in a background thread while the model computes."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from raybrew.data.sampler import Order, padded_length, share_of_rank
from raybrew.signals import Signal

__all__ = ["MicroBatch", "Payload", "StepBatch", "StepLoader", "TokenRows", "collate", "prefetched"]


class TokenRows(Protocol):
    """Encoded rows, memory-mapped: what `raybrew.data.encoded.EncodedRows` offers."""

    def names(self, rows: np.ndarray) -> list[str]:
        """Ids of the examples of these rows, in hex."""

    @property
    def lengths(self) -> np.ndarray: ...
    def gather_padded(self, rows: np.ndarray, pad_token_id: int, length: int | None = None) -> dict[str, np.ndarray]:
        """Token columns (rows, length) of the given rows, and their `attention_mask`; None: up to the longest."""

    def targets(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`labels` of the given rows and, for tasks with items, `items` and `item_mask` (rows, most items)."""


class Payload(Protocol):
    """What a teacher says of one signal in a batch: a tensor, or another form of it that some losses read as it is."""

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Payload: ...
    def pin_memory(self) -> Payload: ...
    def to_dense(self) -> Tensor:
        """As a tensor of the shape that the model gave; a tensor is that itself."""


Item = TypeVar("Item")

#: Stored teacher signals of the given rows, padded to a length, or to the longest of them.
SignalSource = Callable[[np.ndarray, int | None], Mapping[Signal, Payload]]


@dataclasses.dataclass
class MicroBatch:
    """Inputs of one forward pass. `teacher` is empty when the teacher runs live."""

    rows: np.ndarray
    inputs: dict[str, Tensor]
    teacher: dict[Signal, Payload]

    def to(self, device: torch.device) -> MicroBatch:
        """The same on `device`; from pinned memory the copy runs beside the computation."""
        if device.type == "cpu":
            return self
        return MicroBatch(
            self.rows,
            {key: value.to(device, non_blocking=True) for key, value in self.inputs.items()},
            {key: value.to(device, non_blocking=True) for key, value in self.teacher.items()},
        )


@dataclasses.dataclass
class StepBatch:
    """One worker's part of one optimizer step."""

    step: int
    epoch: int
    num_rows: int  #: rows of the whole global batch
    micro_batches: list[MicroBatch]
    rows: int  #: rows of this worker's part
    tokens: int  #: real tokens of this worker's part
    padded_tokens: int  #: tokens with padding

    @property
    def amounts(self) -> tuple[int, int, int]:
        """Rows, tokens and tokens with padding of this worker's part."""
        return self.rows, self.tokens, self.padded_tokens


def collate(
    rows: np.ndarray,
    data: TokenRows,
    pad_token_id: int,
    teacher: SignalSource | None,
    shape: tuple[int, int] | None = None,
    filler: int = 0,
) -> MicroBatch:
    """A micro-batch of `rows`, or with `shape` (rows, length) one filled up to that shape.

    It is filled with the row `filler`, whose `logits_mask` is 0. Without any row there is still one of those, so that
    every worker takes part.
    """
    missing = (1 if shape is None else shape[0]) - len(rows)
    # An empty share still needs forward and backward for the gradient exchange; a row stands in, weighing nothing.
    used = rows if missing <= 0 else np.concatenate([rows, np.full(missing, filler, dtype=np.int64)])
    length = None if shape is None else shape[1]
    inputs = {name: torch.from_numpy(array) for name, array in data.gather_padded(used, pad_token_id, length).items()}
    inputs |= {name: torch.from_numpy(array) for name, array in data.targets(used).items()}
    inputs["logits_mask"] = (torch.arange(len(used)) < len(rows)).float()
    if "item_mask" in inputs:
        inputs["item_mask"] = inputs["item_mask"] * inputs["logits_mask"].unsqueeze(-1)
    return MicroBatch(used, inputs, dict(teacher(used, length)) if teacher is not None else {})


class StepLoader:
    """The steps of one worker from `start_step` on, in the order of (seed, epoch).

    Steps count from 0 over all epochs. `micro_batch_size` and `micro_batch_tokens` limit one forward pass of one
    worker. `teacher_at`, in place of `teacher`, gives the source for a step. `in_epoch` gives the rows as a model reads
    them in an epoch, where they differ from one to the next. Iterating starts a thread that keeps `depth` steps ready;
    an error in it is raised to the caller.
    """

    def __init__(
        self,
        data: TokenRows,
        order: Order,
        *,
        rank: int,
        world_size: int,
        num_steps: int,
        start_step: int = 0,
        pad_token_id: int,
        micro_batch_size: int | None = None,
        micro_batch_tokens: int | None = None,
        teacher: SignalSource | None = None,
        teacher_at: Callable[[int], SignalSource | None] | None = None,
        pin_memory: bool = False,
        depth: int = 4,
        in_epoch: Callable[[int], TokenRows] | None = None,
    ) -> None:
        self.data = data
        self.in_epoch = in_epoch
        self.order = order
        self.rank = rank
        self.world_size = world_size
        self.num_steps = num_steps
        self.start_step = start_step
        self.pad_token_id = pad_token_id
        self.micro_batch_size = micro_batch_size
        self.micro_batch_tokens = micro_batch_tokens
        self.teacher_at = teacher_at or (lambda step: teacher)
        self.pin_memory = pin_memory
        self.depth = depth

    def __iter__(self) -> Iterator[StepBatch]:
        return prefetched(self.steps(), self.depth)

    def steps(self) -> Iterator[StepBatch]:
        """The same steps without a thread."""
        step = self.start_step
        while step < self.num_steps:
            epoch = self.order.epoch_of(step)
            data = self.data if self.in_epoch is None else self.in_epoch(epoch)
            for rows in self.order.batches(epoch)[step - self.order.first_step(epoch) :]:
                if step >= self.num_steps:
                    return
                yield self._assemble(step, epoch, rows, data)
                step += 1

    def _assemble(self, step: int, epoch: int, batch: np.ndarray, data: TokenRows) -> StepBatch:
        size, bounded = self.order.size, self.order.size.bounded_lengths
        longest = int(self.data.lengths[batch[0]])  # rows of a batch are sorted by length
        most = -(-size.limit(longest) // self.world_size)  # rows of one worker in the largest batch of this length
        for limit in (self.micro_batch_size, self._rows_in_tokens(longest)):
            most = most if limit is None else min(most, limit)
        shares = share_of_rank(batch, self.rank, self.world_size, most)
        shape = (most, padded_length(longest, bounded)) if bounded else None
        micro_batches = [
            collate(rows, data, self.pad_token_id, self.teacher_at(step), shape, int(batch[-1])) for rows in shares
        ]
        if self.pin_memory:
            micro_batches = [_pinned(micro) for micro in micro_batches]
        tokens = sum(int(self.data.lengths[rows].sum()) for rows in shares)
        padded = sum(micro.inputs["input_ids"].numel() for micro in micro_batches)
        return StepBatch(step, epoch, len(batch), micro_batches, sum(map(len, shares)), tokens, padded)

    def _rows_in_tokens(self, longest: int) -> int | None:
        if self.micro_batch_tokens is None:
            return None
        return max(1, self.micro_batch_tokens // max(1, padded_length(longest, self.order.size.bounded_lengths)))


def _pinned(batch: MicroBatch) -> MicroBatch:
    return MicroBatch(
        batch.rows,
        {key: value.pin_memory() for key, value in batch.inputs.items()},
        {key: value.pin_memory() for key, value in batch.teacher.items()},
    )


def prefetched(steps: Iterator[Item], depth: int) -> Iterator[Item]:
    """`steps`, taken by a thread that keeps `depth` of them ready; an error in it is raised to the caller."""
    ready: queue.Queue[Any] = queue.Queue(maxsize=depth)
    stop = threading.Event()
    thread = threading.Thread(target=_produce, args=(steps, ready, stop), name="raybrew-loader", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        while thread.is_alive():  # a producer blocked on a full queue must see `stop`
            try:
                ready.get_nowait()
            except queue.Empty:
                thread.join(timeout=0.05)


def _produce(steps: Iterator[Any], ready: queue.Queue[Any], stop: threading.Event) -> None:
    try:
        for batch in steps:
            if stop.is_set():
                return
            ready.put(batch)
        ready.put(None)
    except BaseException as error:  # handed to the consumer, which raises it
        ready.put(error)

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

from raybrew.data.sampler import epoch_batches, num_batches, share_of_rank
from raybrew.signals import Signal

__all__ = ["MicroBatch", "StepBatch", "StepLoader", "TokenRows", "collate", "prefetched"]


class TokenRows(Protocol):
    """Encoded rows, memory-mapped: what `raybrew.data.encoded.EncodedRows` offers."""

    @property
    def labels(self) -> np.ndarray: ...
    @property
    def lengths(self) -> np.ndarray: ...
    def gather_padded(self, rows: np.ndarray, pad_token_id: int) -> dict[str, np.ndarray]:
        """Token columns (rows, longest) of the given rows, and their `attention_mask`."""
        ...


Item = TypeVar("Item")

#: Stored teacher signals of the given rows, padded to the longest of them.
SignalSource = Callable[[np.ndarray], Mapping[Signal, Tensor]]


@dataclasses.dataclass
class MicroBatch:
    """Inputs of one forward pass. `teacher` is empty when the teacher runs live."""

    rows: np.ndarray
    inputs: dict[str, Tensor]
    teacher: dict[Signal, Tensor]

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
    tokens: int  #: real tokens of this worker's part
    padded_tokens: int  #: tokens with padding

    @property
    def amounts(self) -> tuple[int, int, int]:
        """Rows, tokens and tokens with padding of this worker's part."""
        rows = sum(int(micro.inputs["logits_mask"].sum()) for micro in self.micro_batches)
        return rows, self.tokens, self.padded_tokens


def collate(rows: np.ndarray, data: TokenRows, pad_token_id: int, teacher: SignalSource | None) -> MicroBatch:
    """A micro-batch of `rows`. Empty rows give one row with `logits_mask` 0, so that every worker takes part."""
    real = len(rows) > 0
    # An empty share still needs forward and backward for the gradient exchange; row 0 stands in, weighing nothing.
    used = rows if real else np.zeros(1, dtype=np.int64)
    inputs = {name: torch.from_numpy(array) for name, array in data.gather_padded(used, pad_token_id).items()}
    inputs["labels"] = torch.from_numpy(data.labels[used].astype(np.int64))
    inputs["logits_mask"] = torch.full((len(used),), 1.0 if real else 0.0)
    return MicroBatch(used, inputs, dict(teacher(used)) if teacher is not None else {})


class StepLoader:
    """The steps of one worker from `start_step` on, in the order of (seed, epoch).

    Steps count from 0 over all epochs. Iterating starts a thread that keeps `depth` steps ready; an error in it is
    raised to the caller.
    """

    def __init__(
        self,
        data: TokenRows,
        *,
        batch_size: int,
        micro_batch_size: int | None,
        seed: int,
        rank: int,
        world_size: int,
        num_steps: int,
        start_step: int = 0,
        pad_token_id: int,
        teacher: SignalSource | None = None,
        pin_memory: bool = False,
        depth: int = 4,
    ) -> None:
        self.data = data
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.num_steps = num_steps
        self.start_step = start_step
        self.pad_token_id = pad_token_id
        self.teacher = teacher
        self.pin_memory = pin_memory
        self.depth = depth

    def __iter__(self) -> Iterator[StepBatch]:
        return prefetched(self.steps(), self.depth)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one epoch."""
        return num_batches(len(self.data.lengths), self.batch_size)

    def steps(self) -> Iterator[StepBatch]:
        """The same steps without a thread."""
        per_epoch = num_batches(len(self.data.lengths), self.batch_size)
        step = self.start_step
        while step < self.num_steps:
            epoch = step // per_epoch
            batches = epoch_batches(self.data.lengths, self.batch_size, self.seed, epoch)
            for rows in batches[step - epoch * per_epoch :]:
                if step >= self.num_steps:
                    return
                yield self._assemble(step, epoch, rows)
                step += 1

    def _assemble(self, step: int, epoch: int, batch: np.ndarray) -> StepBatch:
        shares = share_of_rank(batch, self.rank, self.world_size, self.micro_batch_size)
        micro_batches = [collate(rows, self.data, self.pad_token_id, self.teacher) for rows in shares]
        if self.pin_memory:
            micro_batches = [_pinned(micro) for micro in micro_batches]
        tokens = sum(int(self.data.lengths[rows].sum()) for rows in shares)
        padded = sum(micro.inputs["input_ids"].numel() for micro in micro_batches)
        return StepBatch(step, epoch, len(batch), micro_batches, tokens, padded)


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

"""Batches of any form from any dataloader: moved, one epoch after the other, found again after a stop."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from raybrew.data.draws import uniform
from raybrew.errors import CheckpointError, ConfigError, DataError

__all__ = [
    "BatchStream",
    "TaskOrder",
    "known_size",
    "leaves",
    "move",
    "random_states",
    "set_random_states",
    "size_of",
]

Batch = TypeVar("Batch")


def move(value: Any, device: torch.device) -> Any:
    """`value` with every tensor in its lists, tuples and mappings on `device`."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        moved = {key: move(item, device) for key, item in value.items()}
        # Outputs of Hugging Face models are read by attribute.
        rebuild: Any = type(value)
        return rebuild(**moved) if hasattr(rebuild, "__dataclass_fields__") else moved
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(move(item, device) for item in value))
    if isinstance(value, (list, tuple)):
        return tuple(move(item, device) for item in value)
    return value


def leaves(value: Any) -> Iterator[Tensor]:
    """The tensors in lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)


class BatchStream(Generic[Batch]):
    """A dataloader, epoch after epoch without end; each batch is what `make` makes of the one that is read.

    With `keep` it is read once; later epochs go through the batches in memory, in an order drawn from torch's global
    generator. Its state is the epoch, the place in it, and the random numbers that its order came from: a dataloader
    that draws from torch's, numpy's or Python's global generators, or from a `generator` of its own, is found again.
    """

    def __init__(self, dataloader: Iterable[Any], make: Callable[[Any], Batch], task: str, keep: bool) -> None:
        self.dataloader = dataloader
        self.make = make
        self.task = task
        self.keep = keep
        self.kept: list[Batch] = []
        self.epoch = 0
        self.position = 0  #: batches of this epoch that were handed out
        self._iterator: Iterator[Batch] | None = None
        self._ahead: Batch | None = None
        self._random_at_epoch: dict[str, Any] | None = None
        self._random_at_start: dict[str, Any] | None = None

    def peek(self) -> Batch:
        """The batch that comes next, which still comes next."""
        if self._ahead is None:
            self._ahead = self._read()
        return self._ahead

    def next(self) -> Batch:
        """The next batch; after the last of an epoch the first of the next one."""
        batch, self._ahead = self.peek(), None
        self.position += 1
        return batch

    def end_epoch(self) -> None:
        """Leave out what is left of this epoch. A stream that keeps its batches still keeps those."""
        if self._iterator is None and self.position == 0:
            return
        if self.keep and self.epoch == 0 and self._iterator is not None:
            for _ in self._iterator:
                pass
        self._new_epoch()

    def _new_epoch(self) -> None:
        self.epoch += 1
        self.position = 0
        self._iterator = self._ahead = None

    def _read(self) -> Batch:
        for _ in range(2):
            if self._iterator is None:
                self._iterator = self._open()
            try:
                return next(self._iterator)
            except StopIteration:
                if self.position == 0:
                    break
                self._new_epoch()
        name = f"the dataloader of task {self.task!r}" if self.task else "the dataloader"
        raise DataError(f"{name} gave no batch in epoch {self.epoch}; an iterator is spent after one pass, use a list")

    def _open(self) -> Iterator[Batch]:
        set_epoch = getattr(getattr(self.dataloader, "sampler", None), "set_epoch", None)
        if set_epoch is not None:  # a DistributedSampler shuffles by it
            set_epoch(self.epoch)
        self._random_at_epoch = _random_state(self.dataloader)
        if self.epoch == 0:
            self._random_at_start = self._random_at_epoch
        if self.keep and self.epoch > 0:
            order = torch.randperm(len(self.kept)).tolist()
            return iter([self.kept[index] for index in order])
        return self._fresh()

    def _fresh(self) -> Iterator[Batch]:
        for batch in self.dataloader:
            made = self.make(batch)
            if self.keep:
                self.kept.append(made)
            yield made

    def state_dict(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "position": self.position,
            "random_at_epoch": self._random_at_epoch,
            "random_at_start": self._random_at_start,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Read on to where `state` was taken; DataError or CheckpointError if the data ends before."""
        self.kept, self._iterator, self._ahead = [], None, None
        if state["random_at_epoch"] is None:  # not one batch was taken
            return
        self._random_at_start = state["random_at_start"]
        if self.keep and state["epoch"] > 0:
            _set_random_state(self._random_at_start, self.dataloader)
            for _ in self._fresh():
                pass
        self.epoch = state["epoch"]
        _set_random_state(state["random_at_epoch"], self.dataloader)
        self._iterator = self._open()
        for place in range(state["position"]):
            if next(self._iterator, None) is None:
                raise CheckpointError(
                    f"the dataloader ends after {place} batches, the checkpoint was taken after {state['position']}; "
                    "is it the same data?"
                )
        self.position = state["position"]


class TaskOrder:
    """Which task each micro-batch is of, drawn with probability proportional to size ** tau.

    A pure function of (seed, index): the same on every rank, and after a resume.
    """

    def __init__(self, sizes: Mapping[str, int | None], tau: float, seed: int) -> None:
        self.tasks = list(sizes)
        known = [size for size in sizes.values() if size is not None]
        # Without all sizes there is nothing to weigh by.
        weights = np.array(known, dtype=float) ** tau if len(known) == len(sizes) else np.ones(len(sizes))
        self.shares = weights / weights.sum()
        self.seed = seed

    def __call__(self, index: int) -> str:
        drawn = uniform([self.seed, index], 1)[0]
        place = int(np.searchsorted(np.cumsum(self.shares), drawn, side="right"))
        return self.tasks[min(place, len(self.tasks) - 1)]


def size_of(dataloader: Iterable[Any]) -> int | None:
    """Number of batches of an epoch, None if the dataloader does not say."""
    if not isinstance(dataloader, Sized):
        return None
    try:
        return len(dataloader)
    except TypeError:  # a DataLoader over a dataset without length
        return None


def known_size(dataloader: Iterable[Any], why: str) -> int:
    """Number of batches of an epoch; ConfigError if it is unknown or zero."""
    size = size_of(dataloader)
    if size is None:
        raise ConfigError(f"{why} needs a dataloader with a length, and this one has none")
    if size == 0:
        raise DataError("the dataloader is empty")
    return size


def random_states() -> dict[str, Any]:
    """States of the global generators of torch, numpy and Python, as plain values."""
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 (it is others who draw from it)
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """The opposite of `random_states`."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))


def _random_state(dataloader: Iterable[Any]) -> dict[str, Any]:
    own = getattr(dataloader, "generator", None)
    return random_states() | {"own": own.get_state() if isinstance(own, torch.Generator) else None}


def _set_random_state(states: Mapping[str, Any] | None, dataloader: Iterable[Any]) -> None:
    if states is None:
        return
    set_random_states(states)
    own = getattr(dataloader, "generator", None)
    if isinstance(own, torch.Generator) and states["own"] is not None:
        own.set_state(states["own"])

"""How long models take for an example. Models that are compared are timed in turn, in one round after another.

A machine has other work, clocks rise and fall: two models that are timed one after the other do not compare. Timed in
turn (A B A B ...), under the same conditions, they do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig

from raybrew.errors import ModelError
from raybrew.models.machine import cpu_name, machine_facts, machine_text

__all__ = ["BATCHES", "Timings", "measure_in_turn"]

#: Rows in a batch: one request at a time, and a service that collects requests.
BATCHES = (1, 32)
_ROUNDS, _FEWEST_ROUNDS = 5, 3
#: Forward passes of one turn; fewer, but one at least, if they take longer than this.
_PASSES, _TURN_SECONDS = 3, 0.25
#: Models beyond this size together are built again for each turn.
_KEPT_BYTES = 4 * 10**9

#: Builds a model, or models that answer together, one after another.
Build = Callable[[], Sequence[nn.Module]]


@dataclasses.dataclass(frozen=True)
class Timings:
    """Models timed in turn, and under which conditions. Only values of one `Timings` compare."""

    milliseconds: dict[str, dict[str, float]]
    """Name of a model -> `batch_1`, ... -> milliseconds per example."""
    device: str
    """`cpu (AMD EPYC 7763)`, `cuda (NVIDIA H200)`."""
    machine: str
    precision: str
    threads: int
    """CPU threads of torch."""
    tokens: int
    """Tokens of each example, none of them padding."""
    rounds: int
    """How often each model had its turn."""
    round: str
    """A name of this measurement that no other one has."""

    @property
    def conditions(self) -> dict[str, Any]:
        """All but the times, as plain JSON types."""
        return {name: value for name, value in vars(self).items() if name != "milliseconds"}


def measure_in_turn(
    models: Mapping[str, Build],
    *,
    length: int,
    device: torch.device,
    precision: str = "fp32",
    autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    batch_sizes: Sequence[int] = BATCHES,
    config: PretrainedConfig | None = None,
    rounds: int = _ROUNDS,
    budget_seconds: float = 10.0,
) -> Timings:
    """Milliseconds per example of forward passes over `length` tokens, of `models` in turn on `device`.

    Each round gives each model one turn: the median of up to three passes per batch size, after a warm-up in the first
    round. The result is the median over rounds: fewer than `rounds`, but at least three, if all together take longer
    than `budget_seconds`. A model of several modules takes the time of all. `autocast` is the context of `precision`;
    `config` describes modules that have no config. Modes and devices of the modules are restored; no random number is
    drawn. ModelError if a model cannot take that many tokens, or does not fit into memory.
    """
    kept = _Kept(models)
    samples: dict[str, dict[int, list[float]]] = {name: {size: [] for size in batch_sizes} for name in models}
    begin, done = time.perf_counter(), 0
    while done < rounds and (done < _FEWEST_ROUNDS or time.perf_counter() - begin < budget_seconds):
        for name in models:
            with _ready(kept.take(name), device) as modules, torch.inference_mode():
                for size in batch_sizes:
                    turn = _Turn(modules, size, length, device, config)
                    with autocast():
                        if done == 0:
                            turn.take()
                        samples[name][size].append(turn.take())
        done += 1
    return Timings(
        {
            name: {f"batch_{size}": round(statistics.median(taken) * 1000 / size, 4) for size, taken in by_size.items()}
            for name, by_size in samples.items()
        },
        device=_device_text(device),
        machine=machine_text(machine_facts()) or "unknown",
        precision=precision,
        threads=torch.get_num_threads(),
        tokens=length,
        rounds=done,
        round=uuid.uuid4().hex[:12],
    )


class _Kept:
    """Models between their turns. Those that would fill the memory are built again each time."""

    def __init__(self, builds: Mapping[str, Build]) -> None:
        self._builds = builds
        self._models: dict[str, Sequence[nn.Module]] = {}
        self._bytes = 0

    def take(self, name: str) -> Sequence[nn.Module]:
        if name in self._models:
            return self._models[name]
        modules = self._builds[name]()
        size = sum(parameter.numel() * parameter.element_size() for each in modules for parameter in each.parameters())
        if self._bytes + size <= _KEPT_BYTES:
            self._models[name] = modules
            self._bytes += size
        return modules


@contextlib.contextmanager
def _ready(modules: Sequence[nn.Module], device: torch.device) -> Iterator[Sequence[nn.Module]]:
    """The modules in evaluation mode on `device`; afterwards as they were."""
    before = [(next((p.device for p in module.parameters()), device), module.training) for module in modules]
    try:
        with _as_model_error(f"the model does not fit on {device}"):
            for module in modules:
                module.train(False)
                module.to(device)
        yield modules
    finally:
        for module, (home, training) in zip(modules, before, strict=True):
            module.to(home)
            module.train(training)


class _Turn:
    """Passes of the same batch through the modules of one model."""

    def __init__(
        self,
        modules: Sequence[nn.Module],
        size: int,
        length: int,
        device: torch.device,
        config: PretrainedConfig | None,
    ) -> None:
        self.modules = modules
        self.device = device
        self.title = f"the model does not run on {size} x {length} tokens"
        fill = [_token(getattr(module, "config", None) or config) for module in modules]
        self.inputs = [torch.full((size, length), token, device=device) for token in fill]
        self.mask = torch.ones((size, length), dtype=torch.long, device=device)

    def take(self) -> float:
        """Median seconds of a pass."""
        seconds: list[float] = []
        with _as_model_error(self.title):
            while len(seconds) < _PASSES and sum(seconds) < _TURN_SECONDS:
                seconds.append(self._pass())
        return statistics.median(seconds)

    def _pass(self) -> float:
        start = time.perf_counter()
        for module, input_ids in zip(self.modules, self.inputs, strict=True):
            module(input_ids=input_ids, attention_mask=self.mask)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start


def _token(config: PretrainedConfig | None) -> int:
    """A token that is no padding. Which one does not change the time, but padding would."""
    assert config is not None  # of the module, or given
    return next(index for index in reversed(range(config.vocab_size)) if index != config.pad_token_id)


@contextlib.contextmanager
def _as_model_error(what: str) -> Iterator[None]:
    try:
        yield
    except (IndexError, RuntimeError) as error:
        raise ModelError(f"{what}: {error}") from error


def _device_text(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    return f"{device.type} ({name})"

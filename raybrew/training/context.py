"""Where the loop runs: its rank, device and peers, and who may ask it to stop. Knows torch.distributed, not Ray."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raybrew.errors import ConfigError
from raybrew.training.parallel import replicate

__all__ = [
    "FAILURES_FILE",
    "STOP_FILE",
    "Context",
    "DistributedContext",
    "LocalContext",
    "OnEvaluation",
    "device_of",
    "run_in_thread",
    "stop_on_signals",
]

#: Takes step, epoch, share of all steps and metrics of an evaluation; says whether training is to stop there.
OnEvaluation = Callable[[dict[str, Any]], bool]

#: A file of this name in the run folder asks all workers to save and stop.
STOP_FILE = "stop.request"
#: A file of this name in the run folder tells restarted workers, one JSON line each time, of which died: rank -> error.
FAILURES_FILE = "failures.jsonl"


class Context(Protocol):
    """One worker's place among its peers."""

    rank: int
    world_size: int
    device: torch.device

    def add_up(self, values: Tensor) -> Tensor:
        """The element-wise sum of `values` over all workers, on every worker."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """The value of every worker, in the order of ranks, on every worker."""
        ...

    def wrap(self, module: nn.Module, find_unused: bool) -> nn.Module:
        """`module`, made to average its gradients over the workers."""
        ...

    def stop_requested(self) -> bool:
        """Whether this worker was asked to save and stop."""
        ...

    def report(self, metrics: dict[str, Any]) -> bool:
        """Tell the launcher about an evaluation, and learn whether to save and stop here.

        Every rank calls it equally often and is told the same.
        """
        ...


class LocalContext:
    """One worker in this process."""

    rank = 0
    world_size = 1

    def __init__(
        self, device: torch.device, stop: threading.Event | None = None, on_evaluation: OnEvaluation | None = None
    ) -> None:
        self.device = device
        self.stop = stop or threading.Event()
        self.on_evaluation = on_evaluation

    def add_up(self, values: Tensor) -> Tensor:
        return values

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def wrap(self, module: nn.Module, find_unused: bool) -> nn.Module:
        return module

    def stop_requested(self) -> bool:
        return self.stop.is_set()

    def report(self, metrics: dict[str, Any]) -> bool:
        return self.on_evaluation is not None and self.on_evaluation(metrics)


class DistributedContext:
    """One of several workers in a torch.distributed process group that exists already."""

    def __init__(
        self, device: torch.device, run_folder: Path, report: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        self.device = device
        # NCCL exchanges device tensors only.
        self._host_group = dist.new_group(backend="gloo") if dist.get_backend() == "nccl" else None
        self._stop_file = run_folder / STOP_FILE
        self._report = report
        self._looked = 0.0
        self._stop = False

    def add_up(self, values: Tensor) -> Tensor:
        if values.device.type == "cpu":  # counts of each step: neither device waits for the other
            summed = values.clone()
            dist.all_reduce(summed, group=self._host_group)
            return summed
        moved = values.clone() if dist.get_backend() == "nccl" else values.cpu()
        dist.all_reduce(moved)
        return moved.to(values.device)

    def gather(self, value: Any) -> list[Any]:
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value, group=self._host_group)
        return gathered

    def wrap(self, module: nn.Module, find_unused: bool) -> nn.Module:
        return replicate(module, self.device, find_unused)

    def stop_requested(self) -> bool:
        # One look a second: on a shared file system a look is a round trip.
        now = time.monotonic()
        if not self._stop and self.rank == 0 and now - self._looked > 1.0:
            self._looked = now
            self._stop = self._stop_file.exists()
        return self._stop

    def report(self, metrics: dict[str, Any]) -> bool:
        if self._report is not None:
            self._report(metrics)
        return False  # who wants to stop several workers asks by the stop file


@contextmanager
def stop_on_signals(on_stop: Callable[[], None]) -> Iterator[None]:
    """Within, the first Ctrl-C or SIGTERM calls `on_stop`; a second one ends the process in the usual way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, frame: Any) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        on_stop()

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_in_thread(work: Callable[[], Any], on_stop: Callable[[], None], meanwhile: Callable[[], object] = bool) -> Any:
    """What `work` returns, or its error. `on_stop` is called at the first Ctrl-C or SIGTERM, `meanwhile` all along.

    Ray's own handlers of Ctrl-C, which abort without saving, are only installed on the main thread.
    """
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["result"] = work()
        except BaseException as error:
            outcome["error"] = error

    thread = threading.Thread(target=run, name="raybrew-ray", daemon=True)
    with stop_on_signals(on_stop):
        thread.start()
        while thread.is_alive():
            thread.join(timeout=0.2)
            meanwhile()
    if "error" in outcome:
        raise outcome["error"]
    return outcome["result"]


def device_of(wanted: Any, models: Sequence[tuple[str, nn.Module]], setting: str) -> torch.device:
    """`wanted`, or with "auto" where the first of `models`, given by name, is; ConfigError if one of them is elsewhere.

    `setting` says how another device is asked for.
    """
    homes = {name: _home(model) for name, model in models}
    home = next(iter(homes.values()))
    try:
        device = home if wanted == "auto" else torch.device(wanted)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device: given {wanted!r}; allowed: auto, cpu, cuda, cuda:0, ...") from error
    for name, there in homes.items():
        elsewhere = ":" in str(device) and str(there) != str(device)
        if there.type != device.type or elsewhere:
            raise ConfigError(
                f"device: batches go to {device}, but the {name} is on {there}; call {name}.to({str(device)!r}) first, "
                f"or set {setting}"
            )
    return device if ":" in str(device) else home


def _home(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device

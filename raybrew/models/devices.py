"""Where work runs: device, number of GPUs and precision, decided from the machines that are going to compute.

The process that decides may have no GPU while Ray's workers have some, so it never asks itself about them: what runs in
this process is decided here, what runs on Ray by what the cluster has. Everybody below is given the outcome.
"""

from __future__ import annotations

import dataclasses
import gc
import os
from typing import Any

import psutil
import torch

from raybrew.config.train import TrainConfig
from raybrew.errors import ClusterError, EnvironmentProblem
from raybrew.nodes import Node, gpu_nodes, on_each_node
from raybrew.runtime import ray_connected, ray_gpus, ray_runtime

__all__ = [
    "Devices",
    "Place",
    "assume_devices",
    "choose_launcher",
    "cluster_devices",
    "device_of_workers",
    "free_gpu",
    "memory_of",
    "pick_device",
    "pick_precision",
    "place_of_evaluation",
    "place_of_teacher",
    "place_of_training",
]


@dataclasses.dataclass(frozen=True)
class Devices:
    """The GPUs of a machine or a cluster, and whether all of them have bf16."""

    gpus: float
    bf16: bool = True

    @classmethod
    def here(cls) -> Devices:
        """Those of this process."""
        if not torch.cuda.is_available():
            return cls(0)
        return cls(torch.cuda.device_count(), _gpus_have_bf16(None))


@dataclasses.dataclass(frozen=True)
class Place:
    """What one training or teacher pass runs on. `precision` is never `auto`."""

    device: str  #: `cpu` or `cuda`
    precision: str
    auto: str  #: the precision that `auto` is here
    text: str  #: in a line, and why

    def precision_of(self, wanted: str) -> str:
        """What another model is computed in beside it."""
        return self.auto if wanted == "auto" else wanted


#: What this process was told by the one that started it, and what it has asked clusters before, by address.
_known: dict[str, Devices] = {}
_TOLD = "told"


def assume_devices(devices: Devices) -> None:
    """Take these for those of the cluster from now on: who started this process has asked already."""
    _known[_TOLD] = devices


def cluster_devices(purpose: str) -> Devices:
    """GPUs of the connected cluster, or of the one that would be joined (RAY_ADDRESS) or started; asked once.

    ClusterError if it cannot be reached.
    """
    address = os.environ.get("RAY_ADDRESS") or "local"
    if _TOLD in _known or address in _known:
        return _known.get(_TOLD) or _known[address]
    if address == "local" and not ray_connected():
        return Devices.here()  # it would be started on this machine
    with ray_runtime(purpose):
        _known[address] = _ask()
    return _known[address]


def _ask() -> Devices:
    gpus, nodes = ray_gpus(), gpu_nodes()
    if not gpus:
        return Devices(0)
    answers = on_each_node(nodes, _gpus_have_bf16, sees_gpus=True)
    failed = [f"node {node.name}: {answers[node.id].error}" for node in nodes if answers[node.id].error is not None]
    if failed:
        raise ClusterError(f"cannot ask nodes about their GPUs: {'; '.join(failed)}; set device to cpu or mend them")
    return Devices(gpus, all(answers[node.id].value for node in nodes))


def _gpus_have_bf16(node: Node | None) -> bool:
    """On a node: whether its GPUs compute in bf16. What torch emulates is slower than fp32."""
    return all(torch.cuda.get_device_capability(index)[0] >= 8 for index in range(torch.cuda.device_count()))


def choose_launcher(config: TrainConfig) -> str:
    """`local` or `ray`: `auto` is local for one worker unless a cluster address is set."""
    if config.launcher != "auto":
        return config.launcher
    return "ray" if config.worker_range[1] > 1 or os.environ.get("RAY_ADDRESS") else "local"


def place_of_training(config: TrainConfig, key: str = "train") -> Place:
    """Where training by `config` runs. EnvironmentProblem where a GPU is asked for and there is none, or too few."""
    if choose_launcher(config) == "local":
        device = pick_device(config.device, f"{key}.device").type
        return _place(device, config.precision, _here_for(device), "in this process")
    fewest, most = config.worker_range
    devices = Devices(0) if config.device == "cpu" else cluster_devices("training")
    device = device_of_workers(config.device, fewest, devices.gpus, key)
    count = f"{fewest} to {most}" if fewest < most else str(fewest)
    where = f"{count} Ray worker{'s' if most > 1 else ''}"
    if device == "cuda":
        where += f" with a GPU each, of {devices.gpus:g}"
    return _place(device, config.precision, devices, where)


def place_of_teacher(device: str, precision: str, launcher: str) -> Place:
    """Where a teacher's outputs are captured, and in which precision, by `store.launcher`.

    It is the same whether there is anything left to capture or not: a store is named after its precision.
    """
    where = {"local": "in this process", "ray": "Ray actors"}.get(launcher, "in this process, or Ray actors")
    if device == "cpu":
        return _place(device, precision, Devices(0), where)
    devices = Devices.here() if launcher == "local" else cluster_devices("capture")
    chosen = ("cuda" if devices.gpus else "cpu") if device == "auto" else device
    if chosen == "cuda" and launcher != "local":
        where = f"Ray actors with a GPU each, of {devices.gpus:g}"
    return _place(chosen, precision, devices, where)


def place_of_evaluation(config: TrainConfig) -> tuple[Place, bool]:
    """Where a model that `config` trains is evaluated, and whether that is elsewhere in the cluster.

    In this process, unless the model was trained on GPUs that only the cluster has.
    """
    if config.device != "cpu" and not torch.cuda.is_available() and choose_launcher(config) == "ray":
        devices = cluster_devices("evaluation")
        if devices.gpus:
            return _place("cuda", config.precision, devices, "on a GPU of the cluster"), True
    device = pick_device(config.device).type
    return _place(device, config.precision, _here_for(device), "in this process"), False


def device_of_workers(wanted: str, fewest: int, gpus: float, key: str) -> str:
    """`cpu` or `cuda` for workers of which each takes a GPU."""
    if wanted == "cpu" or (wanted == "auto" and not gpus):
        return "cpu"
    if gpus < fewest:
        raise ClusterError(
            f"{key}.workers: {fewest} workers need a GPU each, but the Ray cluster has {gpus:g} GPUs; lower "
            f"{key}.workers, set {key}.device=cpu, or wait for GPUs that come on demand (RAYBREW_WAIT_FOR=GPU:{fewest})"
        )
    return "cuda"


def _here_for(device: str) -> Devices:
    """GPUs of this process, if they are used: to ask what they can takes some of their memory."""
    return Devices.here() if device == "cuda" else Devices(0)


def _place(device: str, precision: str, devices: Devices, where: str) -> Place:
    # `cuda` without a GPU in sight is what a store was captured on, which is looked for from elsewhere.
    auto = "bf16" if device == "cuda" and (devices.bf16 or not devices.gpus) else "fp32"
    chosen = auto if precision == "auto" else precision
    return Place(device, chosen, auto, f"{device}, {chosen}: {where}")


def pick_device(wanted: str, key: str = "train.device") -> torch.device:
    """`auto` | `cpu` | `cuda` as a device of this process; EnvironmentProblem when it is asked for a GPU it lacks."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise EnvironmentProblem(
            f"{key}: cuda was asked for, but torch {torch.__version__} sees no GPU; use {key}=cpu or auto"
        )
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def pick_precision(wanted: str, device: torch.device) -> str:
    """`auto` resolved for a `device` of this process: bf16 on GPUs that have it, else fp32."""
    if wanted != "auto":
        return wanted
    return "bf16" if device.type == "cuda" and _gpus_have_bf16(None) else "fp32"


def free_gpu(*modules: Any) -> None:
    """Move `modules` off the GPU and give back what this process keeps of it: workers may share the device."""
    for module in modules:
        module.to("cpu")
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        gc.collect()
        torch.cuda.empty_cache()


def memory_of(device: torch.device) -> int:
    """Bytes of memory of a device of this process."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)

"""Several workers on one model: gradients averaged (DDP), or the model itself divided among them (FSDP2).

Whichever it is, states are read and written whole, under the names and numbers that one process uses, so that
checkpoints and students do not tell how many workers made them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

__all__ = [
    "full_state",
    "is_sharded",
    "leaves_unused",
    "load_full_state",
    "load_optimizer_state",
    "optimizer_state",
    "replicate",
    "shard",
    "whole",
    "without_sync",
]


def replicate(module: nn.Module, device: torch.device, find_unused: bool) -> nn.Module:
    """`module` in DDP: whole on each worker, gradients averaged. A module that is sharded is left as it is."""
    if is_sharded(module):
        return module
    devices = [device.index or 0] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(
        module, device_ids=devices, find_unused_parameters=find_unused, gradient_as_bucket_view=True
    )


def leaves_unused(trainee: nn.Module, inputs: Any, targets: Any, autocast: AbstractContextManager[Any]) -> bool:
    """Whether the losses of a batch leave parameters of `trainee` that are trained without a gradient.

    DDP waits for the gradients of all of them, for ever, unless it is told. Only a batch tells: some models have
    parameters that their head does not read.
    """
    parameters = [parameter for parameter in trainee.parameters() if parameter.requires_grad]
    training = trainee.training
    trainee.eval()  # draws no random numbers, moves no running means
    try:
        with autocast:
            sums, _ = trainee(inputs, targets)
        found = torch.autograd.grad(sums.sum(), parameters, allow_unused=True)
    finally:
        trainee.train(training)
    return any(gradient is None for gradient in found)


def shard(trainee: nn.Module, student: nn.Module, device: torch.device) -> None:
    """Divide `trainee` among the workers of the process group, in place; build the optimizer afterwards.

    Each layer of `student`, its part, is gathered when it is needed; so is the rest of the student, and what else
    `trainee` trains.
    """
    mesh = torch.distributed.device_mesh.init_device_mesh(device.type, (dist.get_world_size(),))
    # Lists in lists (groups of layers) come after what holds them, and a layer must be divided before its group.
    lists = [module for module in student.modules() if isinstance(module, nn.ModuleList)]
    for layer in [layer for layers in reversed(lists) for layer in layers]:
        is_list = isinstance(layer, nn.ModuleList | nn.ModuleDict)  # nobody calls it, its layers are divided themselves
        if not is_list and not is_sharded(layer) and any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh)
    fully_shard(student, mesh=mesh)
    fully_shard(trainee, mesh=mesh)
    register_fsdp_forward_method(trainee, "measure")


def is_sharded(module: nn.Module) -> bool:
    """Whether `shard` divided this module."""
    return isinstance(module, FSDPModule)


@contextlib.contextmanager
def without_sync(module: nn.Module) -> Any:
    """Gradients of backward passes inside stay on their worker."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        with module.no_sync():
            yield
    elif isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            module.set_requires_gradient_sync(True)
    else:
        yield


def whole(value: Tensor) -> Tensor:
    """`value` itself, or all of it if it is divided; then every rank must call it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """The whole `state_dict` of `module`. All ranks call it.

    A divided one is gathered tensor by tensor, on the CPU of rank 0 alone; the others get an empty one.
    """
    state = module.state_dict()
    if not is_sharded(module):
        return state
    gathered = ((name, _on_first(value.detach())) for name, value in state.items())
    return {name: value for name, value in gathered if value is not None}


def load_full_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Each rank takes its part of a whole `state`."""
    if is_sharded(module):
        state = {name: _like(state[name], value) for name, value in module.state_dict().items()}
    module.load_state_dict(state)


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The whole state of `optimizer`, as one process has it; of a divided one on rank 0 alone. All ranks call it."""
    state = optimizer.state_dict()
    numbered = {
        number: {name: _on_first(value) if isinstance(value, DTensor) else value for name, value in moments.items()}
        for number, moments in state["state"].items()
    }
    return {**state, "state": numbered}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Each rank takes its part of a whole `state`."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbered = {
        number: {
            name: _like(value, parameters[number])
            if isinstance(value, Tensor) and value.shape == parameters[number].shape and value.dim()
            else value
            for name, value in moments.items()
        }
        for number, moments in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": numbered})


def _on_first(value: Tensor) -> Tensor | None:
    """All of a divided tensor on the CPU of rank 0; None elsewhere."""
    gathered = whole(value)
    return gathered.cpu() if dist.get_rank() == 0 else None


def _like(value: Tensor, example: Tensor) -> Tensor:
    """`value`, divided like `example`. Nothing is sent, and each rank reads its own rows alone."""
    if not isinstance(example, DTensor):
        return value
    mesh, rows = example.device_mesh, -(-example.shape[0] // example.device_mesh.size())  # as torch.chunk divides
    start = min(mesh.get_local_rank() * rows, example.shape[0])
    own = value[start : start + rows].to(example.device, copy=True)
    return DTensor.from_local(
        own, mesh, example.placements, run_check=False, shape=example.shape, stride=example.stride()
    )

"""Outputs of any modules of a model, caught by hooks while it runs once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from raybrew.config.problems import near_match
from raybrew.errors import ModelError
from raybrew.signals import Signal

__all__ = ["find_module", "module_outputs", "outputs_of"]


def find_module(model: nn.Module, name: str) -> nn.Module:
    """The module of `model` with this name, such as `bert.pooler`; ModelError with a near match if there is none."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if not name or name not in modules:
        raise ModelError(f"{type(model).__name__} has no module {name!r}{near_match(name, list(modules))}")
    return modules[name]


@contextlib.contextmanager
def outputs_of(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Collects the outputs of `modules` in the one forward pass that runs inside; the keys are their names in errors.

    The dict is filled, in the order of `modules`, when the block is left. Of a tuple the first item is taken, of a
    module that runs several times the last output; ModelError if that is no tensor, or the module did not run.
    """
    result: dict[str, Tensor] = {}
    seen: dict[str, Any] = {}

    def keeping(name: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            seen[name] = output

        return keep

    with contextlib.ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(keeping(name)).remove)
        yield result
    for name in modules:
        value = seen.get(name)
        while isinstance(value, (tuple, list)) and value:
            value = value[0]
        if not isinstance(value, Tensor):
            what = "did not run" if name not in seen else f"returned {type(value).__name__}, not a tensor"
            raise ModelError(f"{name} {what} in the forward pass")
        result[name] = value


@contextlib.contextmanager
def module_outputs(model: nn.Module, request: Collection[Signal]) -> Iterator[dict[Signal, Tensor]]:
    """Collects the outputs of the modules that `request` names, as `outputs_of`."""
    names = {signal: f"{signal} of {type(model).__name__}" for signal in request if signal.module is not None}
    result: dict[Signal, Tensor] = {}
    with outputs_of({name: find_module(model, signal.module or "") for signal, name in names.items()}) as found:
        yield result
    result.update(zip(names, found.values(), strict=True))

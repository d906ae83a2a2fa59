"""Outputs of any modules of a model, by their names, caught by hooks while it runs once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from typing import Any

from torch import Tensor, nn

from raybrew.config.problems import near_match
from raybrew.errors import ModelError
from raybrew.signals import Signal

__all__ = ["find_module", "module_outputs"]


def find_module(model: nn.Module, name: str) -> nn.Module:
    """The module of `model` with this name, such as `bert.pooler`; ModelError with a near match if there is none."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if not name or name not in modules:
        raise ModelError(f"{type(model).__name__} has no module {name!r}{near_match(name, list(modules))}")
    return modules[name]


@contextlib.contextmanager
def module_outputs(model: nn.Module, request: Collection[Signal]) -> Iterator[dict[Signal, Tensor]]:
    """Collects the outputs of the modules in `request` in the one forward pass of `model` that runs inside.

    The dict is filled when the block is left. Of a tuple the first item is taken, of a module that runs several times
    the last output; ModelError if that is no tensor, or the module did not run.
    """
    result: dict[Signal, Tensor] = {}
    seen: dict[Signal, Any] = {}

    def keeping(signal: Signal) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            seen[signal] = output

        return keep

    wanted = [signal for signal in request if signal.module is not None]
    with contextlib.ExitStack() as hooks:
        for signal in wanted:
            module = find_module(model, signal.module or "")
            hooks.callback(module.register_forward_hook(keeping(signal)).remove)
        yield result
    for signal in wanted:
        value = seen.get(signal)
        while isinstance(value, (tuple, list)) and value:
            value = value[0]
        if not isinstance(value, Tensor):
            what = "did not run" if signal not in seen else f"returned {type(value).__name__}, not a tensor"
            raise ModelError(f"{signal} of {type(model).__name__} {what} in the forward pass")
        result[signal] = value

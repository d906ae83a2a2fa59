"""Custom matches: a loss between the outputs of any two modules, caught by forward hooks."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from raybrew.errors import ConfigError, LossError
from raybrew.textbrewer.configs import ClosedConfig, number_problems

__all__ = ["CustomMatch", "resolve_module", "takes", "taking", "tapped"]


@dataclasses.dataclass(frozen=True, eq=False)
class CustomMatch(ClosedConfig):
    """A loss between the outputs of `module_T` and `module_S`: modules, or their names in the models (`bert.pooler`).

    `loss` is a name in MATCH_LOSS_MAP or a function of (output_S, output_T, mask_S, mask_T), or of the first few of
    them; masks are the adaptors' `inputs_mask`. It returns a mean, which weighs all examples alike, or a LossTerm.
    `proj_func` maps the student's output; if it is a module it is trained, with the optimizer options in `proj_group`.
    Of a module that returns a tuple the first item is taken, of one that runs several times in a forward pass the last
    output.
    """

    module_T: nn.Module | str
    module_S: nn.Module | str
    weight: float
    loss: Callable[..., Any] | str
    proj_func: Callable[[Tensor], Tensor] | None = None
    proj_group: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for side in ("module_T", "module_S"):
            if not isinstance(getattr(self, side), (nn.Module, str)):
                raise ConfigError(f"custom match: {side} must be a module or its name, got {getattr(self, side)!r}")
        if not callable(self.loss) and not isinstance(self.loss, str):
            raise ConfigError(f"custom match: loss must be a name or a function, got {self.loss!r}")
        problems = number_problems("custom match: weight", self.weight, least=0.0)
        if problems:
            raise ConfigError(str(problems[0]))


def resolve_module(model: nn.Module, module: nn.Module | str, side: str) -> nn.Module:
    """The module of `model` that is meant; ConfigError if it is none of the model's."""
    if isinstance(module, str):
        try:
            return model.get_submodule(module)
        except AttributeError as error:
            raise ConfigError(f"custom match: {side} {module!r}: {error}") from error
    if not any(module is candidate for candidate in model.modules()):
        raise ConfigError(f"custom match: {side}, a {type(module).__name__}, is no part of its model")
    return module


@contextlib.contextmanager
def tapped(modules: Sequence[nn.Module]) -> Iterator[Callable[[str], tuple[Tensor, ...]]]:
    """Within, forward passes are listened to; the yielded function gives the last output of each module.

    Hooks are gone afterwards, so that checkpoints, callbacks and evaluations meet the plain model.
    """
    seen: dict[int, Any] = {}

    def hook(index: int) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            seen[index] = output

        return keep

    def outputs(side: str) -> tuple[Tensor, ...]:
        found = []
        for index, module in enumerate(modules):
            value = seen.get(index)
            while isinstance(value, (tuple, list)) and value:
                value = value[0]
            if not isinstance(value, Tensor):
                what = "did not run" if index not in seen else f"returned {type(value).__name__}, not a tensor"
                raise LossError(f"custom match {index}: {side}, a {type(module).__name__}, {what} in the forward pass")
            found.append(value)
        return tuple(found)

    handles = [module.register_forward_hook(hook(index)) for index, module in enumerate(modules)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether `function` has a parameter of this name that can be given by name."""
    try:
        parameter = inspect.signature(function).parameters.get(name)
    except (TypeError, ValueError):  # some built-in functions have no signature
        return False
    return parameter is not None and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def taking(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """`function` called with as many of `arguments` as it takes by position."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some built-in functions have no signature
        return function(*arguments)
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return function(*arguments)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return function(*arguments[: len(positional)])

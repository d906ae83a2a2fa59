"""Losses, projections and schedules by the names of a DistillationConfig: raybrew's own, or a script's."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raybrew.distillers.terms import TemperatureRule
from raybrew.errors import ConfigError, LossError
from raybrew.losses.masking import Layers
from raybrew.losses.table import MATCH_LOSSES
from raybrew.losses.term import LossTerm
from raybrew.textbrewer.presets import KD_LOSS_MAP, MATCH_LOSS_MAP, PROJ_MAP, TEMPERATURE_SCHEDULER, WEIGHT_SCHEDULER
from raybrew.textbrewer.taps import taking

__all__ = [
    "as_term",
    "as_tuple",
    "custom_loss",
    "kd_loss",
    "match_loss",
    "projection_of",
    "temperature_rule",
    "weight_schedule",
]


def projection_of(proj: Sequence[Any], key: str) -> nn.Module:
    """The trained map that `[kind, student dim, teacher dim, ...]` describes, from torch's global generator."""
    build, _ = PROJ_MAP.find(proj[0], key)
    module = build(proj[1], proj[2])
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{key}: projection {proj[0]!r} must build a module, got {type(module).__name__}")
    return module


def kd_loss(spec: Any, scale_by_temperature_squared: bool) -> tuple[Callable[..., LossTerm], bool, Mapping[str, Any]]:
    """The loss, whether it is raybrew's own, and its options."""
    name, options = _named(spec)
    if isinstance(options, tuple) and options:
        raise ConfigError(f"kd_loss_type: options of {name!r} are a dict, given {list(options)!r}")
    values = dict(options)
    loss, is_own = KD_LOSS_MAP.find(name, "kd_loss_type")
    if is_own:
        allowed = set(inspect.signature(loss).parameters) & {"alpha", "beta"}
        if set(values) - allowed:
            raise ConfigError(f"kd_loss_type: options of {name!r}: given {values!r}; allowed: {sorted(allowed)}")
        values["scale_by_temperature_squared"] = scale_by_temperature_squared
        return loss, True, values
    if scale_by_temperature_squared:
        raise ConfigError(f"scale_by_temperature_squared is for raybrew's losses; {name!r} must scale itself")

    def foreign(student: Tensor, teacher: Tensor, mask: Tensor | None, *, temperature: Any, **named: Any) -> LossTerm:
        return as_term(name, loss(student, teacher, temperature, **named), student.shape[:-1].numel())

    return foreign, False, values


def match_loss(name: str, key: str) -> tuple[Callable[..., LossTerm], bool]:
    """The loss, with TextBrewer's definition where the two differ, and whether both sides must be equally wide."""
    loss, is_own = MATCH_LOSS_MAP.find(name, key)
    if not is_own:

        def foreign(student: Layers, teacher: Layers, mask: Tensor | None) -> LossTerm:
            rows = as_tuple(student)[0].shape[0]
            return as_term(name, taking(loss, (student, teacher, mask)), rows)

        return foreign, False
    entry = MATCH_LOSSES[name]
    if entry.name == "mmd":

        def mmd(student: Layers, teacher: Layers, mask: Tensor | None) -> LossTerm:
            term: LossTerm = loss(student, teacher, mask, divide_by="dim" if mask is None else "length")
            return term

        return mmd, False
    if entry.name in ("attention_ce", "attention_ce_mean"):
        return functools.partial(loss, padded_keys=True), entry.same_width
    return loss, entry.same_width


def custom_loss(loss: Callable[..., Any] | str, key: str) -> Callable[..., Any]:
    """The loss of a custom match, called with both outputs and both masks."""
    if isinstance(loss, str):
        named, _ = match_loss(loss, key)
        return lambda student, teacher, mask, teacher_mask: named(student, teacher, mask)
    function = loss
    return lambda *arguments: taking(function, arguments)


def temperature_rule(spec: Any) -> tuple[TemperatureRule | None, bool]:
    """The rule, None for one temperature throughout, and whether it is raybrew's own."""
    name, options = _named(spec)
    if name in ("none", "constant"):
        return None, True
    function, is_own = TEMPERATURE_SCHEDULER.find(name, "temperature_scheduler")
    values = {} if isinstance(options, tuple) else options
    places = options if isinstance(options, tuple) else ()
    if is_own:
        names = {"flsw": ("beta", "gamma"), "cwsm": ("beta",)}[name]
        given = dict(zip(names, places, strict=False)) | dict(values)
        if set(given) != set(names) or len(places) > len(names):
            raise ConfigError(
                f"temperature_scheduler: {name} takes {' and '.join(names)}, as [{name!r}, {', '.join(names)}]; "
                f"given {list(places) or dict(values)}"
            )
        return lambda student, teacher, base, mask: function(student, teacher, base, **given, mask=mask), True
    rule = function(*places, **values) if isinstance(spec, tuple) else function
    return lambda student, teacher, base, mask: rule(student, teacher, base), False


def weight_schedule(key: str, spec: Any) -> Callable[[float], float] | None:
    """Progress -> factor on the configured weight; None for a constant one."""
    name, options = _named(spec)
    if name == "none":
        return None
    function, _ = WEIGHT_SCHEDULER.find(name, key)
    if not isinstance(spec, tuple):
        return function
    built: Callable[[float], float] = function(*options) if isinstance(options, tuple) else function(**options)
    return built


def _named(spec: Any) -> tuple[str, tuple[Any, ...] | Mapping[str, Any]]:
    """Name and parameters: by position, or by name where a mapping alone follows the name."""
    if isinstance(spec, str):
        return spec, ()
    name, *rest = spec
    if len(rest) == 1 and isinstance(rest[0], Mapping):
        return name, rest[0]
    return name, tuple(rest)


def as_term(name: str, value: Any, num_items: int) -> LossTerm:
    """What a foreign loss returned, a mean or a LossTerm, as a term over `num_items`."""
    if isinstance(value, LossTerm):
        return value
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise LossError(f"{name}: a loss must return a scalar tensor, or LossTerm(sum, count); got {shape}")
    count = torch.full((), float(num_items), device=value.device)
    return LossTerm(value.float().reshape(()) * count, count)


def as_tuple(value: Any) -> tuple[Any, ...]:
    """One layer as a tuple of one."""
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)

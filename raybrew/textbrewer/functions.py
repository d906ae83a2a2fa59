"""Losses, projections and schedules by the names of a DistillationConfig: raybrew's own, or a script's."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raybrew.catalog.losses import MATCH_LOSSES
from raybrew.distillers.terms import TemperatureRule
from raybrew.errors import ConfigError, LossError
from raybrew.losses.masking import Layers
from raybrew.losses.term import LossTerm
from raybrew.textbrewer.presets import (
    KD_LOSS_MAP,
    MATCH_LOSS_MAP,
    PROJ_MAP,
    RULE_OPTIONS,
    TEMPERATURE_SCHEDULER,
    WEIGHT_SCHEDULER,
    as_textbrewer,
    named_options,
)
from raybrew.textbrewer.taps import takes, taking

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
    name, options = named_options(spec)
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
    """The loss, with TextBrewer's definition where the two differ, and whether both sides must be equally wide.

    It takes both sides, the student's mask and the teacher's; most losses compare token with token under the first.
    """
    loss, is_own = MATCH_LOSS_MAP.find(name, key)
    if not is_own:

        def foreign(student: Layers, teacher: Layers, mask: Tensor | None, _: Tensor | None = None) -> LossTerm:
            rows = as_tuple(student)[0].shape[0]
            # TextBrewer gives the mask by name.
            by_name = takes(loss, "mask")
            value = loss(student, teacher, mask=mask) if by_name else taking(loss, (student, teacher, mask))
            return as_term(name, value, rows)

        return foreign, False
    entry, defined = MATCH_LOSSES[name], as_textbrewer(name)

    def own(student: Layers, teacher: Layers, mask: Tensor | None, teacher_mask: Tensor | None = None) -> LossTerm:
        return defined(student, teacher, mask, **({"teacher_mask": teacher_mask} if entry.own_masks else {}))

    return own, entry.same_width


def custom_loss(loss: Callable[..., Any] | str, key: str) -> Callable[..., Any]:
    """The loss of a custom match, called with both outputs and both masks."""
    if isinstance(loss, str):
        return match_loss(loss, key)[0]
    function = loss
    return lambda *arguments: taking(function, arguments)


def temperature_rule(spec: Any) -> tuple[TemperatureRule | None, bool]:
    """The rule, None for one temperature throughout, and whether it is raybrew's own."""
    name, options = named_options(spec)
    if name in ("none", "constant"):
        return None, True
    function, is_own = TEMPERATURE_SCHEDULER.find(name, "temperature_scheduler")
    values = {} if isinstance(options, tuple) else options
    places = options if isinstance(options, tuple) else ()
    if is_own:
        names = RULE_OPTIONS[name]
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
    name, options = named_options(spec)
    if name == "none":
        return None
    function, _ = WEIGHT_SCHEDULER.find(name, key)
    if not isinstance(spec, tuple):
        return function
    built: Callable[[float], float] = function(*options) if isinstance(options, tuple) else function(**options)
    return built


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

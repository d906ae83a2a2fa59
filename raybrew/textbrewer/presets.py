"""TextBrewer's maps of losses, projections and schedules, `register_new`, and what the names in a configuration mean.

What raybrew brings stands in its read-only tables; these maps show it under TextBrewer's conventions, losses as means
and all, and take what a script adds. Additions live in this process only: Ray workers reach functions of your own as
`package.module:function`, which every name in a DistillationConfig may be.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from raybrew.catalog.losses import KD_LOSSES, MATCH_LOSSES, TEMPERATURES
from raybrew.catalog.projections import PROJECTIONS, SCHEDULES
from raybrew.config.outside import load_outside
from raybrew.config.problems import near_match
from raybrew.distillers.terms import TemperatureRule, temperature_rule
from raybrew.errors import ConfigError, LossError
from raybrew.losses.masking import Layers
from raybrew.losses.term import LossTerm
from raybrew.textbrewer.configs import FEATURES

__all__ = [
    "ADAPTOR_KEYS",
    "FEATURES",
    "KD_LOSS_MAP",
    "MATCH_LOSS_MAP",
    "PROJ_MAP",
    "TEMPERATURE_SCHEDULER",
    "WEIGHT_SCHEDULER",
    "Preset",
    "as_tuple",
    "custom_loss",
    "kd_loss",
    "match_loss",
    "projection_of",
    "register_new",
    "temperature_of",
    "weight_schedule",
]

#: Keys that an adaptor may return.
ADAPTOR_KEYS = ["logits", "logits_mask", "losses", "inputs_mask", "labels", *FEATURES]

#: Temperature rules that take parameters, and these in their order.
RULE_OPTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType({"flsw": ("beta", "gamma"), "cwsm": ("beta",)})


class Preset(MutableMapping[str, Callable[..., Any]]):
    """Functions by name: those of a table, and those that a script adds, which may not replace them."""

    def __init__(self, what: str, table: Mapping[str, Any], view: Callable[[str, Callable[..., Any]], Any]) -> None:
        self.what = what
        self.table = {name: entry for name, entry in table.items() if getattr(entry, "needs", "") != "qkv"}
        self.added: dict[str, Callable[..., Any]] = {}
        self._view = view

    def __getitem__(self, name: str | Sequence[Any]) -> Callable[..., Any]:
        """The function under TextBrewer's conventions; of `["flsw", 1, 2]` what "flsw" builds from the rest."""
        if not isinstance(name, str):
            name, options = named_options(name)
            return _built(self[name], options)
        if name in self.added:
            return self.added[name]
        viewed: Callable[..., Any] = self._view(name, self.table[name].load())
        return viewed

    def __setitem__(self, name: str, function: Callable[..., Any]) -> None:
        if not callable(function):
            raise ConfigError(f"{self.what} {name!r}: expected a function, given {function!r}")
        if name in self.table:
            raise ConfigError(f"{self.what} {name!r} exists already; choose another name")
        self.added[name] = function

    def __delitem__(self, name: str) -> None:
        del self.added[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self.table, *self.added])

    def __len__(self) -> int:
        return len(self.table) + len(self.added)

    def find(self, name: str, key: str) -> tuple[Callable[..., Any], bool]:
        """The function called `name`, and whether it is raybrew's own; ConfigError names `key` and near matches."""
        if name in self.table:
            return self.table[name].load(), True
        if name in self.added:
            return self.added[name], False
        if ":" in name:
            return load_outside(name, key), False
        raise ConfigError(
            f"{key}: given {name!r}; allowed: {', '.join(self)}, package.module:function{near_match(name, list(self))}"
        )


def named_options(spec: Any) -> tuple[str, tuple[Any, ...] | Mapping[str, Any]]:
    """Name and parameters: by position, or by name where a mapping alone follows the name."""
    if isinstance(spec, str):
        return spec, ()
    name, *rest = spec
    if len(rest) == 1 and isinstance(rest[0], Mapping):
        return name, rest[0]
    return name, tuple(rest)


def as_textbrewer(name: str) -> Callable[..., LossTerm]:
    """The match loss of this name with TextBrewer's definition, where the two differ: `mmd` and the cross entropies."""
    entry = MATCH_LOSSES[name]
    loss: Callable[..., LossTerm] = entry.load()
    if entry.name == "mmd":

        def mmd(student: Any, teacher: Any, mask: Tensor | None = None) -> LossTerm:
            return loss(student, teacher, mask, divide_by="dim" if mask is None else "length")

        return mmd
    if entry.name in ("attention_ce", "attention_ce_mean"):
        return functools.partial(loss, padded_keys=True)
    return loss


def _as_mean(name: str, loss: Callable[..., Any]) -> Callable[..., Tensor]:
    """A loss as TextBrewer calls it, with its names of arguments."""
    defined = loss if name in KD_LOSSES else as_textbrewer(name)

    def divided(*given: Any, **named: Any) -> Tensor:
        term: LossTerm = defined(*given, **named)
        return term.sum / term.count.clamp_min(1.0)

    def kd(logits_S: Tensor, logits_T: Tensor, temperature: float | Tensor = 1.0) -> Tensor:
        return divided(logits_S, logits_T, temperature=temperature)

    def attention(attention_S: Tensor, attention_T: Tensor, mask: Tensor | None = None) -> Tensor:
        return divided(attention_S, attention_T, mask)

    def states(state_S: Any, state_T: Any, mask: Tensor | None = None) -> Tensor:
        return divided(state_S, state_T, mask)

    mean = kd if name in KD_LOSSES else attention if MATCH_LOSSES[name].needs.startswith("attention") else states
    mean.__name__, mean.__doc__ = name, loss.__doc__
    return mean


def _as_builder(name: str, rule: Callable[..., Any]) -> Callable[..., Any]:
    """A rule with parameters as a function of these that returns f(logits_S, logits_T, base temperature)."""
    if name not in RULE_OPTIONS:
        return rule

    def build(*places: Any, **options: Any) -> Callable[..., Any]:
        given = dict(zip(RULE_OPTIONS[name], places, strict=False)) | options
        return lambda logits_S, logits_T, base_temperature: rule(logits_S, logits_T, base_temperature, **given)

    return build


def _as_is(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    return function


#: f(logits_S, logits_T, temperature) -> mean loss.
KD_LOSS_MAP = Preset("KD loss", KD_LOSSES, _as_mean)
#: f(state_S, state_T, mask=None) -> mean loss.
MATCH_LOSS_MAP = Preset("match loss", MATCH_LOSSES, _as_mean)
#: f(student dim, teacher dim) -> module.
PROJ_MAP = Preset("projection", PROJECTIONS, _as_is)
#: f(progress in [0, 1]) -> factor on the configured weight.
WEIGHT_SCHEDULER = Preset("weight scheduler", SCHEDULES, _as_is)
#: f(logits_S, logits_T, base) -> temperature, or where there are parameters, a function of them that returns it.
TEMPERATURE_SCHEDULER = Preset("temperature scheduler", TEMPERATURES, _as_builder)

_MAPS: Mapping[str, Preset] = {
    "kd_loss": KD_LOSS_MAP,
    "match_loss": MATCH_LOSS_MAP,
    "match_Loss": MATCH_LOSS_MAP,  # TextBrewer's spelling
    "projection": PROJ_MAP,
    "weight_scheduler": WEIGHT_SCHEDULER,
    "temperature_scheduler": TEMPERATURE_SCHEDULER,
}


def register_new(map_name: str, name: str, func: Callable[..., Any]) -> None:
    """Add a function to `kd_loss`, `match_loss`, `projection`, `weight_scheduler` or `temperature_scheduler`.

    Losses may return a mean, which then weighs every example alike, or a `LossTerm(sum, count)`.
    """
    if map_name not in _MAPS:
        allowed = [name for name in _MAPS if name != "match_Loss"]
        raise ConfigError(
            f"register_new: no map {map_name!r}; allowed: {', '.join(allowed)}{near_match(str(map_name), allowed)}"
        )
    _MAPS[map_name][name] = func


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
        return _as_term(name, loss(student, teacher, temperature, **named), student.shape[:-1].numel())

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
            by_name = _takes(loss, "mask")
            value = loss(student, teacher, mask=mask) if by_name else _taking(loss, (student, teacher, mask))
            return _as_term(name, value, rows)

        return foreign, False
    entry, defined = MATCH_LOSSES[name], as_textbrewer(name)

    def own(student: Layers, teacher: Layers, mask: Tensor | None, teacher_mask: Tensor | None = None) -> LossTerm:
        return defined(student, teacher, mask, **({"teacher_mask": teacher_mask} if entry.own_masks else {}))

    return own, entry.same_width


def custom_loss(loss: Callable[..., Any] | str, key: str) -> Callable[..., LossTerm]:
    """The loss of a custom match, called with both outputs and both masks."""
    if isinstance(loss, str):
        return match_loss(loss, key)[0]
    function = loss

    def own(student: Tensor, *others: Any) -> LossTerm:
        return _as_term("loss", _taking(function, (student, *others)), student.shape[0])

    return own


def temperature_of(spec: Any) -> tuple[TemperatureRule | None, bool]:
    """The rule, None for one temperature throughout, and whether it is raybrew's own."""
    name, options = named_options(spec)
    if name in ("none", "constant"):
        return None, True
    function, is_own = TEMPERATURE_SCHEDULER.find(name, "temperature_scheduler")
    if is_own:
        names, places = RULE_OPTIONS[name], options if isinstance(options, tuple) else ()
        given = dict(options) if isinstance(options, Mapping) else dict(zip(names, places, strict=False))
        if set(given) != set(names) or len(places) > len(names):
            raise ConfigError(
                f"temperature_scheduler: {name} takes {' and '.join(names)}, as [{name!r}, {', '.join(names)}]; "
                f"given {options!r}"
            )
        return temperature_rule(name, **given), True
    rule = _built(function, options) if isinstance(spec, tuple) else function
    return lambda student, teacher, base, mask: rule(student, teacher, base), False


def weight_schedule(key: str, spec: Any) -> Callable[[float], float] | None:
    """Progress -> factor on the configured weight; None for a constant one."""
    name, options = named_options(spec)
    if name == "none":
        return None
    function, _ = WEIGHT_SCHEDULER.find(name, key)
    return _built(function, options) if isinstance(spec, tuple) else function


def _built(build: Callable[..., Any], options: tuple[Any, ...] | Mapping[str, Any]) -> Callable[..., Any]:
    built: Callable[..., Any] = build(**options) if isinstance(options, Mapping) else build(*options)
    return built


def _as_term(name: str, value: Any, num_items: int) -> LossTerm:
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


def _takes(function: Callable[..., Any], name: str) -> bool:
    """Whether `function` has a parameter of this name that can be given by name."""
    try:
        parameter = inspect.signature(function).parameters.get(name)
    except (TypeError, ValueError):  # some built-in functions have no signature
        return False
    return parameter is not None and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def _taking(function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
    """`function` called with as many of `arguments` as it takes by position."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some built-in functions have no signature
        return function(*arguments)
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return function(*arguments)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return function(*arguments[: len(positional)])

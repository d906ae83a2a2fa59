"""TextBrewer's maps of losses, projections and schedules, and `register_new`.

What raybrew brings stands in its read-only tables; these maps show it under TextBrewer's conventions, losses as means
and all, and take what a script adds. Additions live in this process only: Ray workers reach functions of your own as
`package.module:function`, which every name in a DistillationConfig may be.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor

from raybrew.catalog.losses import KD_LOSSES, MATCH_LOSSES, TEMPERATURES
from raybrew.catalog.projections import PROJECTIONS, SCHEDULES
from raybrew.config.problems import near_match
from raybrew.errors import ConfigError
from raybrew.losses.term import LossTerm
from raybrew.textbrewer.configs import FEATURES

__all__ = [
    "ADAPTOR_KEYS",
    "FEATURES",
    "KD_LOSS_MAP",
    "MATCH_LOSS_MAP",
    "PROJ_MAP",
    "RULE_OPTIONS",
    "TEMPERATURE_SCHEDULER",
    "WEIGHT_SCHEDULER",
    "Preset",
    "as_textbrewer",
    "named_options",
    "register_new",
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
            built: Callable[..., Any] = self[name](**options) if isinstance(options, Mapping) else self[name](*options)
            return built
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
            module, _, attribute = name.partition(":")
            try:
                found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
            except (ImportError, AttributeError) as error:
                raise ConfigError(f"{key}: {name!r} cannot be imported: {error}") from error
            return found, False
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

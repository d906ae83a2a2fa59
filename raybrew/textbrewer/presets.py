"""TextBrewer's maps of losses, projections and schedules, and `register_new`.

What raybrew brings stands in its read-only tables; these maps show it under TextBrewer's conventions, losses as means
and all, and take what a script adds. Additions live in this process only: Ray workers reach functions of your own as
`package.module:function`, which every name in a DistillationConfig may be.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torch import Tensor

from raybrew.config.problems import near_match
from raybrew.distillers.tables import PROJECTIONS, SCHEDULES
from raybrew.errors import ConfigError
from raybrew.losses.table import KD_LOSSES, MATCH_LOSSES, TEMPERATURES
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
    "register_new",
]

#: Keys that an adaptor may return.
ADAPTOR_KEYS = ["logits", "logits_mask", "losses", "inputs_mask", "labels", *FEATURES]


class Preset(MutableMapping[str, Callable[..., Any]]):
    """Functions by name: those of a table, and those that a script adds, which may not replace them."""

    def __init__(self, what: str, table: Mapping[str, Any], view: Callable[[str, Callable[..., Any]], Any]) -> None:
        self.what = what
        self.table = {name: entry for name, entry in table.items() if getattr(entry, "needs", "") != "qkv"}
        self.added: dict[str, Callable[..., Any]] = {}
        self._view = view

    def __getitem__(self, name: str) -> Callable[..., Any]:
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


def _as_mean(name: str, loss: Callable[..., Any]) -> Callable[..., Tensor]:
    """A loss as TextBrewer calls it: KD (student, teacher, temperature=1), matches (student, teacher, mask=None)."""
    is_kd = name in KD_LOSSES

    def mean(student: Any, teacher: Any, third: Any = None, **named: Any) -> Tensor:
        if is_kd:
            term: LossTerm = loss(
                student, teacher, temperature=named.get("temperature", 1.0 if third is None else third)
            )
        else:
            term = loss(student, teacher, named.get("mask", third))
        return term.sum / term.count.clamp_min(1.0)

    mean.__name__, mean.__doc__ = name, loss.__doc__
    return mean


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
#: Added ones: f(logits_S, logits_T, base) -> temperature, or given parameters, a function of them that returns it.
TEMPERATURE_SCHEDULER = Preset("temperature scheduler", TEMPERATURES, _as_is)

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

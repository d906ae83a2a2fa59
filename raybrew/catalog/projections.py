"""Projections and weight schedules by name: read-only tables that import no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from raybrew.catalog.target import load_target

__all__ = ["PROJECTIONS", "SCHEDULES", "TableEntry"]


@dataclasses.dataclass(frozen=True)
class TableEntry:
    """One function and where it is."""

    name: str
    target: str  #: module:function
    summary: str  #: one line

    def load(self) -> Callable[..., Any]:
        """Imports the function (a projection's brings torch with it)."""
        function: Callable[..., Any] = load_target(self.target)
        return function


def _rows(module: str, **summaries: str) -> Mapping[str, TableEntry]:
    return MappingProxyType(
        {name: TableEntry(name, f"{module}:{name}", summary) for name, summary in summaries.items()}
    )


#: Builders (student_dim, teacher_dim, *, generator) -> module.
PROJECTIONS: Mapping[str, TableEntry] = _rows(
    "raybrew.distillers.projections",
    linear="affine map",
    relu="affine map, then ReLU",
    tanh="affine map, then tanh",
)

#: Functions of the progress in [0, 1] that return a factor on the configured weight.
SCHEDULES: Mapping[str, TableEntry] = _rows(
    "raybrew.distillers.schedules",
    constant="1 throughout",
    linear_decay="1 to 0 in a straight line",
    linear_growth="0 to 1 in a straight line",
    cosine_decay="1 to 0 along half a cosine",
    cosine_growth="0 to 1 along half a cosine",
)

"""The cautions that runs keep in their summaries."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from raybrew.data import model_cautions, row_cautions
from raybrew.data.cautions import Caution
from raybrew.records.summary import RunSummary, TeacherFacts

__all__ = ["caution_of", "cautions_of"]

_KINDS: Mapping[str, type[Caution]] = MappingProxyType(
    {
        kind.kind: kind
        for module in (row_cautions, model_cautions)
        for kind in (getattr(module, name) for name in module.__all__)
    }
)


def caution_of(value: Any) -> Caution | None:
    """What `plain` gave; None for kinds that this version does not know, and for what is damaged."""
    if not isinstance(value, Mapping) or value.get("kind") not in _KINDS:
        return None
    kind = _KINDS[value["kind"]]
    names = {field.name for field in dataclasses.fields(kind)}
    try:
        caution = kind(**{name: item for name, item in value.items() if name in names})
        caution.text()
    except (TypeError, ValueError, ZeroDivisionError, AttributeError):
        return None
    return caution


def cautions_of(summary: RunSummary | None) -> list[Caution]:
    """The cautions of a run's summary and of its teachers; none for runs of versions that wrote none."""
    recorded = [] if summary is None else [*summary.cautions, *_of_teacher(summary.teacher)]
    return [caution for caution in map(caution_of, recorded) if caution is not None]


def _of_teacher(facts: TeacherFacts | None) -> Iterator[Any]:
    if facts is not None:
        yield from facts.cautions
        for member in facts.members.values():
            yield from _of_teacher(member)

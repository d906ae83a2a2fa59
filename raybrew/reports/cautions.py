"""The cautions that runs keep in their summaries, as sentences of a report."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

from raybrew.data import model_cautions, row_cautions
from raybrew.data.cautions import Caution
from raybrew.records.runs import RunRecord

__all__ = ["caution_of", "cautions_of", "sentences_of"]

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


def cautions_of(summary: Mapping[str, Any] | None) -> list[Caution]:
    """The cautions of a run's summary and of its teachers; none for runs of versions that wrote none."""
    return [caution for caution in map(caution_of, _recorded(summary)) if caution is not None]


def sentences_of(runs: Iterable[RunRecord]) -> list[str]:
    """The serious cautions of all these runs, each once."""
    texts = [each.text() for run in runs for each in cautions_of(run.summary) if each.serious]
    # Sentences begin with a dotted key, or with the name of a model.
    return list(dict.fromkeys(f"{text if text[4:5] == '.' else text[:1].upper() + text[1:]}." for text in texts))


def _recorded(facts: Any) -> Iterator[Any]:
    """Those of a summary, of its teacher, and of the members of that."""
    if not isinstance(facts, Mapping):
        return
    cautions, members = facts.get("cautions"), facts.get("members")
    yield from cautions if isinstance(cautions, list) else ()
    yield from _recorded(facts.get("teacher"))
    for member in members.values() if isinstance(members, Mapping) else ():
        yield from _recorded(member)

"""What a model card tells: the summary of a run, and what is known beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from raybrew.catalog.tasks import DEFAULT_KIND
from raybrew.records.summary import Best, HeldOut, Measured, RunSummary, TeacherFacts

__all__ = ["CardFacts", "Control", "metrics_of_task", "summary_of_task"]

_Metrics = TypeVar("_Metrics", Best, Measured, HeldOut, TeacherFacts)


@dataclasses.dataclass(frozen=True)
class Control:
    """The same student trained without a teacher."""

    run_id: str
    metrics: Mapping[str, float]
    """On data.eval."""
    test: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """A run without facts is a plain folder's. What is not known is left out of the card."""

    run: RunSummary
    task: str = DEFAULT_KIND
    """Its kind."""
    labels: Sequence[str] = ()
    license: str | None = None
    command: str | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    control: Control | None = None
    compared: Sequence[str] = ()
    """Sentences about control and teacher."""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Settings that are not the defaults."""
    repository: str | None = None
    """On the hub."""
    export: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The content of `raybrew.json`."""

    @property
    def formats(self) -> Mapping[str, Any]:
        """The formats of an export by name; none of a student that is not exported."""
        return self.export.get("formats") or {}


def summary_of_task(summary: RunSummary, task: str) -> RunSummary:
    """`summary` of a run as the card of the model of one task wants it; `task` is empty for an only one."""
    if not task:
        return summary
    teacher = summary.teacher
    if teacher is not None:
        own = teacher.members.get(task) or _of_task(teacher, task)
        tested = None if teacher.test is None else _of_task(teacher.test, task)
        teacher = own if tested is None else dataclasses.replace(own, test=tested)
    return dataclasses.replace(
        summary,
        name=f"{summary.name}: {task}",
        best=None if summary.best is None else _of_task(summary.best, task),
        last=_of_task(summary.last, task),
        test=None if summary.test is None else _of_task(summary.test, task),
        teacher=teacher,
    )


def metrics_of_task(metrics: Mapping[str, float], task: str) -> Mapping[str, float]:
    """Metrics of several tasks, `task.metric`, as those of one; all of them if there is only one (`task` is empty)."""
    if not task:
        return metrics
    return {name.removeprefix(f"{task}."): each for name, each in metrics.items() if name.startswith(f"{task}.")}


def _of_task(section: _Metrics, task: str) -> _Metrics:
    return dataclasses.replace(section, metrics=metrics_of_task(section.metrics, task))

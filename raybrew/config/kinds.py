"""What kind of task a section means: a row of the catalogue, one of the user's, or several tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raybrew.catalog.losses import kd_losses_of
from raybrew.catalog.tasks import DEFAULT_KIND, TASKS, TaskSpec
from raybrew.config.outside import row_of
from raybrew.errors import ConfigError

__all__ = ["MULTI", "is_multi", "kd_losses_for", "known_task", "task_spec"]

#: The kind of several tasks.
MULTI = "multi"


def is_multi(value: Any) -> bool:
    """Whether `value` of the section `task`, plain or built, is of several tasks."""
    return (value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)) == MULTI


def task_spec(kind: str) -> TaskSpec:
    """The row of a kind of task: one of the catalogue, or one of the user's. ConfigError names task.kind."""
    return row_of(TASKS, kind, "task.kind", TaskSpec)


def known_task(kind: str | None) -> TaskSpec | None:
    """The row of a kind that a file of a run names, the usual one for None; None for one that is not here."""
    try:
        return task_spec(kind or DEFAULT_KIND)
    except ConfigError:
        return None


def kd_losses_for(kind: str) -> tuple[str, ...]:
    """The `distill.kd_loss.kind` that a task's outputs can be compared by; the first is what `auto` stands for."""
    return kd_losses_of(task_spec(kind).outputs)

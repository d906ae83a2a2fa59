"""`task.kind: multi`: several tasks for one student, each with its own rows and teachers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from raybrew.config.base import MAX_WEIGHT, Name, Section
from raybrew.config.data import DataConfig
from raybrew.config.task import ClassificationConfig, TaskConfig
from raybrew.config.teacher import TeacherConfig

__all__ = ["MULTI", "MultiTaskConfig", "TaskPart", "is_multi"]

#: The kind of several tasks.
MULTI = "multi"


class TaskPart(Section):
    """One task among several: what an experiment of this task alone has in the sections of these names."""

    task: TaskConfig = ClassificationConfig()
    """What is predicted, and by which metric it is judged."""
    data: DataConfig = DataConfig()
    """Its rows."""
    teacher: TeacherConfig = TeacherConfig()
    """Its teacher or teachers."""
    weight: float = Field(default=1.0, gt=0, le=MAX_WEIGHT)
    """Factor on all losses of this task."""


class MultiTaskConfig(Section):
    """Several tasks for one student: a shared encoder with a head for each."""

    kind: Literal["multi"] = "multi"
    """Which task; `raybrew list tasks` shows all."""
    tau: float = Field(default=0.5, ge=0, le=10)
    """The task of a step is drawn with probability proportional to its number of rows ** tau: 1 by size, 0 alike."""
    metric: Literal["mean"] = "mean"
    """What chooses the best checkpoint: the mean over tasks of each one's own `metric`."""
    tasks: dict[Name, TaskPart] = Field(min_length=2)
    """The tasks by name, each with the sections task, data and teacher, and with weight."""


def is_multi(value: Any) -> bool:
    """Whether `value` of the section `task`, plain or built, is of several tasks."""
    return (value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)) == MULTI

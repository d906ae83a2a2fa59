"""`task.kind: multi`: several tasks for one student, each with its own rows and teachers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from raybrew.config.base import MAX_WEIGHT, Name, Section
from raybrew.config.data import DataConfig
from raybrew.config.task import ClassificationConfig, TaskConfig
from raybrew.config.teacher import TeacherConfig

__all__ = ["MultiTaskConfig", "TaskPart"]


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
    """Several tasks for one student: a shared encoder with a head for each.

    Example:
        >>> parts = {"rte": {"teacher": "owner/rte"}, "mrpc": {"teacher": "owner/mrpc"}}
        >>> raybrew.MultiTask(tasks=parts).tasks["rte"].teacher
        Teacher(model='owner/rte')
    """

    kind: Literal["multi"] = "multi"
    """Which task; `raybrew list tasks` shows all."""
    tau: float = Field(default=0.5, ge=0, le=10)
    """The task of a step is drawn with probability proportional to its number of rows ** tau: 1 by size, 0 alike."""
    metric: Literal["mean"] = "mean"
    """What chooses the best checkpoint: the mean over tasks of each one's own `metric`."""
    tasks: dict[Name, TaskPart] = Field(min_length=2)
    """The tasks by name, each with the sections task, data and teacher, and with weight."""

    @classmethod
    def long_form(cls, value: Any) -> Any:
        """As of any section, and of each task's own sections."""
        value = super().long_form(value)
        if isinstance(value, dict) and isinstance(value.get("tasks"), Mapping):
            value["tasks"] = {name: TaskPart.long_form(part) for name, part in value["tasks"].items()}
        return value

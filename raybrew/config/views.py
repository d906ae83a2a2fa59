"""An experiment of several tasks or teachers as experiments of one: what all but training itself works on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from raybrew.config.data import DataConfig
from raybrew.config.distill import with_matches
from raybrew.config.experiment import Experiment
from raybrew.config.matches import matches_of_task
from raybrew.config.multi_task import MultiTaskConfig, TaskPart
from raybrew.config.problems import near_match
from raybrew.config.task import TaskConfig
from raybrew.errors import ConfigError

__all__ = [
    "DEFAULT",
    "View",
    "choose_task",
    "task_views",
    "teacher_views",
    "with_data",
]

#: What an only task or teacher is called.
DEFAULT = "default"


class View(NamedTuple):
    """One task, or one of its teachers, alone."""

    name: str  #: among several; DEFAULT of an only one
    label: str  #: the same in messages, folders and keys: empty for an only one
    experiment: Experiment

    @property
    def task(self) -> TaskConfig:
        """The section `task`, of one task."""
        task = self.experiment.task
        assert not isinstance(task, MultiTaskConfig)  # a view has one
        return task


def task_views(experiment: Experiment) -> tuple[View, ...]:
    """The experiment of each task alone, in the order of the file; that of an only task is `experiment` itself.

    A view's `student`, `train` and other sections are the whole experiment's; its matches are those for its teachers.
    """
    if not isinstance(experiment.task, MultiTaskConfig):
        return (View(DEFAULT, "", experiment),)
    return tuple(View(name, name, _view(experiment, name, part)) for name, part in experiment.task.tasks.items())


def choose_task(experiment: Experiment, name: str | None) -> View:
    """The view of task `name`; ConfigError if there is none, or several and no name."""
    views = task_views(experiment)
    names = [view.label for view in views if view.label]
    if not names and name is None:
        return views[0]
    if name in names:
        return views[names.index(name)]
    if not names:
        raise ConfigError(f"--task: given {name!r}, but this experiment has one task only; leave it out")
    if name is None:
        raise ConfigError(f"--task: required, as this experiment has several tasks: {', '.join(names)}")
    raise ConfigError(f"--task: given {name!r}; allowed: {', '.join(names)}{near_match(name, names)}")


def teacher_views(view: Experiment) -> tuple[View, ...]:
    """The experiment of each teacher alone, for an experiment of one task; none without a teacher.

    Matches are left out where there are several: what they ask of which teacher is the whole experiment's matter.
    """
    teacher = view.teacher
    if not teacher.members:
        return (View(DEFAULT, "", view),) if teacher.given else ()
    distill = view.distill.model_copy(update={"matches": (), "stages": ()})
    return tuple(
        View(name, name, view.model_copy(update={"teacher": teacher.member(name), "distill": distill}))
        for name in teacher.members
    )


def with_data(experiment: Experiment, change: Callable[[str, DataConfig], DataConfig]) -> Experiment:
    """`experiment` with what `change` makes of each section `data`, given its dotted key and the section."""
    changed: dict[str, object] = {"data": change("data", experiment.data)}
    if isinstance(experiment.task, MultiTaskConfig):
        parts = {
            name: part.model_copy(update={"data": change(f"task.tasks.{name}.data", part.data)})
            for name, part in experiment.task.tasks.items()
        }
        changed["task"] = experiment.task.model_copy(update={"tasks": parts})
    return experiment.model_copy(update=changed)


def _view(experiment: Experiment, name: str, part: TaskPart) -> Experiment:
    distill = experiment.distill
    return experiment.model_copy(
        update={
            "task": part.task,
            "data": part.data if part.data.cache else part.data.model_copy(update={"cache": experiment.data.cache}),
            "teacher": part.teacher,
            "distill": with_matches(distill, lambda matches: matches_of_task(matches, name)),
        }
    )

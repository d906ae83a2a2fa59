"""An experiment of several tasks or teachers as experiments of one: what all but training itself works on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from raybrew.config.data import DataConfig
from raybrew.config.distill import DistillConfig, MatchConfig
from raybrew.config.experiment import Experiment
from raybrew.config.multi_task import MultiTaskConfig, TaskPart
from raybrew.config.problems import near_match
from raybrew.errors import ConfigError

__all__ = [
    "DEFAULT",
    "View",
    "choose_task",
    "matches_of_task",
    "task_views",
    "teacher_views",
    "with_data",
    "with_matches",
]

#: What an only task or teacher is called.
DEFAULT = "default"


class View(NamedTuple):
    """One task, or one of its teachers, alone."""

    name: str  #: among several; DEFAULT of an only one
    label: str  #: the same in messages, folders and keys: empty for an only one
    experiment: Experiment


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


def matches_of_task(matches: tuple[MatchConfig, ...], task: str) -> tuple[MatchConfig, ...]:
    """The matches that hold for `task`, their `teacher` without its name: `rte/b` becomes b, `rte` the only one."""
    found = []
    for match in matches:
        if match.teacher is None:
            found.append(match)
        elif match.teacher.split("/")[0] == task:
            found.append(match.model_copy(update={"teacher": match.teacher.partition("/")[2] or None}))
    return tuple(found)


def with_matches(
    distill: DistillConfig, change: Callable[[tuple[MatchConfig, ...]], tuple[MatchConfig, ...]]
) -> DistillConfig:
    """`distill` with the matches that `change` makes of its own and of those of each stage."""
    stages = tuple(
        stage if stage.matches is None else stage.model_copy(update={"matches": change(stage.matches)})
        for stage in distill.stages
    )
    return distill.model_copy(update={"matches": change(distill.matches), "stages": stages})


def with_data(experiment: Experiment, change: Callable[[DataConfig], DataConfig]) -> Experiment:
    """`experiment` with what `change` makes of its section `data` and of that of each task."""
    changed: dict[str, Any] = {"data": change(experiment.data)}
    if isinstance(experiment.task, MultiTaskConfig):
        tasks = {
            name: part.model_copy(update={"data": change(part.data)}) for name, part in experiment.task.tasks.items()
        }
        changed["task"] = experiment.task.model_copy(update={"tasks": tasks})
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

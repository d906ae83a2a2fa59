"""An experiment of several tasks or teachers as experiments of one: what all but training itself works on."""

from __future__ import annotations

from collections.abc import Callable

from raybrew.config.data import DataConfig
from raybrew.config.distill import with_matches
from raybrew.config.experiment import Experiment
from raybrew.config.matches import matches_of_task
from raybrew.config.multi_task import MultiTaskConfig, TaskPart
from raybrew.config.problems import near_match
from raybrew.errors import ConfigError

__all__ = [
    "choose_task",
    "one_teacher",
    "task_views",
    "teacher_names",
    "teacher_views",
    "with_data",
]


def task_views(experiment: Experiment) -> dict[str | None, Experiment]:
    """Name -> experiment of that task alone, in the order of the file; None -> itself for an experiment of one task.

    A view's `student`, `train` and other sections are the whole experiment's; its matches are those for its teachers.
    """
    if not isinstance(experiment.task, MultiTaskConfig):
        return {None: experiment}
    return {name: _view(experiment, name, part) for name, part in experiment.task.tasks.items()}


def choose_task(experiment: Experiment, name: str | None) -> Experiment:
    """The view of task `name`; ConfigError if there is none, or several and no name."""
    views = task_views(experiment)
    if name in views:
        return views[name]
    names = [view for view in views if view is not None]
    if not names:
        raise ConfigError(f"--task: given {name!r}, but this experiment has one task only; leave it out")
    if name is None:
        raise ConfigError(f"--task: required, as this experiment has several tasks: {', '.join(names)}")
    raise ConfigError(f"--task: given {name!r}; allowed: {', '.join(names)}{near_match(name, names)}")


def teacher_views(view: Experiment) -> dict[str | None, Experiment]:
    """Name -> experiment with that teacher alone, for an experiment of one task; a single teacher is named None.

    Matches are left out: what they ask of which teacher is the whole experiment's matter.
    """
    teacher = view.teacher
    if not teacher.members:
        return {None: view} if teacher.given else {}
    return {name: one_teacher(view, name) for name in teacher.members}


def one_teacher(view: Experiment, name: str | None) -> Experiment:
    """`view` with one of its teachers as the only one."""
    if name is None:
        return view
    distill = view.distill.model_copy(update={"matches": (), "stages": ()})
    return view.model_copy(update={"teacher": view.teacher.member(name), "distill": distill})


def teacher_names(experiment: Experiment) -> list[str]:
    """What `--teacher` and `student.teacher` may say: `b` of several teachers, `rte` or `rte/b` of several tasks."""
    names: list[str] = []
    for task, view in task_views(experiment).items():
        if task is not None and view.teacher.given:
            names.append(task)
        names += [name if task is None else f"{task}/{name}" for name in view.teacher.members]
    return names


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

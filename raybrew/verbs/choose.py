"""Which of an experiment's tasks and teachers are meant, and where those teachers are."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from raybrew.config import Experiment
from raybrew.config.problems import near_match
from raybrew.config.views import choose_task, one_teacher, task_views, teacher_views
from raybrew.errors import ConfigError
from raybrew.models.loading import ModelSource
from raybrew.training.run_folder import EVALUATED
from raybrew.verbs.prepare import teacher_source

__all__ = [
    "chosen_tasks",
    "chosen_teachers",
    "student_teacher",
    "teacher_sources",
    "view_of_student_teacher",
    "weight_of",
]


def chosen_tasks(experiment: Experiment, name: str | None) -> dict[str | None, Experiment]:
    """The views of all tasks, or of the one called `name`."""
    return task_views(experiment) if name is None else {name: choose_task(experiment, name)}


def chosen_teachers(names: Sequence[str | None], name: str | None) -> list[str | None]:
    """All of `names`, or the one called `name`; ConfigError if there is none of that name."""
    if name is None:
        return list(names)
    if name in names:
        return [name]
    known = [each for each in names if each is not None]
    if not known:
        raise ConfigError(f"--teacher: given {name!r}, but there is one teacher only; leave it out")
    raise ConfigError(f"--teacher: given {name!r}; allowed: {', '.join(known)}{near_match(name, known)}")


def teacher_sources(
    view: Experiment, teacher_run: str | None = None, other_rows: Collection[str] = EVALUATED
) -> dict[str | None, ModelSource]:
    """Name -> where that teacher of a task is; a single one is named None. RunError where one is not trained yet."""
    views = teacher_views(view)
    if teacher_run is not None and len(views) > 1:
        names = ", ".join(map(str, views))
        raise ConfigError(f"teacher_run: names one finetune run, but there are several teachers: {names}")
    return {name: teacher_source(one, teacher_run, other_rows) for name, one in views.items()}


def student_teacher(experiment: Experiment, teacher_run: str | None = None) -> ModelSource | None:
    """The teacher whose architecture, vocabulary and layers a shape takes: `student.teacher`, else the first."""
    view = view_of_student_teacher(experiment)
    return None if view is None else teacher_source(view, teacher_run)


def view_of_student_teacher(experiment: Experiment) -> Experiment | None:
    """The experiment of that teacher alone, None without any teacher."""
    named = experiment.student.teacher
    views = task_views(experiment)
    view: Experiment | None
    if named is None:
        view = next((view for view in views.values() if view.teacher.given), None)
        member = next(iter(view.teacher.members), None) if view is not None else None
    elif None in views:
        view, member = experiment, named
    else:
        task, _, rest = named.partition("/")
        view = choose_task(experiment, task)
        member = rest or next(iter(view.teacher.members), None)
    return None if view is None else one_teacher(view, member)


def weight_of(view: Experiment, name: str | None) -> float:
    """A teacher's share of the average, relative to the others'."""
    return 1.0 if name is None else view.teacher.members[name].weight

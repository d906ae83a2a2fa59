"""An experiment resolved once for a verb: its tasks, their teachers, where these are, and what is loaded of them.

Everything after it takes what stands here. A single task is the list of one named `default`, a single teacher too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from raybrew.config import (
    DataConfig,
    DistillConfig,
    Experiment,
    FinetuneConfig,
    MultiTaskConfig,
    StoreConfig,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
)
from raybrew.config.problems import near_match
from raybrew.config.views import View, choose_task, task_views, teacher_views
from raybrew.distillers.ensemble import request_of_member
from raybrew.errors import ConfigError, RunError
from raybrew.models.cache import ModelCache
from raybrew.models.loading import ModelSource
from raybrew.signals import Signal
from raybrew.storage.open import stores_root
from raybrew.tasks.base import Task, build_task
from raybrew.tasks.heads import Head, VocabularyHead
from raybrew.training.run_folder import EVALUATED, NUMBER_OF_ROWS, RunFolder

__all__ = [
    "ANY_ROWS",
    "Resolved",
    "ResolvedTask",
    "ResolvedTeacher",
    "base_of",
    "chosen_teachers",
    "finetune_config",
    "label_of",
    "resolve",
    "teacher_source",
]

#: Keys of `data` in which a finished model may differ from the experiment that evaluates it.
ANY_ROWS = EVALUATED | NUMBER_OF_ROWS


@dataclasses.dataclass(frozen=True)
class _Search:
    """Which finetune run is a teacher: one by its id, or that of the configuration but for the keys `other_rows`."""

    run_id: str | None
    other_rows: Collection[str]
    or_base: bool  #: what is not trained yet stands for what it will be trained from

    def find(self, one: Experiment) -> ModelSource:
        try:
            return teacher_source(one, self.run_id, self.other_rows)
        except RunError:
            if not self.or_base or one.teacher.model is None:
                raise
            return base_of(one.teacher)


@dataclasses.dataclass(frozen=True)
class ResolvedTeacher:
    """One teacher of a task."""

    name: str  #: among several; `default` of an only one
    label: str  #: the same in messages and signals: empty for an only one
    experiment: Experiment = dataclasses.field(repr=False)
    """That of its task and this teacher alone."""
    weight: float
    """Its share of the average, relative to the others'."""
    search: _Search = dataclasses.field(repr=False)

    @property
    def config(self) -> TeacherConfig:
        """Its section, as that of an only teacher."""
        return self.experiment.teacher

    @property
    def key(self) -> str:
        """Where the experiment of its task has it."""
        return f"teacher.members.{self.label}" if self.label else "teacher"

    @functools.cached_property
    def source(self) -> ModelSource:
        """Where it is. RunError where it is not trained yet."""
        return self.search.find(self.experiment)

    def asked(self, request: Collection[Signal]) -> tuple[Signal, ...]:
        """What it is asked for where all teachers of its task are asked for `request`."""
        return request_of_member(request, self.label or None, self.weight)


@dataclasses.dataclass(frozen=True)
class ResolvedTask:
    """One task with the sections that an experiment of this task alone has."""

    name: str  #: among several; `default` of an only one
    label: str  #: the same in messages, folders and metrics: empty for an only one
    experiment: Experiment = dataclasses.field(repr=False)
    """That of this task alone."""
    weight: float
    """Factor on its losses."""
    teachers: tuple[ResolvedTeacher, ...]
    models: ModelCache = dataclasses.field(repr=False, compare=False)

    @functools.cached_property
    def task(self) -> Task:
        """The task itself, reading the columns of its rows."""
        config = self.experiment.task
        assert not isinstance(config, MultiTaskConfig)  # a view has one task
        return build_task(config, self.data.columns)

    @property
    def kind(self) -> str:
        return self.experiment.task.kind

    @property
    def metric(self) -> str:
        """What students are judged by."""
        return self.experiment.task.metric

    @property
    def data(self) -> DataConfig:
        return self.experiment.data

    @property
    def teacher(self) -> TeacherConfig:
        return self.experiment.teacher

    @property
    def student(self) -> StudentConfig:
        return self.experiment.student

    @property
    def distill(self) -> DistillConfig:
        return self.experiment.distill

    @property
    def train(self) -> TrainConfig:
        return self.experiment.train

    @property
    def store(self) -> StoreConfig:
        return self.experiment.store

    @property
    def store_root(self) -> str:
        """Folder or URL of all teacher stores."""
        return stores_root(self.store)

    @property
    def cache(self) -> Path:
        """Where encoded rows are kept."""
        return _cache_of(self.experiment)

    @property
    def data_key(self) -> str:
        """Where the experiment has the section `data` of this task."""
        return f"task.tasks.{self.label}.data" if self.label else "data"

    @property
    def sources(self) -> dict[str, ModelSource]:
        """Where each teacher is, by label."""
        return {teacher.label: teacher.source for teacher in self.teachers}

    @property
    def first_source(self) -> ModelSource | None:
        """Where the first teacher is, whose labels are those of the rows."""
        return next((teacher.source for teacher in self.teachers), None)

    def head(self, tokenizer: Any) -> Head:
        """The head of the task. Over a vocabulary it reads the tokenizer's entries alone.

        Models have more outputs than that where their vocabulary was padded to a round number.
        """
        head = self.task.head
        if isinstance(head, VocabularyHead):
            return dataclasses.replace(head, entries=max(tokenizer.get_vocab().values()) + 1)
        return head

    def chosen(self, name: str | None) -> list[ResolvedTeacher]:
        """All its teachers, or the one called `name`."""
        labels = chosen_teachers([teacher.label for teacher in self.teachers], name)
        return [teacher for teacher in self.teachers if teacher.label in labels]

    def alone(self, teacher: ResolvedTeacher) -> ResolvedTask:
        """The task with one of its teachers as the only one."""
        return dataclasses.replace(self, experiment=teacher.experiment, teachers=(teacher,))

    def changed(self, **sections: Any) -> ResolvedTask:
        """The same task and teachers with other sections of the experiment, such as other rows."""
        return dataclasses.replace(self, experiment=self.experiment.model_copy(update=sections))


@dataclasses.dataclass(frozen=True)
class Resolved:
    """An experiment's tasks and teachers; `models` holds what this process has loaded of them."""

    experiment: Experiment
    tasks: tuple[ResolvedTask, ...]
    models: ModelCache = dataclasses.field(repr=False, compare=False)

    @property
    def cache(self) -> Path:
        """Where what is made of the rows of all tasks is kept."""
        return _cache_of(self.experiment)

    @property
    def tau(self) -> float | None:
        """How the tasks' steps depend on their numbers of rows; None of an only task."""
        task = self.experiment.task
        return task.tau if isinstance(task, MultiTaskConfig) else None

    def task(self, name: str | None) -> ResolvedTask:
        """The task called `name`; ConfigError if there is none, or several and no name."""
        view = choose_task(self.experiment, name)
        return next(task for task in self.tasks if task.name == view.name)

    def chosen(self, name: str | None) -> tuple[ResolvedTask, ...]:
        """All tasks, or the one called `name`."""
        return self.tasks if name is None else (self.task(name),)

    @property
    def shape(self) -> ModelSource | None:
        """The teacher whose architecture, vocabulary and layers a shape takes: `student.teacher`, else the first."""
        named = self.experiment.student.teacher or ""
        task, _, member = named.partition("/") if self.tasks[0].label else ("", "", named)
        for each in self.tasks:
            for teacher in each.teachers:
                if task in ("", each.label) and member in ("", teacher.label):
                    return teacher.source
        return None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of the tasks."""
        return tuple(task.kind for task in self.tasks)


def resolve(
    experiment: Experiment,
    *,
    teacher_run: str | None = None,
    other_rows: Collection[str] = EVALUATED,
    or_base: bool = False,
    models: ModelCache | None = None,
) -> Resolved:
    """The tasks and teachers of `experiment`; a teacher is looked for when it is asked where it is, and once.

    `teacher_run` names the finetune run of the only teacher, which may differ from the experiment in the keys
    `other_rows` of `data`. With `or_base` a teacher that is not trained yet is the model that it will be trained from.
    """
    models = models or ModelCache()
    search = _Search(teacher_run, other_rows, or_base)
    tasks = tuple(_resolved(experiment, view, search, models) for view in task_views(experiment))
    return Resolved(experiment, tasks, models)


def _resolved(whole: Experiment, view: View, search: _Search, models: ModelCache) -> ResolvedTask:
    task, config = whole.task, view.experiment.teacher
    found = teacher_views(view.experiment)
    if search.run_id is not None and len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise ConfigError(f"teacher_run: names one finetune run, but there are several teachers: {names}")
    teachers = tuple(
        ResolvedTeacher(
            one.name, one.label, one.experiment, config.members[one.name].weight if one.label else 1.0, search
        )
        for one in found
    )
    weight = task.tasks[view.name].weight if isinstance(task, MultiTaskConfig) else 1.0
    return ResolvedTask(view.name, view.label, view.experiment, weight, teachers, models)


def chosen_teachers(names: Sequence[str], name: str | None) -> list[str]:
    """All labels of `names`, or the one called `name`; ConfigError if there is none of that name."""
    if name is None:
        return list(names)
    if name in names:
        return [name]
    known = [each for each in names if each]
    if not known:
        raise ConfigError(f"--teacher: given {name!r}, but there is one teacher only; leave it out")
    raise ConfigError(f"--teacher: given {name!r}; allowed: {', '.join(known)}{near_match(name, known)}")


def label_of(*parts: str) -> str:
    """Labels of a task and of its teacher together: `rte/big`, or what there is of them."""
    return "/".join(part for part in parts if part)


def _cache_of(experiment: Experiment) -> Path:
    return experiment.cache_folder.absolute()


def base_of(teacher: TeacherConfig) -> ModelSource:
    """`teacher.model` as it is given."""
    assert teacher.model is not None  # the caller looked
    return ModelSource(teacher.model, teacher.revision, teacher.trust_remote_code)


def teacher_source(
    experiment: Experiment, run_id: str | None = None, other_rows: Collection[str] = EVALUATED
) -> ModelSource:
    """Where the finished teacher is: `teacher.model`, or the student folder of its finetune run.

    That run may differ from the experiment in the keys `other_rows` of `data`; see `RunFolder.trained`.
    RunError says which command makes it when it does not exist yet.
    """
    teacher = experiment.teacher
    if teacher.model is None:
        raise ConfigError("teacher.model: required by this command; name a folder or a hub model")
    if teacher.finetune is None:
        return base_of(teacher)
    run = RunFolder.trained(experiment, "finetune", run_id, other_rows)
    if run.summary() is None:
        raise RunError(
            f"the teacher is not trained yet: {run.path} holds no finished run; run `raybrew finetune` with this "
            "experiment first, or set teacher.finetune=null to use teacher.model as it is"
        )
    if not run.has_student:
        raise RunError(
            f"the teacher cannot be used: {run.lost_student}; run `raybrew finetune` with this experiment, which "
            "trains it again"
        )
    return ModelSource(str(run.student))


def finetune_config(experiment: Experiment) -> FinetuneConfig:
    """`teacher.finetune`; ConfigError when it is not set."""
    if experiment.teacher.finetune is None:
        raise ConfigError("teacher.finetune: required by `raybrew finetune`; `teacher.finetune={}` takes the defaults")
    return experiment.teacher.finetune

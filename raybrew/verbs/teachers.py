"""The teachers of a task: where each one is, what it is asked for, and whether it answers live or from a store."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pyarrow as pa

from raybrew.config import Experiment
from raybrew.config.views import choose_task, one_teacher, task_views, teacher_names, teacher_views
from raybrew.data.encoded import tokenizer_fingerprint
from raybrew.distillers.ensemble import request_of_member
from raybrew.errors import ConfigError, ModelError
from raybrew.models.loading import ModelSource, load_tokenizer
from raybrew.signals import Signal
from raybrew.store.find import find_store
from raybrew.store.reader import Store
from raybrew.verbs.capture import attention_in, capture_table, store_root
from raybrew.verbs.inputs import TeacherInput
from raybrew.verbs.prepare import task_of, teacher_source
from raybrew.verbs.reporter import Reporter

__all__ = ["check_tokenizers", "ready_teachers", "student_teacher", "teacher_sources", "weight_of"]


def teacher_sources(view: Experiment, teacher_run: str | None = None) -> dict[str | None, ModelSource]:
    """Name -> where that teacher of a task is; a single one is named None. RunError where one is not trained yet."""
    views = teacher_views(view)
    if teacher_run is not None and len(views) > 1:
        raise ConfigError(f"teacher_run: names one finetune run, but there are several teachers: {_names(view)}")
    return {name: teacher_source(one, teacher_run) for name, one in views.items()}


def student_teacher(experiment: Experiment, teacher_run: str | None = None) -> ModelSource | None:
    """The teacher whose architecture, vocabulary and layers a shape takes: `student.teacher`, else the first."""
    named = experiment.student.teacher
    views = task_views(experiment)
    if named is None:
        view = next((view for view in views.values() if view.teacher.given), None)
        member = next(iter(view.teacher.members), None) if view is not None else None
    elif None in views:
        view, member = experiment, named
    else:
        task, _, rest = named.partition("/")
        view = choose_task(experiment, task)
        member = rest or next(iter(view.teacher.members), None)
    return None if view is None else teacher_source(one_teacher(view, member), teacher_run)


def weight_of(view: Experiment, name: str | None) -> float:
    """A teacher's share of the average, relative to the others'."""
    return 1.0 if name is None else view.teacher.members[name].weight


def ready_teachers(
    view: Experiment,
    sources: Mapping[str | None, ModelSource],
    request: tuple[Signal, ...],
    rows: pa.Table,
    student: ModelSource,
    reporter: Reporter,
) -> tuple[TeacherInput, ...]:
    """The teachers that `request` asks for, each live or with a store that has all it will be asked.

    `auto` captures what the store lacks, and runs a teacher live for what no store holds. ModelError where a teacher's
    tokenizer is not the student's and tokens are compared, or it runs live.
    """
    found = []
    for name, source in sources.items():
        one, asked = one_teacher(view, name), request_of_member(request, name, weight_of(view, name))
        if not asked:
            continue
        check_tokenizers(one, source, student, asked, name)
        given = TeacherInput(source, name, weight_of(view, name), one.teacher.precision)
        if _from_store(one, asked, name, reporter):
            store = _store(one, source, rows, asked, reporter)
            given = dataclasses.replace(given, store=str(store.path), fingerprint=store.fingerprint)
        found.append(given)
    return tuple(found)


def check_tokenizers(
    one: Experiment, teacher: ModelSource, student: ModelSource, request: tuple[Signal, ...], name: str | None = None
) -> None:
    """Refuse what needs the same tokens on both sides when the tokenizers differ."""
    if student == teacher:
        return
    if tokenizer_fingerprint(load_tokenizer(student)) == tokenizer_fingerprint(load_tokenizer(teacher)):
        return
    whose = "" if name is None else f" of teacher {name}"
    layers = [signal.name for signal in request if signal.layer is not None]
    if layers:
        raise ModelError(
            f"distill.matches: compares {', '.join(layers)}{whose} token by token, but the tokenizers of "
            f"{student.model} and {teacher.model} differ; remove the matches, or take a student with the teacher's "
            "tokenizer"
        )
    if one.teacher.source == "live":
        key = "teacher" if name is None else f"teacher.members.{name}"
        raise ModelError(
            f"{key}.source: live feeds both models the same tokens, but the tokenizers of {student.model} and "
            f"{teacher.model} differ; use {key}.source=auto"
        )


def _from_store(one: Experiment, request: tuple[Signal, ...], name: str | None, reporter: Reporter) -> bool:
    """Whether a store answers `request`. `auto` runs the teacher live for what no store holds, and says so."""
    attention = attention_in(request)
    if attention and one.teacher.source == "auto":
        who = "the teacher" if name is None else f"teacher {name}"
        reporter.say(f"{who} runs live in every step: stores do not hold {attention}")
    return one.teacher.source != "live" and not attention


def _store(
    one: Experiment, teacher: ModelSource, rows: pa.Table, request: tuple[Signal, ...], reporter: Reporter
) -> Store:
    """The store that the student reads: as it is for `source: store`, completed first for `auto`."""
    if one.teacher.source == "auto":
        return capture_table(one, teacher, rows, request, reporter)
    return find_store(
        rows,
        task_of(one),
        teacher,
        request,
        one.store,
        store_root(one),
        one.teacher.device,
        one.teacher.precision,
    )


def _names(view: Experiment) -> str:
    return ", ".join(teacher_names(view))

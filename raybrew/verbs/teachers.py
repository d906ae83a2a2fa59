"""The teachers of a task: where each one is, what it is asked for, and whether it answers live or from a store."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from raybrew.catalog.losses import KD_LOSSES
from raybrew.config import Experiment
from raybrew.config.kinds import task_spec
from raybrew.config.views import one_teacher
from raybrew.distillers.ensemble import request_of_member
from raybrew.errors import ModelError
from raybrew.models.loading import ModelSource
from raybrew.models.weights import weights_fingerprint
from raybrew.signals import Signal
from raybrew.store.find import find_store
from raybrew.store.reader import Store
from raybrew.tasks.base import Labels
from raybrew.verbs.capture import capture_table, store_root, usable_rows
from raybrew.verbs.choose import weight_of
from raybrew.verbs.inputs import TeacherInput
from raybrew.verbs.prepare import Rows, check_lengths, rows_with, same_tokens, task_of
from raybrew.verbs.reporter import Reporter
from raybrew.verbs.source import runs_live
from raybrew.verbs.units import CapturedUnits, captured_units

__all__ = ["check_tokenizers", "ready_teachers"]

#: KD losses for answers of another tokenizer, where a token may have no probability to begin the teacher's.
_KEEP_ALIGNED = ("auto", *(name for name, entry in KD_LOSSES.items() if entry.takes_zero))


def ready_teachers(
    view: Experiment,
    sources: Mapping[str | None, ModelSource],
    request: tuple[Signal, ...],
    rows: Rows,
    student: ModelSource,
    reporter: Reporter,
    task: str | None = None,
    trainings: int = 1,
) -> tuple[tuple[TeacherInput, ...], Rows, list[ModelSource]]:
    """The teachers that `request` asks for, the rows that all of them could compute, and whose tokenizers these fit.

    Of the evaluation rows all stay: those that a teacher could not compute are left out of losses alone.
    Each teacher runs live or has a store with all that it will be asked; `auto` decides by the rule of
    `raybrew.verbs.source`, for so many `trainings` on these rows, and captures what the store lacks.
    ModelError where a teacher's tokenizer is not the student's and tokens are compared, or it runs live.
    """
    asked = {name: request_of_member(request, name, weight_of(view, name)) for name in sources}
    others = [sources[name] for name in sources if asked[name]]
    if task_spec(view.task.kind).places and any(not same_tokens(others[0], other) for other in others[1:]):
        raise ModelError(
            f"teacher.members: the tokenizers of {', '.join(other.model for other in others)} differ, so their starts "
            "and ends cannot be averaged for question answering; take teachers of one tokenizer"
        )
    found: list[TeacherInput] = []
    units = captured_units(view, rows, student, *others) if others else CapturedUnits(rows.training, rows.training)
    bad = np.zeros(units.training.num_rows, np.bool_)
    for name, source in sources.items():
        if not asked[name]:
            if view.distill.trains_in_teacher:
                # Its layers are wanted, none of its outputs.
                weight, precision = weight_of(view, name), view.teacher.precision
                found.append(TeacherInput(source, name, weight, precision, weights=_weights_of(source)))
            continue
        one = one_teacher(view, name)
        check_tokenizers(one, source, student, asked[name], name)
        check_lengths(one, rows, source, student, *others)
        given = TeacherInput(source, name, weight_of(view, name), one.teacher.precision)
        if not _is_live(one, source, student, units.whole, asked[name], len(rows.labels), reporter, trainings):
            label = "/".join(part for part in (task, name) if part)
            store = _store(one, source, units.whole, asked[name], rows.labels, reporter, label)
            bad |= ~usable_rows(one, store, units.whole, asked[name])[: len(bad)]
            given = dataclasses.replace(given, store=store.location, fingerprint=store.fingerprint, opened=store)
        else:
            given = dataclasses.replace(given, weights=_weights_of(source))
        found.append(given)
    return tuple(found), rows.without(rows_with(units.training, bad, rows.training.num_rows)), others


def _weights_of(teacher: ModelSource) -> str | None:
    return None if teacher.folder is None else weights_fingerprint(teacher.folder)


def check_tokenizers(
    one: Experiment, teacher: ModelSource, student: ModelSource, request: tuple[Signal, ...], name: str | None = None
) -> None:
    """Refuse what needs the same tokens on both sides when the tokenizers differ."""
    if same_tokens(teacher, student):
        return
    whose = "" if name is None else f" of teacher {name}"
    fix = "take a student with the teacher's tokenizer"
    if one.student.vocabulary is not None:
        fix = "set student.vocabulary.min_count=1, which keeps every piece of the rows"
    layers = [signal.name for signal in request if signal.layer is not None]
    if layers:
        raise ModelError(
            f"distill.matches: compares {', '.join(layers)}{whose} token by token, but the tokenizers of "
            f"{student.model} and {teacher.model} differ; remove the matches (pooled_mse and pooled_cos compare rows "
            f"instead), or {fix}"
        )
    if task_spec(one.task.kind).places:
        for key, losses in one.distill.keyed_parts:
            if losses.kd_weight > 0 and losses.kd_loss.kind not in _KEEP_ALIGNED:
                raise ModelError(
                    f"{key}.kd_loss.kind: given {losses.kd_loss.kind!r}, but start and end{whose} come from another "
                    f"tokenizer as probabilities of characters; allowed then: {', '.join(_KEEP_ALIGNED)}"
                )
    if one.teacher.source == "live":
        key = "teacher" if name is None else f"teacher.members.{name}"
        raise ModelError(
            f"{key}.source: live feeds both models the same tokens, but the tokenizers of {student.model} and "
            f"{teacher.model} differ; use {key}.source=auto"
        )


def _is_live(
    one: Experiment,
    teacher: ModelSource,
    student: ModelSource,
    units: pa.Table,
    request: tuple[Signal, ...],
    num_labels: int,
    reporter: Reporter,
    trainings: int,
) -> bool:
    """Whether the teacher runs in every step: as `source` says, by the rule of `runs_live` for `auto`.

    Where tokens are hidden in each epoch anew it always does.
    """
    if task_of(one).masking is not None:
        return True
    if one.teacher.source != "auto":
        return one.teacher.source == "live"
    return same_tokens(teacher, student) and runs_live(
        one, teacher, units, request, num_labels, reporter.say, trainings
    )


def _store(
    one: Experiment,
    teacher: ModelSource,
    rows: pa.Table,
    request: tuple[Signal, ...],
    labels: Labels,
    reporter: Reporter,
    label: str,
) -> Store:
    """The store that the student reads: as it is for `source: store`, completed first for `auto`. `rows` are units."""
    if one.teacher.source == "auto":
        return capture_table(one, teacher, rows, request, labels, reporter, label)
    store = find_store(
        rows,
        task_of(one),
        teacher,
        request,
        one.store,
        store_root(one),
        one.teacher.device,
        one.teacher.precision,
        reporter.say,
    )
    usable_rows(one, store, rows, request, reporter.say)
    return store

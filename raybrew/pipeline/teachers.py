"""The teachers of a task: whether each answers live or from a store, and the pass that fills a store."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raybrew.catalog.losses import KD_LOSSES
from raybrew.config.kinds import task_spec
from raybrew.errors import DataError, ModelError
from raybrew.files import make_storage
from raybrew.models.devices import place_of_teacher
from raybrew.models.loading import ModelSource
from raybrew.models.weights import weights_fingerprint
from raybrew.pipeline.inputs import TeacherInput
from raybrew.pipeline.reporter import Reporter
from raybrew.pipeline.resolve import ResolvedTask, ResolvedTeacher, label_of
from raybrew.pipeline.rows import Rows, Say
from raybrew.pipeline.store_or_live import runs_live
from raybrew.pipeline.units import CapturedUnits, captured_units, check_lengths, rows_with, same_tokens
from raybrew.signals import Signal, sorted_signals
from raybrew.store.capture import CaptureProgress
from raybrew.store.capture import capture as capture_rows
from raybrew.store.find import find_store
from raybrew.store.reader import Store
from raybrew.tasks.base import Labels

__all__ = ["capture_table", "check_tokenizers", "ready_teachers"]

#: KD losses for answers of another tokenizer, where a token may have no probability to begin the teacher's.
_KEEP_ALIGNED = ("auto", *(name for name, entry in KD_LOSSES.items() if entry.takes_zero))


def ready_teachers(
    task: ResolvedTask,
    request: tuple[Signal, ...],
    rows: Rows,
    student: ModelSource,
    reporter: Reporter,
    trainings: int = 1,
) -> tuple[tuple[TeacherInput, ...], Rows, list[ModelSource]]:
    """The teachers that `request` asks for, the rows that all of them could compute, and whose tokenizers these fit.

    Of the evaluation rows all stay: those that a teacher could not compute are left out of losses alone.
    Each teacher runs live or has a store with all that it will be asked; `auto` decides by the rule of
    `raybrew.pipeline.store_or_live`, for so many `trainings` on these rows, and captures what the store lacks.
    ModelError where a teacher's tokenizer is not the student's and tokens are compared, or it runs live.
    """
    asked = {teacher.name: teacher.asked(request) for teacher in task.teachers}
    others = [teacher.source for teacher in task.teachers if asked[teacher.name]]
    if task_spec(task.kind).places and any(not same_tokens(task.models, others[0], other) for other in others[1:]):
        raise ModelError(
            f"teacher.members: the tokenizers of {', '.join(other.model for other in others)} differ, so their starts "
            "and ends cannot be averaged for question answering; take teachers of one tokenizer"
        )
    found: list[TeacherInput] = []
    units = captured_units(task, rows, student, *others) if others else CapturedUnits(rows.training, rows.training)
    bad = np.zeros(units.training.num_rows, np.bool_)
    for teacher in task.teachers:
        wanted, source = asked[teacher.name], teacher.source
        given = TeacherInput(source, teacher.name, teacher.label, teacher.weight, teacher.config.precision)
        if not wanted:
            if task.distill.trains_in_teacher:  # its layers are wanted, none of its outputs
                found.append(_alive(given))
            continue
        check_tokenizers(task, teacher, student, wanted)
        check_lengths(task, rows, source, student, *others)
        mode, read = teacher.config.source, units.whole
        # Where tokens are hidden in each epoch anew, nothing can be stored.
        live = mode == "live" or task.task.masking is not None
        if mode == "auto" and not live and same_tokens(task.models, source, student):
            live = runs_live(task, teacher, read, wanted, len(rows.labels), reporter.say, trainings)
        if live:
            found.append(_alive(given))
            continue
        store = _store(task, teacher, read, wanted, rows.labels, reporter)
        bad |= ~usable_rows(task, store, read, wanted)[: len(bad)]
        found.append(dataclasses.replace(given, store=store.location, fingerprint=store.fingerprint, opened=store))
    return tuple(found), rows.without(rows_with(units.training, bad, rows.training.num_rows)), others


def _alive(given: TeacherInput) -> TeacherInput:
    """A teacher that runs live, whose weights must stay as they are."""
    folder = given.source.folder
    return given if folder is None else dataclasses.replace(given, weights=weights_fingerprint(folder))


def check_tokenizers(
    task: ResolvedTask, teacher: ResolvedTeacher, student: ModelSource, request: tuple[Signal, ...]
) -> None:
    """Refuse what needs the same tokens on both sides when the tokenizers differ."""
    source = teacher.source
    if same_tokens(task.models, source, student):
        return
    whose = f" of teacher {teacher.label}" if teacher.label else ""
    fix = "take a student with the teacher's tokenizer"
    if task.student.vocabulary is not None:
        fix = "set student.vocabulary.min_count=1, which keeps every piece of the rows"
    layers = [signal.name for signal in request if signal.layer is not None]
    if layers:
        raise ModelError(
            f"distill.matches: compares {', '.join(layers)}{whose} token by token, but the tokenizers of "
            f"{student.model} and {source.model} differ; remove the matches (pooled_mse and pooled_cos compare rows "
            f"instead), or {fix}"
        )
    if task_spec(task.kind).places:
        for key, losses in teacher.experiment.distill.keyed_parts:
            if losses.kd_weight > 0 and losses.kd_loss.kind not in _KEEP_ALIGNED:
                raise ModelError(
                    f"{key}.kd_loss.kind: given {losses.kd_loss.kind!r}, but start and end{whose} come from another "
                    f"tokenizer as probabilities of characters; allowed then: {', '.join(_KEEP_ALIGNED)}"
                )
    if teacher.config.source == "live":
        key = teacher.key
        raise ModelError(
            f"{key}.source: live feeds both models the same tokens, but the tokenizers of {student.model} and "
            f"{source.model} differ; use {key}.source=auto"
        )


def _store(
    task: ResolvedTask,
    teacher: ResolvedTeacher,
    rows: pa.Table,
    request: tuple[Signal, ...],
    labels: Labels,
    reporter: Reporter,
) -> Store:
    """The store that the student reads: as it is for `source: store`, completed first for `auto`. `rows` are units."""
    config = teacher.config
    if config.source == "auto":
        return capture_table(task, teacher, rows, request, labels, reporter)
    store = find_store(
        rows,
        task.task,
        teacher.source,
        request,
        task.store,
        task.store_root,
        config.device,
        config.precision,
        reporter.say,
        models=task.models,
    )
    usable_rows(task, store, rows, request, reporter.say)
    return store


def capture_table(
    task: ResolvedTask,
    teacher: ResolvedTeacher,
    rows: pa.Table,
    request: Collection[Signal],
    labels: Labels,
    reporter: Reporter,
    verify: bool = False,
) -> Store:
    """The store with `request` for all of `rows`, computed where it lacks something.

    `rows` are units. Says which of them the teacher could not compute (`data.on_bad_row: skip`), or is a DataError that
    names them.
    """
    names = ", ".join(signal.name for signal in sorted_signals(request))
    update: Callable[[int, str], None] | None = None
    if task.store.path is None:
        make_storage(Path(task.store.storage_path))
    config, called = teacher.config, label_of(task.label, teacher.label) or task.experiment.name
    place = place_of_teacher(config.device, config.precision, task.store.launcher)
    with contextlib.ExitStack() as stack:

        def show(progress: CaptureProgress) -> None:
            nonlocal update
            if update is None:  # the bar appears only if there is something to do
                reporter.say(f"capture {called} on {place.text}")
                title = f"capture {called} ({names})"
                update = stack.enter_context(reporter.bar(title, progress.total_rows, task.task.unit_name))
            if progress.note:
                reporter.say(progress.note)
            update(progress.done_rows, f"{progress.bytes_written / 2**20:.1f} MiB")

        store = capture_rows(
            rows,
            task.task,
            teacher.source,
            request,
            task.store,
            task.store_root,
            config.device,
            config.precision,
            show,
            task.data.on_bad_row == "skip",
            verify,
            reporter.say,
            labels.names if task.task.names_labels else (),
            models=task.models,
        )
    usable_rows(task, store, rows, request, reporter.say)
    return store


def usable_rows(
    task: ResolvedTask, store: Store, rows: pa.Table, request: Collection[Signal], say: Say | None = None
) -> npt.NDArray[np.bool_]:
    """Which of `rows` the teacher could compute, (rows,).

    The others are told to `say`, or are a DataError where `data.on_bad_row` is `error`.
    """
    aside = store.set_aside(request)
    names = [row.hex() for row in rows.column("id").to_pylist()] if aside else []
    found = [name for name in dict.fromkeys(names) if name in aside]
    if not found:
        return np.ones(rows.num_rows, np.bool_)
    shown = [f"row {name}: {aside[name]}" for name in found[:10]]
    if task.data.on_bad_row == "error":
        raise DataError(
            f"{store.location}: {len(found)} rows were set aside, which the teacher could not compute ({shown[0]}); "
            "data.on_bad_row=skip leaves them out"
        )
    good = np.array([name not in aside for name in names])
    if say is None:
        return good
    say(f"left out {len(found)} rows that the teacher could not compute")
    for line in shown:
        say(f"  {line}")
    if len(found) > len(shown):
        say(f"  ... and {len(found) - len(shown)} more: `raybrew store show {store.location}`")
    return good

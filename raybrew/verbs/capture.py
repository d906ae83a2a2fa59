"""capture: run the teacher once over all training rows and keep what students will ask for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raybrew.config import Experiment, StudentConfig
from raybrew.errors import ConfigError, DataError
from raybrew.models.loading import ModelSource
from raybrew.models.students import empty_student
from raybrew.signals import LOGITS, Signal, parse_signal, sorted_signals
from raybrew.store.capture import CaptureProgress
from raybrew.store.capture import capture as capture_rows
from raybrew.store.reader import Store
from raybrew.store.storage import stores_root
from raybrew.verbs.job import objective_of
from raybrew.verbs.prepare import Say, check_teacher_labels, read_rows, task_of, teacher_source, units_of
from raybrew.verbs.reporter import QuietReporter, Reporter

__all__ = ["capture", "capture_table", "request_of", "store_root", "tokenizer_source", "usable_rows"]


def capture(experiment: Experiment, *, teacher_run: str | None = None, reporter: Reporter | None = None) -> Store:
    """The teacher's store for this experiment, with everything its objective and `store.signals` ask for.

    Rows, signals and whole stores that exist are not computed again; killed at any moment, the same call finishes the
    missing shards.
    """
    reporter = reporter or QuietReporter()
    teacher = teacher_source(experiment, teacher_run)
    rows = read_rows(experiment, teacher, reporter.say)
    check_teacher_labels(teacher, rows.labels)
    request = request_of(experiment, teacher, rows.labels.names) or (LOGITS,)
    student = tokenizer_source(experiment, teacher) if experiment.student != StudentConfig() else None
    units = units_of(experiment, rows.training, teacher, student)
    return capture_table(experiment, teacher, units, request, reporter)


def capture_table(
    experiment: Experiment, teacher: ModelSource, rows: pa.Table, request: Collection[Signal], reporter: Reporter
) -> Store:
    """The store with `request` for all of `rows`, computed where it lacks something.

    `rows` are units. Says which of them the teacher could not compute (`data.on_bad_row: skip`), or is a DataError that
    names them.
    """
    names = ", ".join(signal.name for signal in sorted_signals(request))
    update: Callable[[int, str], None] | None = None
    with contextlib.ExitStack() as stack:

        def show(progress: CaptureProgress) -> None:
            nonlocal update
            if update is None:  # the bar appears only if there is something to do
                title = f"capture {experiment.name} ({names})"
                update = stack.enter_context(reporter.bar(title, progress.total_rows, "rows"))
            if progress.note:
                reporter.say(progress.note)
            update(progress.done_rows, f"{progress.bytes_written / 2**20:.1f} MiB")

        store = capture_rows(
            rows,
            task_of(experiment),
            teacher,
            request,
            experiment.store,
            store_root(experiment),
            experiment.teacher.device,
            experiment.teacher.precision,
            show,
            experiment.data.on_bad_row == "skip",
        )
    usable_rows(experiment, store, rows, request, reporter.say)
    return store


def usable_rows(
    experiment: Experiment, store: Store, rows: pa.Table, request: Collection[Signal], say: Say | None = None
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
    if experiment.data.on_bad_row == "error":
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


def tokenizer_source(experiment: Experiment, teacher: ModelSource | None) -> ModelSource:
    """Where the student's tokenizer comes from: its own model, or the teacher's for a shape."""
    student = experiment.student
    if student.model is not None:
        return ModelSource(student.model, student.revision, student.trust_remote_code)
    if teacher is None:
        raise ConfigError("student.shape: needs teacher.model, whose architecture and vocabulary it takes")
    return teacher


def store_root(experiment: Experiment) -> str:
    """Folder or URL of all teacher stores."""
    return stores_root(experiment.store)


def request_of(experiment: Experiment, teacher: ModelSource, labels: tuple[str, ...]) -> tuple[Signal, ...]:
    """What the objective asks of the teacher, and `store.signals`; ConfigError for layers that do not exist."""
    config = empty_student(experiment.student, teacher, experiment.task.kind, labels).config
    wanted = {parse_signal(name) for name in experiment.store.signals}
    return sorted_signals(wanted | set(objective_of(experiment, config, teacher).teacher_request))

"""capture: run the teacher once over all training and evaluation rows and keep what students will ask for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raybrew.config import Experiment, StudentConfig
from raybrew.config.task_checks import WHY_LIVE
from raybrew.config.views import one_teacher, task_views
from raybrew.data.cautions import tell
from raybrew.distillers.ensemble import request_of_member
from raybrew.distillers.objective import Objective
from raybrew.errors import ConfigError, DataError
from raybrew.files import make_storage
from raybrew.models.devices import place_of_teacher
from raybrew.models.loading import ModelSource
from raybrew.models.students import empty_student
from raybrew.signals import LOGITS, Signal, parse_signal, sorted_signals
from raybrew.storage.open import stores_root
from raybrew.store.capture import CaptureProgress
from raybrew.store.capture import capture as capture_rows
from raybrew.store.find import captured_labels
from raybrew.store.reader import Store
from raybrew.tasks.base import Labels
from raybrew.verbs.choose import chosen_tasks, chosen_teachers, student_teacher, teacher_sources, weight_of
from raybrew.verbs.functions import check_functions
from raybrew.verbs.model_checks import renamed_outputs, unnamed_outputs, whose
from raybrew.verbs.objective import objective_of
from raybrew.verbs.prepare import Say, check_lengths, check_teacher_labels, data_key, read_rows, task_of
from raybrew.verbs.reporter import QuietReporter, Reporter
from raybrew.verbs.units import captured_units
from raybrew.verbs.vocabulary import student_tokens

__all__ = ["capture", "capture_all", "capture_table", "likely_objective", "request_of", "store_root", "usable_rows"]


def capture(
    experiment: Experiment,
    *,
    task: str | None = None,
    teacher: str | None = None,
    teacher_run: str | None = None,
    reporter: Reporter | None = None,
    verify: bool = False,
) -> Store:
    """The teacher's store for this experiment, with everything its objective and `store.signals` ask for.

    `task` and `teacher` choose one of several. Rows, signals and whole stores that exist are not computed again; killed
    at any moment, the same call finishes the missing shards. `verify` also reads all that is stored and computes anew
    what is damaged.
    """
    found = capture_all(
        experiment, task=task, teacher=teacher, teacher_run=teacher_run, reporter=reporter, verify=verify
    )
    if len(found) > 1:
        raise ConfigError(f"teacher: this experiment has several, choose one or capture_all: {', '.join(found)}")
    return next(iter(found.values()))


def capture_all(
    experiment: Experiment,
    *,
    task: str | None = None,
    teacher: str | None = None,
    teacher_run: str | None = None,
    reporter: Reporter | None = None,
    verify: bool = False,
) -> dict[str, Store]:
    """The stores of all teachers of all tasks, or of those that `task` and `teacher` choose, by name."""
    reporter = reporter or QuietReporter()
    check_functions(experiment, reporter.say)
    views = chosen_tasks(experiment, task)
    shape = student_teacher(experiment, teacher_run)
    student = _student_tokens(experiment, shape, teacher_run, reporter)
    found: dict[str, Store] = {}
    for name, view in views.items():
        if task_of(view).masking is not None:
            raise ConfigError(f"task.kind: masked_lm has nothing to capture: {WHY_LIVE}; distill runs the teacher live")
        sources = teacher_sources(view, teacher_run)
        chosen = chosen_teachers(list(sources), teacher)
        rows = read_rows(view, next(iter(sources.values()), None), reporter.say, key=data_key(name))
        request = request_of(view, sources, rows.labels.names, shape)
        asks = [each for each in sources if request_of_member(request, each, weight_of(view, each))]
        together = [*student, *(sources[each] for each in asks)]
        for member in chosen:
            source = sources[member]
            check_teacher_labels(source, rows.labels)
            one = one_teacher(view, member)
            asked = set(request_of_member(request, member, weight_of(view, member)))
            asked = {signal for signal in asked if signal.module is None}  # those are asked live
            asked |= {parse_signal(signal) for signal in experiment.store.signals}
            label = "/".join(part for part in (name, member) if part)
            if one.teacher.source == "live" and len(views) + len(sources) > 2:
                reporter.say(f"{label}: source is live, nothing to capture")
                continue
            check_lengths(view, rows, source, *together)
            units = captured_units(view, rows, source, *together).whole
            found[label] = capture_table(one, source, units, asked or {LOGITS}, rows.labels, reporter, label, verify)
            captured = captured_labels(found[label].storage)
            who = whose(name, member)
            tell(unnamed_outputs(who, source, rows.labels), reporter.say)
            tell(renamed_outputs(who, captured, rows.labels), reporter.say)
    if not found:
        raise ConfigError("teacher.model: required by this command; name a folder or a hub model")
    return found


def _student_tokens(
    experiment: Experiment, shape: ModelSource | None, teacher_run: str | None, reporter: Reporter
) -> list[ModelSource]:
    """The student's tokenizer, if there is a student: a trimmed one is made from the rows of all tasks."""
    if experiment.student == StudentConfig():
        return []
    tasks = []
    if experiment.student.vocabulary is not None:
        for view in task_views(experiment).values():
            teacher = next(iter(teacher_sources(view, teacher_run).values()), None)
            # What there is to say of them is said when they are read for the teacher.
            tasks.append((view, read_rows(view, teacher, lambda line: None).training))
    return [student_tokens(experiment, shape, tasks, reporter.say)]


def capture_table(
    experiment: Experiment,
    teacher: ModelSource,
    rows: pa.Table,
    request: Collection[Signal],
    labels: Labels,
    reporter: Reporter,
    label: str = "",
    verify: bool = False,
) -> Store:
    """The store with `request` for all of `rows`, computed where it lacks something. `label` tells several apart.

    `rows` are units. Says which of them the teacher could not compute (`data.on_bad_row: skip`), or is a DataError that
    names them.
    """
    names = ", ".join(signal.name for signal in sorted_signals(request))
    update: Callable[[int, str], None] | None = None
    if experiment.store.path is None:
        make_storage(Path(experiment.store.storage_path))
    given = experiment.teacher
    place = place_of_teacher(given.device, given.precision, experiment.store.launcher)
    with contextlib.ExitStack() as stack:

        def show(progress: CaptureProgress) -> None:
            nonlocal update
            if update is None:  # the bar appears only if there is something to do
                reporter.say(f"capture {label or experiment.name} on {place.text}")
                title = f"capture {label or experiment.name} ({names})"
                update = stack.enter_context(reporter.bar(title, progress.total_rows, task_of(experiment).unit_name))
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
            verify,
            reporter.say,
            labels.names if task_of(experiment).names_labels else (),
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


def store_root(experiment: Experiment) -> str:
    """Folder or URL of all teacher stores."""
    return stores_root(experiment.store)


def request_of(
    view: Experiment,
    teachers: Mapping[str | None, ModelSource],
    labels: tuple[str, ...],
    shape: ModelSource | None,
) -> tuple[Signal, ...]:
    """What the objective of an experiment of one task asks of its teachers; ConfigError for layers that do not exist.

    `shape` is the teacher that a student's shape is made after.
    """
    return sorted_signals(likely_objective(view, teachers, labels, shape).teacher_union)


def likely_objective(
    view: Experiment,
    teachers: Mapping[str | None, ModelSource],
    labels: tuple[str, ...],
    shape: ModelSource | None,
) -> Objective:
    """The objective of an experiment of one task, before its student is made."""
    config = empty_student(view.student, shape, view.task.kind, labels).config
    return objective_of(view, config, teachers)

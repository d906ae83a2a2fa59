"""capture: run the teacher once over all training rows and keep what students will ask for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from pathlib import Path

import pyarrow as pa

from raybrew.config import Experiment
from raybrew.errors import ConfigError
from raybrew.models.loading import ModelSource
from raybrew.models.students import empty_student
from raybrew.signals import LOGITS, Signal, parse_signal, sorted_signals
from raybrew.store.capture import CaptureProgress
from raybrew.store.capture import capture as capture_rows
from raybrew.store.reader import Store
from raybrew.store.storage import is_remote
from raybrew.verbs.job import objective_of
from raybrew.verbs.prepare import check_teacher_labels, read_rows, task_of, teacher_source
from raybrew.verbs.reporter import QuietReporter, Reporter

__all__ = ["attention_in", "capture", "capture_table", "request_of", "store_root"]


def capture(
    experiment: Experiment, *, teacher_run: str | None = None, reporter: Reporter | None = None, verify: bool = False
) -> Store:
    """The teacher's store for this experiment, with everything its objective and `store.signals` ask for.

    Rows, signals and whole stores that exist are not computed again; killed at any moment, the same call finishes the
    missing shards. `verify` also reads all that is stored and computes anew what is damaged.
    """
    reporter = reporter or QuietReporter()
    teacher = teacher_source(experiment, teacher_run)
    rows = read_rows(experiment, teacher, reporter.say)
    check_teacher_labels(teacher, rows.labels)
    request = set(request_of(experiment, teacher, rows.labels.names)) or {LOGITS}
    attention = attention_in(request)
    if attention:
        raise ConfigError(
            f"distill.matches: {attention} cannot be captured, and a student that is matched with it runs the teacher "
            "live, so `raybrew distill` needs no capture; remove the attention matches to capture the rest"
        )
    return capture_table(experiment, teacher, rows.training, request, reporter, verify)


def capture_table(
    experiment: Experiment,
    teacher: ModelSource,
    rows: pa.Table,
    request: Collection[Signal],
    reporter: Reporter,
    verify: bool = False,
) -> Store:
    """The store with `request` for all of `rows`, computed where it lacks something (or is damaged: `verify`)."""
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

        return capture_rows(
            rows,
            task_of(experiment),
            teacher,
            request,
            experiment.store,
            store_root(experiment),
            experiment.teacher.device,
            experiment.teacher.precision,
            show,
            verify,
        )


def store_root(experiment: Experiment) -> str:
    """Folder or URL of all teacher stores."""
    given = experiment.store.path
    if given is not None and is_remote(given):
        return given.rstrip("/")
    return str(Path(given or Path(experiment.store.storage_path) / "store").absolute())


def request_of(experiment: Experiment, teacher: ModelSource, labels: tuple[str, ...]) -> tuple[Signal, ...]:
    """What the objective asks of the teacher, and `store.signals`; ConfigError for layers that do not exist."""
    config = empty_student(experiment.student, teacher, experiment.task.kind, labels).config
    wanted = {parse_signal(name) for name in experiment.store.signals}
    attention = attention_in(wanted)
    if attention:
        raise ConfigError(f"store.signals: {attention} cannot be captured; allowed: logits, hidden.NN")
    return sorted_signals(wanted | set(objective_of(experiment, config, teacher).teacher_request))


def attention_in(request: Collection[Signal]) -> str:
    """Names of the attention signals in `request`, which stores do not hold; empty if there are none."""
    return ", ".join(signal.name for signal in sorted_signals(request) if signal.kind not in ("logits", "hidden"))

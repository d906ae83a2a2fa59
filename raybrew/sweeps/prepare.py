"""Before trials start: every configuration against its models, one teacher pass for all, warm caches."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from raybrew.config import Experiment
from raybrew.config.loading import build_experiment
from raybrew.config.problems import Problem, raise_problems
from raybrew.config.space import apply_values, corners, show_value_of
from raybrew.config.sweep import SweepConfig
from raybrew.errors import ConfigError, RaybrewError
from raybrew.models.loading import ModelSource
from raybrew.signals import Signal, sorted_signals
from raybrew.store.reader import describe
from raybrew.sweeps.jobs import canonical
from raybrew.sweeps.search import build_source
from raybrew.verbs.capture import capture, capture_table, request_of
from raybrew.verbs.evaluate import evaluate_teacher
from raybrew.verbs.prepare import Rows, check_teacher_labels, encode, read_rows, teacher_source
from raybrew.verbs.reporter import Reporter

__all__ = ["TeacherPass", "control_epochs", "likely_values", "prepare_teachers"]

#: Configurations that `random` is going to draw are known; more than this many are not drawn twice for it.
_MANY = 2000


@dataclasses.dataclass(frozen=True)
class TeacherPass:
    """What one teacher was asked for, once, for the whole sweep."""

    teacher: str
    rows: int
    computed: int
    signals: tuple[str, ...]
    seconds: float
    megabytes: float


def likely_values(sweep: SweepConfig, trials: int) -> list[dict[str, Any]]:
    """The configurations that will be tried where they are known beforehand, else the corners of the space."""
    if sweep.search.kind == "optuna" or trials > _MANY:
        return corners(sweep)
    source = build_source(sweep)
    known: set[str] = set()
    found: list[dict[str, Any]] = []
    while len(found) < trials and (values := source.next(known)) is not None:
        known.add(canonical(values))
        found.append(values)
    return found


def prepare_teachers(base: Experiment, trials: int, reporter: Reporter) -> list[TeacherPass]:
    """Check all configurations against the models; run each teacher once for what all of them ask.

    ConfigError lists every configuration that its models make impossible.
    """
    assert base.sweep is not None
    plain = base.plain()
    groups: dict[str, list[tuple[dict[str, Any], Experiment]]] = {}
    for values in likely_values(base.sweep, trials):
        try:
            experiment = build_experiment(apply_values(plain, values), check_files=False)
        except ConfigError:
            continue  # drawn between valid corners; the trial will say so
        parts = experiment.plain()
        key = canonical({name: parts[name] for name in ("teacher", "task", "data", "store")})
        groups.setdefault(key, []).append((values, experiment))
    passes: list[TeacherPass] = []
    problems: dict[str, Problem] = {}
    for members in groups.values():
        passes += _one_teacher(members, reporter, problems)
    raise_problems("sweep", list(problems.values()))
    return passes


def control_epochs(base: Experiment, reporter: Reporter) -> int:
    """Epochs in which a control takes as many steps on labelled rows as students take on all rows."""
    if base.data.unlabeled is None:
        return base.train.epochs
    teacher = teacher_source(base) if base.teacher.model is not None else None
    rows = read_rows(base, teacher, reporter.say)
    return max(1, round(base.train.epochs * (rows.num_labelled + rows.num_unlabeled) / rows.num_labelled))


def _one_teacher(
    members: Sequence[tuple[dict[str, Any], Experiment]], reporter: Reporter, problems: dict[str, Problem]
) -> list[TeacherPass]:
    first = members[0][1]
    if not first.teacher.given:
        return []
    if first.teacher.members:
        return [_several_teachers([experiment for _, experiment in members], reporter)]
    teacher = teacher_source(first)
    rows = read_rows(first, teacher, reporter.say)
    check_teacher_labels(teacher, rows.labels)
    union: set[Signal] = set()
    live, seen = False, set()
    for values, experiment in members:
        key = canonical(experiment.plain()["student"]) + canonical(experiment.plain()["distill"])
        if key in seen:
            continue
        seen.add(key)
        try:
            request = request_of(experiment, teacher, rows.labels.names)
        except RaybrewError as error:
            shown = ", ".join(f"{name}={show_value_of(value)}" for name, value in values.items())
            problems.setdefault(str(error), Problem("sweep.space", f"impossible with {shown}: {error}"))
            continue
        if experiment.teacher.source == "live" or any(signal.kind not in ("logits", "hidden") for signal in request):
            live = True
        else:
            union |= set(request)
    if problems:
        return []
    if live:
        reporter.say("some configurations run the teacher live in every step: see teacher.source and distill.matches")
    found = [_capture(first, teacher, rows, union, reporter)] if union else []
    if rows.evaluation is not None:
        evaluate_teacher(first, teacher, rows, reporter)
    for _, experiment in members[:1]:
        student = experiment.student
        tokens = teacher if student.model is None else ModelSource(student.model, student.revision)
        encode(experiment, rows.training, tokens)
        if rows.evaluation is not None:
            encode(experiment, rows.evaluation.table, tokens)
    return found


def _capture(
    experiment: Experiment, teacher: ModelSource, rows: Rows, union: set[Signal], reporter: Reporter
) -> TeacherPass:
    started, counted = time.monotonic(), _Counting(reporter)
    store = capture_table(experiment, teacher, rows.training, union, counted)
    signals = tuple(signal.name for signal in sorted_signals(union))
    seconds = round(time.monotonic() - started, 2)
    size = round(describe(store)["bytes"] / 1e6, 2)
    return TeacherPass(teacher.model, rows.training.num_rows, counted.total, signals, seconds, size)


def _several_teachers(experiments: Sequence[Experiment], reporter: Reporter) -> TeacherPass:
    """Stores of several teachers: what is there is not computed again, so each adds what it needs beyond the others."""
    started, counted = time.monotonic(), _Counting(reporter)
    done: set[str] = set()
    for experiment in experiments:
        key = canonical(experiment.plain()["student"]) + canonical(experiment.plain()["distill"]["matches"])
        if key not in done:
            done.add(key)
            capture(experiment, reporter=counted)
    names = ", ".join(experiments[0].teacher.members)
    return TeacherPass(names, counted.total, counted.total, (), round(time.monotonic() - started, 2), 0.0)


class _Counting:
    """Passes everything on, and notes how many rows a teacher had to read."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.total = 0

    def say(self, message: str) -> None:
        self.reporter.say(message)

    @contextmanager
    def bar(self, title: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
        self.total += total
        with self.reporter.bar(title, total, unit) as update:
            yield update

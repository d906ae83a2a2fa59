"""Before trials start: every configuration against its models, one teacher pass for all, warm caches."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from raybrew.config import Experiment
from raybrew.config.loading import build_experiment
from raybrew.config.problems import Problem, raise_problems
from raybrew.config.space import apply_values, corners, planned_trainings, show_value_of
from raybrew.config.sweep import SweepConfig
from raybrew.errors import ConfigError, RaybrewError
from raybrew.signals import Signal, sorted_signals
from raybrew.store.reader import Store, describe
from raybrew.sweeps.jobs import canonical
from raybrew.sweeps.search import build_source
from raybrew.verbs.capture import request_of
from raybrew.verbs.choose import student_teacher, teacher_sources
from raybrew.verbs.described import TaskPlan, described_teachers
from raybrew.verbs.functions import check_functions
from raybrew.verbs.inputs import Inputs
from raybrew.verbs.prepare import check_teacher_labels, encode, read_rows
from raybrew.verbs.reporter import Reporter
from raybrew.verbs.teachers import ready_teachers
from raybrew.verbs.vocabulary import student_tokens

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
    plain = base.written()
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
    count = sum(len(members) for members in groups.values())
    for members in groups.values():
        # One is what a training would be alone; several share what the teacher says.
        trainings = max(1, round(planned_trainings(base.sweep) * len(members) / count))
        passes += _one_teacher(members, reporter, problems, trainings)
    raise_problems("sweep", list(problems.values()))
    return passes


def control_epochs(base: Experiment, reporter: Reporter) -> int:
    """Epochs in which a control takes as many steps on labelled rows as students take on all rows."""
    if base.data.unlabeled is None and base.data.augment is None:
        return base.train.epochs
    sources = teacher_sources(base, None)
    rows = read_rows(base, next(iter(sources.values()), None), reporter.say)
    return max(1, round(base.train.epochs * (rows.num_labelled + rows.num_unlabeled) / rows.num_labelled))


def _one_teacher(
    members: Sequence[tuple[dict[str, Any], Experiment]],
    reporter: Reporter,
    problems: dict[str, Problem],
    trainings: int,
) -> list[TeacherPass]:
    """The pass of one `teacher` section, which may name several teachers, over one set of rows."""
    first = members[0][1]
    sources = teacher_sources(first, None)
    if not sources:
        return []
    rows = read_rows(first, next(iter(sources.values())), reporter.say)
    union: set[Signal] = set()
    seen: set[str] = set()
    say_once = functools.cache(reporter.say)
    for values, experiment in members:
        key = canonical(experiment.plain()["student"]) + canonical(experiment.plain()["distill"])
        if key in seen:
            continue
        seen.add(key)
        try:
            check_functions(experiment, say_once)
            union |= set(request_of(experiment, sources, rows.labels.names, student_teacher(experiment, None)))
        except RaybrewError as error:
            shown = ", ".join(f"{name}={show_value_of(value)}" for name, value in values.items())
            problems.setdefault(str(error), Problem("sweep.space", f"impossible with {shown}: {error}"))
    if problems or not union:
        return []
    for source in sources.values():
        check_teacher_labels(source, rows.labels)
    started, counted = time.monotonic(), _Counting(reporter)
    request = sorted_signals(union)
    tokens = student_tokens(first, student_teacher(first, None), [(first, rows.training)], reporter.say)
    teachers, ready, others = ready_teachers(first, sources, request, rows, tokens, counted, trainings=trainings)
    computed, seconds = counted.total, round(time.monotonic() - started, 2)
    # The rest warms caches that all trials share: encoded rows, and what the teacher itself reaches.
    inputs = Inputs(
        rows.labels,
        encode(first, ready.training, tokens, *others),
        encode(first, rows.evaluation.table, tokens) if rows.evaluation is not None else None,
        ready.num_labelled,
        ready.num_unlabeled,
        teachers,
    )
    described_teachers([TaskPlan(None, first, ready, sources, request)], [inputs], reporter)
    stores = [teacher for teacher in teachers if teacher.store is not None]
    if not stores:
        reporter.say("the teacher runs live in every step of every trial: teacher.source is live")
        return []
    size = sum(
        describe(Store.open(given.store, given.fingerprint, first.store.element_type))["bytes"]
        for given in stores
        if given.store is not None
    )
    names = ", ".join(given.name or given.source.model for given in stores)
    signals = tuple(signal.name for signal in request)
    return [TeacherPass(names, ready.training.num_rows, computed, signals, seconds, round(size / 1e6, 2))]


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

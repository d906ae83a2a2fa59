"""Before trials start: every configuration against its models, one teacher pass for all, warm caches."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from raybrew.config import Experiment, StoreConfig
from raybrew.config.judge import LOSS
from raybrew.config.loading import build_experiment
from raybrew.config.problems import raise_problems
from raybrew.config.space import apply_values, corners, planned_trainings
from raybrew.config.sweep import SweepConfig
from raybrew.config.sweep_judge import sweep_judge
from raybrew.config.values import show_value_of
from raybrew.data.multi_task import TaskSchedule
from raybrew.distillers.objective import Objective
from raybrew.errors import ConfigError, Problem, RaybrewError
from raybrew.models.cache import ModelCache
from raybrew.models.loading import ModelSource
from raybrew.pipeline.inputs import Inputs, TeacherInput
from raybrew.pipeline.objective import check_functions, likely_objective
from raybrew.pipeline.reporter import Reporter
from raybrew.pipeline.resolve import Resolved, ResolvedTask, resolve
from raybrew.pipeline.rows import Rows, check_teacher_labels, read_rows
from raybrew.pipeline.teacher_facts import TaskPlan, teacher_facts
from raybrew.pipeline.teachers import check_tokenizers, ready_teachers
from raybrew.pipeline.units import encode, evaluation_units, same_tokens
from raybrew.pipeline.vocabulary import student_tokens
from raybrew.signals import Signal, sorted_signals
from raybrew.store.listing import describe
from raybrew.store.plan import unique_rows
from raybrew.store.reader import Store
from raybrew.sweeps.controls import StepsOf
from raybrew.sweeps.jobs import canonical
from raybrew.sweeps.search import build_source
from raybrew.training.encoded import Epochs, build_order, evaluation_steps, total_steps

__all__ = ["TeacherPass", "control_steps", "likely_values", "prepare_teachers"]

#: Configurations that `random` is going to draw are known; more than this many are not drawn twice for it.
_MANY = 2000


@dataclasses.dataclass(frozen=True)
class TeacherPass:
    """What one teacher was asked for, once, for the whole sweep."""

    teacher: str
    rows: int
    """Rows, or windows of them, as the store counts."""
    computed: int
    signals: tuple[str, ...]
    seconds: float
    megabytes: float


def likely_values(sweep: SweepConfig, trials: int) -> list[dict[str, Any]]:
    """The configurations that will be tried where they are known beforehand, else the corners of the space."""
    if sweep.search.row.learns or trials > _MANY:
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
    groups: dict[tuple[str, str], list[_Member]] = {}
    models = ModelCache()
    for values in likely_values(base.sweep, trials):
        try:
            experiment = build_experiment(apply_values(plain, values), check_files=False)
        except ConfigError:
            continue  # drawn between valid corners; the trial will say so
        resolved = resolve(experiment, models=models)
        for task in resolved.tasks:
            parts = task.experiment.plain()
            key = canonical({section: parts[section] for section in ("teacher", "task", "data", "store")})
            groups.setdefault((task.name, key), []).append(_Member(values, resolved, task))
    passes: list[TeacherPass] = []
    say_once = functools.cache(reporter.say)  # groups read the same rows
    problems: dict[str, Problem] = {}
    judged_by: dict[str, dict[str, dict[str, Any]]] = {}
    by_loss = sweep_judge(base) == LOSS
    for (name, _), members in groups.items():
        # All trainings of a task divide among the groups, whose members share what the teacher says.
        count = sum(len(others) for (other, _), others in groups.items() if other == name)
        trainings = max(1, round(planned_trainings(base.sweep) * len(members) / count))
        losses = judged_by.setdefault(name, {}) if by_loss else None
        passes += _one_teacher(members, reporter, say_once, problems, trainings, losses)
        models.release()
    raise_problems("sweep", list(problems.values()))
    return passes


def control_steps() -> StepsOf:
    """A function that gives a control of fewer rows the steps and evaluations of its student.

    Without it more evaluations of a control, each after fewer steps, would choose its best checkpoint from more.
    """

    def steps_of(candidate: Experiment, control: Experiment) -> dict[str, Any]:
        theirs, own = _epochs_of(candidate), _epochs_of(control)
        train = candidate.train
        steps = total_steps(theirs, train)
        every = train.eval_steps
        if every is None:
            evaluations = evaluation_steps(theirs, train)
            every = theirs.first_step(train.eval_epochs or 1)
            if math.ceil(steps / every) != len(evaluations):  # epochs by tokens differ in length
                every = math.ceil(steps / len(evaluations))
        return {
            "train.epochs": own.epoch_of(steps - 1) + 1,
            "train.max_steps": steps,
            "train.eval_steps": every,
            "train.eval_epochs": None,
            "train.checkpoint_epochs": None,
        }

    return steps_of


def _epochs_of(experiment: Experiment) -> Epochs:
    """How the steps of a student's training divide into epochs. Says nothing of rows: `prepare_teachers` does."""

    def quiet(line: str) -> None:
        return None

    resolved = resolve(experiment)
    shape = resolved.shape
    read = []
    for task in resolved.tasks:
        rows = read_rows(task, task.first_source, quiet)
        request: frozenset[Signal] = frozenset()
        if task.teachers:
            request = likely_objective(task, rows.labels.names, shape).teacher_union
        read.append((task, rows.training, [teacher.source for teacher in task.teachers if teacher.asked(request)]))
    tokens = student_tokens(resolved, shape, [rows for _, rows, _ in read], quiet)
    orders = {
        task.name: build_order(encoded.lengths, experiment.train, encoded.folder)
        for task, rows, asked in read
        for encoded in [encode(task, rows, tokens, *asked)]
    }
    if resolved.tau is None:
        return next(iter(orders.values()))
    return TaskSchedule(orders, resolved.tau, experiment.train.seed)


class _Member(NamedTuple):
    """A configuration that may be tried, and one of its tasks."""

    values: dict[str, Any]
    resolved: Resolved
    task: ResolvedTask


def _one_teacher(
    members: Sequence[_Member],
    reporter: Reporter,
    say_once: Callable[[str], None],
    problems: dict[str, Problem],
    trainings: int,
    judged_by: dict[str, dict[str, Any]] | None,
) -> list[TeacherPass]:
    """The pass of one `teacher` section, which may name several teachers, over one set of rows of a task.

    `judged_by` are the evaluation losses that judge students of this task so far, each with values that have it; None
    where a metric does.
    """
    task = members[0].task
    rows = read_rows(task, task.first_source, say_once)
    if not task.teachers:
        return []
    sources = task.sources
    asked = _asked(members, rows, reporter, problems, judged_by)
    union = set().union(*asked.values())
    if judged_by is not None and len(judged_by) > 1:
        problems.setdefault("losses", _unlike(judged_by))
    if problems or not union:
        return []
    for source in sources.values():
        check_teacher_labels(source, rows.labels)
    started, counted = time.monotonic(), _Counting(reporter)
    stores: dict[str, TeacherInput] = {}
    num_units = 0
    # Those of the teachers' tokens come first and ask for all: what others ask is then there, but for rows that their
    # tokens cut into other units.
    alike = {tokens: all(same_tokens(task.models, tokens, source) for source in sources.values()) for tokens in asked}
    for tokens in sorted(asked, key=lambda tokens: not alike[tokens]):
        request = sorted_signals(union if alike[tokens] else asked[tokens])
        if not request:
            continue
        teachers, ready, others = ready_teachers(task, request, rows, tokens, counted, trainings)
        # The rest warms caches that all trials share: encoded rows, and what the teacher itself reaches.
        inputs = _inputs(task, ready, tokens, others, teachers)
        stores |= {teacher.store: teacher for teacher in teachers if teacher.store is not None}
        if not num_units:
            teacher_facts([TaskPlan(task, ready, request)], [inputs], reporter)
            num_units = _num_units(inputs)
    if not stores:
        reporter.say("the teacher runs live in every step of every trial: teacher.source is live")
        return []
    seconds, size = round(time.monotonic() - started, 2), _bytes_of(stores, task.store)
    names = ", ".join(dict.fromkeys(given.label or given.source.model for given in stores.values()))
    signals = tuple(signal.name for signal in sorted_signals(union))
    named = f"{task.label}: {names}" if task.label else names
    return [TeacherPass(named, num_units, counted.total, signals, seconds, round(size / 1e6, 2))]


def _inputs(
    task: ResolvedTask,
    rows: Rows,
    tokens: ModelSource,
    others: Sequence[ModelSource],
    teachers: tuple[TeacherInput, ...],
) -> Inputs:
    evaluation, fitted = evaluation_units(task, rows, tokens, others)
    training = encode(task, rows.training, tokens, *others)
    numbers = rows.num_labelled, rows.num_unlabeled
    return Inputs(rows.labels, training, evaluation, *numbers, teachers, task.name, task.label, fitted=fitted)


def _bytes_of(stores: Mapping[str, TeacherInput], config: StoreConfig) -> int:
    opened = (
        Store.open(location, given.fingerprint, config.element_type, forms=config.forms)
        for location, given in stores.items()
    )
    return sum(describe(store)["bytes"] for store in opened)


def _num_units(inputs: Inputs) -> int:
    """Different units of training and evaluation rows."""
    ids = [part.ids for part in (inputs.training, inputs.compared) if part is not None]
    return len(unique_rows(np.concatenate(ids)))


def _asked(
    members: Sequence[_Member],
    rows: Rows,
    reporter: Reporter,
    problems: dict[str, Problem],
    judged_by: dict[str, dict[str, Any]] | None,
) -> dict[ModelSource, set[Signal]]:
    """What students ask of the teachers, by the tokenizer of the student. Notes impossible ones in `problems`."""
    found: dict[ModelSource, set[Signal]] = {}
    seen: set[str] = set()
    tokens_of: dict[str, ModelSource] = {}
    say_once = functools.cache(reporter.say)
    for values, resolved, task in members:
        parts = task.experiment.plain()
        student = canonical(parts["student"])
        key = student + canonical(parts["distill"])
        if key in seen:
            continue
        seen.add(key)
        try:
            check_functions(resolved, say_once)
            shape = resolved.shape
            objective = likely_objective(task, rows.labels.names, shape)
            request = sorted_signals(objective.teacher_union)
            if student not in tokens_of:
                tokens_of[student] = student_tokens(resolved, shape, _rows_of_all(resolved, task, rows), say_once)
            tokens = tokens_of[student]
            for teacher in task.teachers:
                wanted = teacher.asked(request)
                if wanted:
                    check_tokenizers(task, teacher, tokens, wanted)
        except RaybrewError as error:
            problems.setdefault(str(error), Problem("sweep.space", f"impossible with {_shown(values)}: {error}"))
            continue
        found.setdefault(tokens, set()).update(request)
        if judged_by is not None:
            judged_by.setdefault(_loss_in_words(task, objective), values)
    return found


def _unlike(judged_by: Mapping[str, Mapping[str, Any]]) -> Problem:
    """That evaluation losses of several kinds cannot be ranked."""
    shown = [f"{loss} with {_shown(values)}" for loss, values in list(judged_by.items())[:2]]
    text = (
        "no configuration trains the task's head, so each is judged by its evaluation loss, but losses of different "
        f"terms, weights or teachers cannot be ranked: {', and '.join(shown)}; leave them as they are, or give a last "
        "stage with kd_weight or hard_label_weight"
    )
    return Problem("sweep.space", text)


def _loss_in_words(task: ResolvedTask, objective: Objective) -> str:
    """The loss that judges a student whose head is not trained; equal where such losses may be compared."""
    last = objective.stages[-1]
    words = [f"{term.name} x {term.weight * (term.schedule(1.0) if term.schedule else 1.0):g}" for term in last.terms]
    heads = {match.relation_heads for match in task.distill.parts[-1].matches} - {None}
    words += [f"({count} relation heads)" for count in sorted(heads, key=str)]
    return f"{' + '.join(words)} of {task.teacher.model or ', '.join(task.teacher.members)}"


def _shown(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={show_value_of(value)}" for name, value in values.items())


def _rows_of_all(resolved: Resolved, known: ResolvedTask, rows: Rows) -> list[pa.Table]:
    """The training rows of each task, as far as the student's tokens depend on them."""
    if resolved.experiment.student.vocabulary is None:
        return []
    return [
        rows.training if task.name == known.name else read_rows(task, task.first_source, lambda line: None).training
        for task in resolved.tasks
    ]


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

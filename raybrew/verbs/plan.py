"""plan: what capture and training will take, before anything runs, from the config and a short probe of the models."""

from __future__ import annotations

import functools
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from raybrew.config import Experiment
from raybrew.config.controls import planned_controls
from raybrew.config.kinds import task_spec
from raybrew.config.space import planned_trainings
from raybrew.config.task import WHY_LIVE
from raybrew.config.views import one_teacher, task_views, teacher_views
from raybrew.data.tables import taken
from raybrew.distillers.ensemble import request_of_member
from raybrew.errors import ConfigError, RunError
from raybrew.models.devices import pick_device, pick_precision
from raybrew.models.forward import forward
from raybrew.models.loading import ModelSource, load_model, load_tokenizer
from raybrew.models.students import new_model
from raybrew.signals import LOGITS, Signal, parse_signal, sorted_signals
from raybrew.store.compute import Teacher
from raybrew.store.forms.base import Forms
from raybrew.training.optim import Precision
from raybrew.training.run_folder import RunFolder
from raybrew.verbs.amounts import Sizes, free_bytes, padded_tokens, sizes_of_store, token_columns
from raybrew.verbs.capture import request_of, store_root
from raybrew.verbs.choose import view_of_student_teacher, weight_of
from raybrew.verbs.functions import check_functions
from raybrew.verbs.plan_finetune import finetune_plan, is_to_train
from raybrew.verbs.plan_student import likely_vocabulary, student_plan
from raybrew.verbs.plan_training import probe_inputs, together, training_plan
from raybrew.verbs.planned import FinetunePlan, Plan, StorePlan, StudentPlan, TrainingPlan
from raybrew.verbs.prepare import Rows, check_places, data_key, read_rows, task_of, teacher_source
from raybrew.verbs.reporter import QuietReporter, Reporter
from raybrew.verbs.units import CapturedUnits, captured_units

__all__ = ["Plan", "StorePlan", "StudentPlan", "TrainingPlan", "plan"]

#: A measurement goes on with more rows until it has lasted so long.
_PROBE_SECONDS = 1.5
_PROBE_ROWS = 1024


def plan(
    experiment: Experiment,
    *,
    trials: int | None = None,
    price_per_hour: float | None = None,
    reporter: Reporter | None = None,
) -> Plan:
    """What capturing and training `experiment` will take for `trials` trainings. Nothing is written.

    Without `trials`: those of its sweep, beside which its controls are counted, or one.

    A few seconds of the real teacher and student on this machine are measured; a teacher that is not fine-tuned yet is
    taken as its base model, which has the same speed and sizes. Raises ConfigError, DataError and ModelError.
    """
    controls = 0
    if trials is None:
        trials = planned_trainings(experiment.sweep) if experiment.sweep is not None else 1
        controls = planned_controls(experiment)
    if trials < 1:
        raise ConfigError(f"--trials: given {trials}; allowed: at least 1")
    reporter = reporter or QuietReporter()
    check_functions(experiment, reporter.say)
    has_student = experiment.student.model is not None or experiment.student.shape is not None
    owner = view_of_student_teacher(experiment)
    shape = None if owner is None else _trained_or_base(functools.partial(teacher_source, owner), owner)
    tasks = [_read(task, view, reporter) for task, view in task_views(experiment).items()]
    with tempfile.TemporaryDirectory(prefix="raybrew-plan-") as scratch:
        student, vocabulary = None, None
        if has_student:
            student, vocabulary = _student(experiment, shape, tasks, Path(scratch) / "vocabulary", reporter)
        stores, trainings = _measured(experiment, shape, tasks, vocabulary, has_student, reporter)
    finetunes = _finetunes(experiment, tasks, reporter)
    training = together(experiment, trainings) if trainings else None
    problems = [*_disk_problems(stores), *_machine_problems(experiment, bool(stores))]
    live_because = _live_because(experiment)
    inside = experiment.distill.trains_in_teacher
    return Plan(
        experiment.name,
        trials,
        tuple(stores),
        training,
        price_per_hour,
        tuple(problems),
        live_because,
        inside,
        student,
        finetunes,
        controls=controls,
    )


class _TaskRows(NamedTuple):
    """One task: its view, its teachers that exist, its rows."""

    name: str | None
    view: Experiment
    teachers: dict[str | None, ModelSource]
    rows: Rows


def _read(task: str | None, view: Experiment, reporter: Reporter) -> _TaskRows:
    sources = {
        name: _trained_or_base(functools.partial(teacher_source, one), one) for name, one in teacher_views(view).items()
    }
    given = {name: source for name, source in sources.items() if source is not None}
    return _TaskRows(
        task,
        view,
        given,
        read_rows(view, next(iter(given.values()), None), reporter.say, augment="estimate", key=data_key(task)),
    )


def _student(
    experiment: Experiment, shape: ModelSource | None, tasks: Sequence[_TaskRows], folder: Path, reporter: Reporter
) -> tuple[StudentPlan, Path | None]:
    """What the student is made of, and the folder of its vocabulary where that is trimmed."""
    vocabulary, read, given = None, 0, sum(task.rows.training.num_rows for task in tasks)
    if experiment.student.vocabulary is not None:
        reporter.say("counting the pieces of the rows ...")
        vocabulary = folder
        read = likely_vocabulary(experiment, shape, [(task.view, task.rows.training) for task in tasks], folder)
    labels = {task.name: task.rows.labels.names for task in tasks}
    teachers = {task.name: task.teachers for task in tasks}
    return student_plan(experiment, shape, labels, teachers, vocabulary, (read, given)), vocabulary


def _measured(
    experiment: Experiment,
    shape: ModelSource | None,
    tasks: Sequence[_TaskRows],
    vocabulary: Path | None,
    has_student: bool,
    reporter: Reporter,
) -> tuple[list[StorePlan], list[TrainingPlan]]:
    """A store for each teacher that is asked, and the training of each task."""
    stores: list[StorePlan] = []
    trainings: list[TrainingPlan] = []
    for task, view, given, rows in tasks:
        labels = rows.labels.names
        request = request_of(view, given, labels, shape) if given and has_student else ()
        for name, source in given.items():
            asked = set(request_of_member(request, name, weight_of(view, name))) if has_student else {LOGITS}
            asked = {signal for signal in asked if signal.module is None}  # those are asked live
            one = one_teacher(view, name)
            asked |= {parse_signal(signal) for signal in experiment.store.signals} if asked else set()
            if asked:
                reporter.say(f"measuring {source.model} ...")
                label = "/".join(part for part in (task, name) if part) or experiment.name
                units = captured_units(view, rows, source)
                stores.append(_store_plan(one, source, labels, units, sorted_signals(asked), label))
        if has_student:
            reporter.say("measuring the student ...")
            trainings.append(training_plan(view, shape, labels, rows.training, given, vocabulary))
    return stores, trainings


def _finetunes(experiment: Experiment, tasks: Sequence[_TaskRows], reporter: Reporter) -> tuple[FinetunePlan, ...]:
    """The teachers that are not trained yet; equal ones are trained once."""
    found: dict[Path, FinetunePlan] = {}
    for task, view, _, rows in tasks:
        for name, one in teacher_views(view).items():
            run = RunFolder.of(one, "finetune").path if is_to_train(one) else None
            if run is not None and run not in found:
                reporter.say(f"measuring the fine-tuning of {one.teacher.model} ...")
                label = "/".join(part for part in (task, name) if part) or experiment.name
                labelled = rows.training.slice(0, rows.num_labelled)
                found[run] = finetune_plan(one, rows.labels.names, labelled, label)
    return tuple(found.values())


def _live_because(experiment: Experiment) -> str | None:
    if not all(task_spec(view.task.kind).stored for view in task_views(experiment).values()):
        return WHY_LIVE
    matches = [match for part in experiment.distill.parts for match in part.matches if match.weight > 0]
    modules = any(match.student_module is not None for match in matches)
    return "distill.matches compares modules, whose outputs no store holds" if modules else None


def _trained_or_base(find: Callable[[], ModelSource | None], view: Experiment) -> ModelSource | None:
    try:
        return find()
    except RunError:
        teacher = view.teacher
        if teacher.model is None:
            raise
        return ModelSource(teacher.model, teacher.revision, teacher.trust_remote_code)


def _store_plan(
    one: Experiment,
    source: ModelSource,
    labels: tuple[str, ...],
    units: CapturedUnits,
    request: tuple[Signal, ...],
    label: str,
) -> StorePlan:
    device = pick_device(one.teacher.device, "teacher.device")
    random = one.teacher.finetune is not None and one.teacher.finetune.init == "random"
    build = functools.partial(new_model, seed=0) if random else load_model
    model: nn.Module = build(source, one.task.kind, labels)
    if task_of(one).masking is not None:
        return _live_plan(one, source, model, units.training, request, label)
    sizes = sizes_of_store(one, source, units.whole, request, len(labels))
    check_places(sizes.longest, source)
    teacher = Teacher(
        model.to(device).eval(),
        load_tokenizer(source),
        task_of(one),
        device,
        pick_precision(one.teacher.precision, device),
        # Speed is measured in a type in which nothing of an untrained head overflows.
        Forms("float32", one.store.forms),
        one.store.batch_tokens,
    )
    rate = _teacher_rate(teacher, units.whole, request) / sizes.padding
    return StorePlan(
        label,
        source.model,
        store_root(one),
        sizes.amounts.rows,
        sizes.amounts.tokens,
        sizes.longest,
        max(1, math.ceil(sizes.amounts.rows / one.store.rows_per_shard)),
        one.store.element_type,
        sizes.bytes,
        sizes.total,
        free_bytes(one),
        rate,
        sizes.amounts.tokens / rate,
        one.store.actors[1] if one.store.actors is not None else _actors_here(one, device),
        device.type,
        task_of(one).unit_name,
    )


def _actors_here(one: Experiment, device: torch.device) -> int:
    """Teacher actors that this machine has GPUs or CPUs for."""
    room = torch.cuda.device_count() if device.type == "cuda" else (os.cpu_count() or 1) // one.store.cpus_per_actor
    return max(1, int(room))


def _live_plan(
    one: Experiment, source: ModelSource, model: nn.Module, units: pa.Table, request: tuple[Signal, ...], label: str
) -> StorePlan:
    """A pass of a teacher that reads hidden tokens in every step: nothing of it is kept."""
    device = pick_device(one.train.device)
    sample = token_columns(task_of(one), load_tokenizer(source), units)
    check_places(int(sample.lengths.max(initial=0)), source)
    lengths = np.sort(sample.lengths)[:: max(1, len(sample.lengths) // _PROBE_ROWS)]
    batch_size = one.train.micro_batch_size or one.train.batch_size
    batches = [lengths[start : start + batch_size] for start in range(0, len(lengths), batch_size)]
    rng = np.random.default_rng(0)
    model.to(device).eval()
    tokens, began = 0, time.perf_counter()
    precision = Precision(pick_precision(one.teacher.precision, device), device)
    with torch.inference_mode(), precision.autocast():
        for number, place in enumerate([0, *rng.permutation(len(batches)).tolist()]):
            if number == 1:  # the first was for warming up
                tokens, began = 0, time.perf_counter()
            forward(model, probe_inputs(model, batches[place], task_of(one), device), request)
            tokens += int(batches[place].sum())
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number and time.perf_counter() - began > _PROBE_SECONDS:
                break
    rate = tokens / (time.perf_counter() - began)
    total = int(sample.lengths.mean() * sample.rows)
    return StorePlan(
        label,
        source.model,
        "nowhere: the teacher runs live",
        sample.rows,
        total,
        int(sample.lengths.max(initial=0)),
        0,
        one.store.element_type,
        {},
        0,
        None,
        rate,
        total / rate,
        1,
        device.type,
        task_of(one).unit_name,
    )


def _teacher_rate(teacher: Teacher, units: pa.Table, request: tuple[Signal, ...]) -> float:
    """Tokens per second through the teacher, padding included."""
    rng = np.random.default_rng(0)
    chosen = taken(units, rng.permutation(units.num_rows)[:_PROBE_ROWS])
    examples = teacher.encode(chosen, aside={})
    lengths = np.array([len(tokens) for tokens in examples.column("input_ids").to_pylist()], np.int32)
    examples, lengths = examples.filter(pa.array(lengths > 0)), lengths[lengths > 0]
    teacher.compute(examples.slice(0, 16), request)
    count = min(32, examples.num_rows)
    while True:
        start = time.perf_counter()
        teacher.compute(examples.slice(0, count), request)
        seconds = time.perf_counter() - start
        if seconds >= _PROBE_SECONDS / 2 or count >= examples.num_rows:
            return padded_tokens(lengths[:count], teacher.batch_tokens) / seconds
        count = min(examples.num_rows, 2 * count)


def _disk_problems(stores: list[StorePlan]) -> list[str]:
    return [
        f"{store.label}: {Sizes.text(store.total_bytes)} are needed, {Sizes.text(store.free_bytes or 0)} are free "
        f"for {store.location}"
        for store in stores
        if not store.fits
    ]


def _machine_problems(experiment: Experiment, captures: bool) -> list[str]:
    """What this machine lacks; a cluster that is joined by RAY_ADDRESS is asked when it is used."""
    if os.environ.get("RAY_ADDRESS"):
        return []
    cpus, problems = os.cpu_count() or 1, []
    store, train = experiment.store, experiment.train
    if captures and store.launcher != "local" and store.fewest_actors * store.cpus_per_actor > cpus:
        problems.append(
            f"store.actors, store.cpus_per_actor: {store.fewest_actors} actors of {store.cpus_per_actor:g} CPUs at "
            f"least, {cpus} CPUs here"
        )
    fewest = train.worker_range[0]
    if train.launcher != "local" and fewest > 1 and fewest * train.cpus_per_worker > cpus:
        problems.append(
            f"train.workers, train.cpus_per_worker: {fewest} workers of {train.cpus_per_worker:g} CPUs, "
            f"{cpus} CPUs here"
        )
    if train.device == "cuda" and fewest > torch.cuda.device_count():
        problems.append(f"train.workers: {fewest} workers on GPUs, {torch.cuda.device_count()} GPUs here")
    return problems

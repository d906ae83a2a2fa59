"""plan: what capture and training will take, before anything runs, from the config and a short probe of the models."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn

from raybrew.config import Experiment, MultiTaskConfig
from raybrew.config.distill import TheseusConfig
from raybrew.config.space import planned_trainings
from raybrew.config.stages import stage_ends
from raybrew.config.task_checks import WHY_LIVE
from raybrew.config.views import one_teacher, task_views, teacher_views
from raybrew.data.sampler import Order
from raybrew.distillers.ensemble import request_of_member
from raybrew.errors import ConfigError, RunError
from raybrew.models.forward import MODEL_INPUTS, forward
from raybrew.models.loading import ModelSource, load_model, load_tokenizer, pick_device, pick_precision
from raybrew.models.students import build_student, new_model
from raybrew.models.theseus import Hybrid
from raybrew.signals import LOGITS, Signal, parse_signal, sorted_signals
from raybrew.store.compute import Teacher
from raybrew.tasks.base import Task
from raybrew.training.encoded import build_order, total_steps
from raybrew.training.optim import build_optimizer
from raybrew.training.precision import Precision
from raybrew.verbs.amounts import Sizes, free_bytes, padded_tokens, sizes_of_store, token_columns
from raybrew.verbs.capture import request_of, store_root
from raybrew.verbs.choose import view_of_student_teacher, weight_of
from raybrew.verbs.functions import check_functions
from raybrew.verbs.objective import objective_of
from raybrew.verbs.planned import Plan, StorePlan, TrainingPlan
from raybrew.verbs.prepare import read_rows, task_of, teacher_source, units_of
from raybrew.verbs.reporter import QuietReporter, Reporter
from raybrew.verbs.vocabulary import tokenizer_source

__all__ = ["Plan", "StorePlan", "TrainingPlan", "plan"]

#: A measurement goes on with more rows until it has lasted so long.
_PROBE_SECONDS = 1.5
_PROBE_ROWS = 1024
_PROBE_STEPS = 6


def plan(
    experiment: Experiment,
    *,
    trials: int | None = None,
    price_per_hour: float | None = None,
    reporter: Reporter | None = None,
) -> Plan:
    """What capturing and training `experiment` will take for `trials` trainings. Nothing is written.

    Without `trials`: those of its sweep, controls left aside, or one.

    A few seconds of the real teacher and student on this machine are measured; a teacher that is not fine-tuned yet is
    taken as its base model, which has the same speed and sizes. Raises ConfigError, DataError and ModelError.
    """
    if trials is None:
        trials = planned_trainings(experiment.sweep) if experiment.sweep is not None else 1
    if trials < 1:
        raise ConfigError(f"--trials: given {trials}; allowed: at least 1")
    reporter = reporter or QuietReporter()
    check_functions(experiment, reporter.say)
    has_student = experiment.student.model is not None or experiment.student.shape is not None
    stores: list[StorePlan] = []
    trainings: list[TrainingPlan] = []
    owner = view_of_student_teacher(experiment)
    shape = None if owner is None else _trained_or_base(functools.partial(teacher_source, owner), owner)
    for task, view in task_views(experiment).items():
        sources = {
            name: _trained_or_base(functools.partial(teacher_source, one), one)
            for name, one in teacher_views(view).items()
        }
        given = {name: source for name, source in sources.items() if source is not None}
        rows = read_rows(view, next(iter(given.values()), None), reporter.say, augment="estimate")
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
                units = units_of(view, rows.training, source)
                stores.append(_store_plan(one, source, labels, units, sorted_signals(asked), label))
        if has_student:
            reporter.say("measuring the student ...")
            trainings.append(_training_plan(view, shape, labels, rows.training, given))
    training = _together(experiment, trainings) if trainings else None
    problems = [*_disk_problems(stores), *_machine_problems(experiment, bool(stores))]
    live_because = _live_because(experiment)
    inside = experiment.distill.trains_in_teacher
    return Plan(experiment.name, trials, tuple(stores), training, price_per_hour, tuple(problems), live_because, inside)


def _live_because(experiment: Experiment) -> str | None:
    if experiment.task.kind == "masked_lm":
        return WHY_LIVE
    matches = [match for part in experiment.distill.parts for match in part.matches if match.weight > 0]
    if any(match.student_module is not None for match in matches):
        return "distill.matches compares modules, whose outputs no store holds"
    return None


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
    units: pa.Table,
    request: tuple[Signal, ...],
    label: str,
) -> StorePlan:
    device = pick_device(one.teacher.device, "teacher.device")
    random = one.teacher.finetune is not None and one.teacher.finetune.init == "random"
    build = functools.partial(new_model, seed=0) if random else load_model
    model: nn.Module = build(source, one.task.kind, labels)
    if task_of(one).masking is not None:
        return _live_plan(one, source, model, units, request, label)
    sizes = sizes_of_store(one, source, units, request, len(labels))
    teacher = Teacher(
        model.to(device).eval(),
        load_tokenizer(source),
        task_of(one),
        device,
        pick_precision(one.teacher.precision, device),
        # Speed is measured in a type in which nothing of an untrained head overflows.
        "float32",
        one.store.batch_tokens,
    )
    rate = _teacher_rate(teacher, units, request) / sizes.padding
    location = store_root(one)
    return StorePlan(
        label,
        source.model,
        location,
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
        one.store.actors[1],
        device.type,
        task_of(one).unit_name,
    )


def _live_plan(
    one: Experiment, source: ModelSource, model: nn.Module, units: pa.Table, request: tuple[Signal, ...], label: str
) -> StorePlan:
    """A pass of a teacher that reads hidden tokens in every step: nothing of it is kept."""
    device = pick_device(one.train.device)
    sample = token_columns(task_of(one), load_tokenizer(source), units)
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
            forward(model, _probe_inputs(model, batches[place], task_of(one), device), request)
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


def _probe_inputs(
    model: Any, lengths: npt.NDArray[np.int32], task: Task, device: torch.device, has_items: bool = True
) -> dict[str, torch.Tensor]:
    """Inputs of rows of these lengths; their content does not matter to how long a model takes."""
    mask = torch.from_numpy(np.arange(lengths.max()) < lengths[:, None]).long().to(device)
    inputs = {name: mask if name == "attention_mask" else torch.zeros_like(mask) for name in MODEL_INPUTS}
    if getattr(model.config, "type_vocab_size", 0) < 1:
        inputs.pop("token_type_ids")
    if has_items:
        share = 1.0 if task.masking is None else task.masking.rate
        inputs["items"] = torch.zeros_like(mask)[:, : max(1, round(share * mask.shape[1]))]
    return inputs


def _teacher_rate(teacher: Teacher, units: pa.Table, request: tuple[Signal, ...]) -> float:
    """Tokens per second through the teacher, padding included."""
    rng = np.random.default_rng(0)
    chosen = units.take(rng.permutation(units.num_rows)[:_PROBE_ROWS])
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


def _training_plan(
    view: Experiment,
    shape: ModelSource | None,
    labels: tuple[str, ...],
    rows: pa.Table,
    sources: dict[str | None, ModelSource],
) -> TrainingPlan:
    config = view.train
    chosen, finetune = view.student, view.teacher.finetune
    if chosen.shape is not None and finetune is not None and finetune.init == "random":
        chosen = chosen.model_copy(update={"init": "random"})  # the teacher may have no weights yet
    student = build_student(chosen, shape, view.task.kind, labels, config.seed)
    objective = objective_of(view, student.model.config, sources)
    units = units_of(view, rows, tokenizer_source(view, shape))
    sample = token_columns(task_of(view), student.tokenizer, units)
    device = pick_device(config.device)
    lengths = sample.lengths if sample.whole else np.resize(sample.lengths, sample.rows)
    order = build_order(lengths, config)
    steps = total_steps(order, config)
    # Stages ask the student for different things; the mean over all steps is what one takes.
    ends = stage_ends(view.distill.stages, steps)
    seconds = 0.0
    for stage, losses, start, end in zip(objective.stages, view.distill.parts, (0, *ends[:-1]), ends, strict=True):
        wanted = stage.student_request or frozenset({LOGITS})
        run = None if losses.theseus is None else _hybrid(view, student.model, sources[None], losses.theseus, device)
        one = _step_seconds(view, student.model, order, wanted, lengths, sample.items is not None, device, run)
        seconds += one * (end - start) / steps
    workers = config.worker_range[1]
    epochs = steps / max(1, order.first_step(1))
    unit_name = task_of(view).unit_name
    return TrainingPlan(units.num_rows, epochs, steps, seconds, steps * seconds, workers, device.type, unit_name)


def _step_seconds(
    view: Experiment,
    student: Any,
    order: Order,
    wanted: frozenset[Signal],
    lengths: npt.NDArray[np.int32],
    has_items: bool,
    device: torch.device,
    run: Callable[..., Any] | None = None,
) -> float:
    """Seconds of forward, backward and optimizer over one global batch, the mean over batches of all lengths."""
    config = view.train
    model = student.to(device).train()
    precision = Precision(pick_precision(config.precision, device), device)
    optimizer = build_optimizer([model], config)
    batches = order.batches(0)
    picked = [batches[round(place)] for place in np.linspace(0, len(batches) - 1, min(_PROBE_STEPS, len(batches)))]
    size = config.micro_batch_size or config.batch_size
    total = 0.0
    for number, batch in enumerate([picked[0], *picked]):  # the first is for warming up
        start = time.perf_counter()
        for first in range(0, len(batch), size):
            part = lengths[batch[first : first + size]]
            inputs = _probe_inputs(model, part, task_of(view), device, has_items)
            with precision.autocast():
                outputs = forward(model, inputs, wanted, run)
                loss = torch.stack([output.float().square().mean() for output in outputs.values()]).sum()
            torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number:
            total += time.perf_counter() - start
    return total / len(picked)


def _hybrid(
    view: Experiment, student: Any, teacher: ModelSource, config: TheseusConfig, device: torch.device
) -> Hybrid:
    """The student in its teacher, as many of its layers in use as on average over the stage."""
    model: Any = load_model(teacher, view.task.kind)
    hybrid = Hybrid(student.to(device), model.to(device))
    share = 1 - config.full_at * (1 - config.start) / 2
    count = max(1, round(share * hybrid.num_modules))
    hybrid.choose([index < count for index in range(hybrid.num_modules)])
    return hybrid


def _together(experiment: Experiment, trainings: list[TrainingPlan]) -> TrainingPlan:
    """All tasks in one training: their steps one after another."""
    if not isinstance(experiment.task, MultiTaskConfig):
        return trainings[0]
    steps = sum(each.steps for each in trainings)
    seconds = sum(each.worker_seconds for each in trainings)
    return dataclasses.replace(
        trainings[0],
        rows=sum(each.rows for each in trainings),
        steps=steps,
        step_seconds=seconds / max(1, steps),
        worker_seconds=seconds,
    )


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
    if captures and store.launcher != "local" and store.actors[0] * store.cpus_per_actor > cpus:
        problems.append(
            f"store.actors, store.cpus_per_actor: {store.actors[0]} actors of {store.cpus_per_actor:g} CPUs at least, "
            f"{cpus} CPUs here"
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

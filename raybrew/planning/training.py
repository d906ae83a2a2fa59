"""Trainings in a plan, of the student and of teachers that are not fine-tuned yet: steps, and the time of one here."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from raybrew.config.stages import stage_ends
from raybrew.config.terms import TheseusConfig
from raybrew.data.sampler import Order
from raybrew.errors import RunError
from raybrew.models.composite import Hybrid
from raybrew.models.devices import pick_device, pick_precision
from raybrew.models.forward import MODEL_INPUTS, forward
from raybrew.models.loading import ModelSource, load_model
from raybrew.models.students import build_student, new_model
from raybrew.pipeline.objective import objective_of
from raybrew.pipeline.resolve import ResolvedTask, ResolvedTeacher, base_of, finetune_config, label_of, teacher_source
from raybrew.pipeline.sizes import token_columns
from raybrew.pipeline.units import check_places, units_of
from raybrew.pipeline.vocabulary import tokenizer_source
from raybrew.planning.result import FinetunePlan, TrainingPlan
from raybrew.signals import LOGITS, Signal
from raybrew.tasks.base import Task
from raybrew.training.encoded import build_order, check_room, total_steps
from raybrew.training.optim import Precision, build_optimizer

__all__ = ["finetune_plan", "is_to_train", "probe_inputs", "together", "training_plan"]

_PROBE_STEPS = 6


def training_plan(
    task: ResolvedTask,
    shape: ModelSource | None,
    labels: tuple[str, ...],
    rows: pa.Table,
    vocabulary: Path | None,
) -> TrainingPlan:
    """The student's training on the rows of a task."""
    config = task.train
    chosen, finetune = task.student, task.teacher.finetune
    if chosen.shape is not None and finetune is not None and finetune.init == "random":
        chosen = chosen.model_copy(update={"init": "random"})  # the teacher may have no weights yet
    student = build_student(chosen, shape, task.kind, labels, config.seed, vocabulary, models=task.models)
    objective = objective_of(task, student.model.config, task.sources)
    source = tokenizer_source(task.student, shape)
    units = units_of(task, rows, source)
    sample = token_columns(task.task, student.tokenizer, units)
    check_places(int(sample.lengths.max(initial=0)), source)
    device = pick_device(config.device)
    lengths = sample.lengths if sample.whole else np.resize(sample.lengths, sample.rows)
    order = build_order(lengths, config)
    steps = total_steps(order, config)
    # Stages ask the student for different things; the mean over all steps is what one takes.
    ends = stage_ends(task.distill.stages, steps)
    seconds = 0.0
    for stage, losses, start, end in zip(objective.stages, task.distill.parts, (0, *ends[:-1]), ends, strict=True):
        wanted = stage.student_request or frozenset({LOGITS})
        run = None if losses.theseus is None else _hybrid(task, student.model, losses.theseus, device)
        one = step_seconds(
            task, student.model, order, wanted, lengths, has_items=sample.items is not None, device=device, run=run
        )
        seconds += one * (end - start) / steps
    workers = config.worker_range[1]
    epochs = steps / max(1, order.first_step(1))
    unit_name = task.task.unit_name
    return TrainingPlan(units.num_rows, epochs, steps, seconds, steps * seconds, workers, device.type, unit_name)


def is_to_train(teacher: ResolvedTeacher) -> bool:
    """Whether it is still to be fine-tuned."""
    if teacher.config.finetune is None:
        return False
    try:
        teacher_source(teacher.experiment)
    except RunError:
        return True
    return False


def finetune_plan(
    resolved: ResolvedTask, teacher: ResolvedTeacher, labels: tuple[str, ...], rows: pa.Table
) -> FinetunePlan:
    """The training of a teacher on the labelled `rows`, timed on this machine."""
    config = finetune_config(teacher.experiment)
    source = base_of(teacher.config)
    task = resolved.alone(teacher).changed(train=config)
    build = functools.partial(new_model, seed=config.seed) if config.init == "random" else load_model
    units = units_of(task, rows, source)
    sample = token_columns(task.task, task.models.tokenizer(source), units)
    check_places(int(sample.lengths.max(initial=0)), source)
    lengths = sample.lengths if sample.whole else np.resize(sample.lengths, sample.rows)
    order = build_order(lengths, config)
    steps, device = total_steps(order, config), pick_device(config.device)
    model = build(source, task.kind, labels)
    wanted, has_items = frozenset({LOGITS}), sample.items is not None
    seconds = step_seconds(task, model, order, wanted, lengths, has_items=has_items, device=device)
    return FinetunePlan(
        label_of(task.label, teacher.label) or task.experiment.name,
        source.model,
        TrainingPlan(
            units.num_rows,
            steps / max(1, order.first_step(1)),
            steps,
            seconds,
            steps * seconds,
            config.worker_range[1],
            device.type,
            task.task.unit_name,
        ),
    )


def step_seconds(
    task: ResolvedTask,
    student: Any,
    order: Order,
    wanted: frozenset[Signal],
    lengths: npt.NDArray[np.int32],
    *,
    has_items: bool,
    device: torch.device,
    run: Callable[..., Any] | None = None,
) -> float:
    """Seconds of forward, backward and optimizer over one global batch, the mean over batches of all lengths."""
    config = task.train
    check_room(student, lengths, config, task.task.masking, device, config.worker_range[1])
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
            inputs = probe_inputs(model, part, task.task, device, has_items)
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


def _hybrid(task: ResolvedTask, student: Any, config: TheseusConfig, device: torch.device) -> Hybrid:
    """The student in its teacher, as many of its layers in use as on average over the stage."""
    model: Any = task.models.model(task.teachers[0].source, task.kind)
    hybrid = Hybrid(student.to(device), model.to(device))
    share = 1 - config.full_at * (1 - config.start) / 2
    count = max(1, round(share * hybrid.num_modules))
    hybrid.choose([index < count for index in range(hybrid.num_modules)])
    return hybrid


def together(trainings: list[TrainingPlan]) -> TrainingPlan:
    """All tasks in one training: their steps one after another."""
    if len(trainings) == 1:
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


def probe_inputs(
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

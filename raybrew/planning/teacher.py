"""The teacher's pass in a plan: rows, tokens and bytes of its store, and its speed, measured on this machine."""

from __future__ import annotations

import functools
import math
import os
import time

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from raybrew.config import StoreConfig
from raybrew.data.tables import taken
from raybrew.models.devices import pick_device, pick_precision
from raybrew.models.forward import forward
from raybrew.models.loading import load_model
from raybrew.models.students import new_model
from raybrew.pipeline.resolve import ResolvedTask, ResolvedTeacher, label_of
from raybrew.pipeline.sizes import free_bytes, padded_tokens, sizes_of_store, token_columns
from raybrew.pipeline.units import CapturedUnits, check_places
from raybrew.planning.result import StorePlan
from raybrew.planning.training import probe_inputs
from raybrew.signals import Signal
from raybrew.store.compute import Teacher
from raybrew.store.forms.base import Forms
from raybrew.training.optim import Precision

__all__ = ["store_plan"]

#: A measurement goes on with more rows until it has lasted so long.
_PROBE_SECONDS = 1.5
_PROBE_ROWS = 1024


def store_plan(
    task: ResolvedTask,
    teacher: ResolvedTeacher,
    labels: tuple[str, ...],
    units: CapturedUnits,
    request: tuple[Signal, ...],
) -> StorePlan:
    """The pass of a teacher over the units of a task, timed on this machine."""
    source, config, store = teacher.source, teacher.config, task.store
    device = pick_device(config.device, "teacher.device")
    random = config.finetune is not None and config.finetune.init == "random"
    build = functools.partial(new_model, seed=0) if random else load_model
    model: nn.Module = build(source, task.kind, labels)
    label = label_of(task.label, teacher.label) or task.experiment.name
    if task.task.masking is not None:
        return _live_plan(task, teacher, model, units.training, request, label)
    sizes = sizes_of_store(task, teacher, units.whole, request, len(labels))
    check_places(sizes.longest, source)
    measured = Teacher(
        model.to(device).eval(),
        task.models.tokenizer(source),
        task.task,
        device,
        pick_precision(config.precision, device),
        # Speed is measured in a type in which nothing of an untrained head overflows.
        Forms("float32", store.forms),
        store.batch_tokens,
    )
    rate = _teacher_rate(measured, units.whole, request) / sizes.padding
    return StorePlan(
        label,
        source.model,
        task.store_root,
        sizes.amounts.rows,
        sizes.amounts.tokens,
        sizes.longest,
        max(1, math.ceil(sizes.amounts.rows / store.rows_per_shard)),
        store.element_type,
        sizes.bytes,
        sizes.total,
        free_bytes(task),
        rate,
        sizes.amounts.tokens / rate,
        store.actors[1] if store.actors is not None else _actors_here(store, device),
        device.type,
        task.task.unit_name,
    )


def _actors_here(store: StoreConfig, device: torch.device) -> int:
    """Teacher actors that this machine has GPUs or CPUs for."""
    room = torch.cuda.device_count() if device.type == "cuda" else (os.cpu_count() or 1) // store.cpus_per_actor
    return max(1, int(room))


def _live_plan(
    task: ResolvedTask,
    teacher: ResolvedTeacher,
    model: nn.Module,
    units: pa.Table,
    request: tuple[Signal, ...],
    label: str,
) -> StorePlan:
    """A pass of a teacher that reads hidden tokens in every step: nothing of it is kept."""
    source, train = teacher.source, task.train
    device = pick_device(train.device)
    sample = token_columns(task.task, task.models.tokenizer(source), units)
    check_places(int(sample.lengths.max(initial=0)), source)
    lengths = np.sort(sample.lengths)[:: max(1, len(sample.lengths) // _PROBE_ROWS)]
    batch_size = train.micro_batch_size or train.batch_size
    batches = [lengths[start : start + batch_size] for start in range(0, len(lengths), batch_size)]
    rng = np.random.default_rng(0)
    model.to(device).eval()
    tokens, began = 0, time.perf_counter()
    precision = Precision(pick_precision(teacher.config.precision, device), device)
    with torch.inference_mode(), precision.autocast():
        for number, place in enumerate([0, *rng.permutation(len(batches)).tolist()]):
            if number == 1:  # the first was for warming up
                tokens, began = 0, time.perf_counter()
            forward(model, probe_inputs(model, batches[place], task.task, device), request)
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
        task.store.element_type,
        {},
        0,
        None,
        rate,
        total / rate,
        1,
        device.type,
        task.task.unit_name,
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

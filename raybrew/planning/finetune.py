"""The teachers of a plan that are not fine-tuned yet: the steps and the time of that training."""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa

from raybrew.errors import RunError
from raybrew.models.devices import pick_device
from raybrew.models.loading import load_model
from raybrew.models.students import new_model
from raybrew.pipeline.resolve import ResolvedTask, ResolvedTeacher, base_of, finetune_config, label_of, teacher_source
from raybrew.pipeline.sizes import token_columns
from raybrew.pipeline.units import check_places, units_of
from raybrew.planning.result import FinetunePlan, TrainingPlan
from raybrew.planning.training import step_seconds
from raybrew.signals import LOGITS
from raybrew.training.encoded import build_order, total_steps

__all__ = ["finetune_plan", "is_to_train"]


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

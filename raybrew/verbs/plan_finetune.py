"""The teachers of a plan that are not fine-tuned yet: the steps and the time of that training."""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa

from raybrew.config import Experiment
from raybrew.errors import RunError
from raybrew.models.devices import pick_device
from raybrew.models.loading import ModelSource, load_model, load_tokenizer
from raybrew.models.students import new_model
from raybrew.signals import LOGITS
from raybrew.training.encoded import build_order, total_steps
from raybrew.verbs.amounts import token_columns
from raybrew.verbs.plan_training import step_seconds
from raybrew.verbs.planned import FinetunePlan, TrainingPlan
from raybrew.verbs.prepare import check_places, finetune_config, task_of, teacher_source, units_of

__all__ = ["finetune_plan", "is_to_train"]


def is_to_train(one: Experiment) -> bool:
    """Whether the only teacher of `one` is still to be fine-tuned."""
    if one.teacher.finetune is None:
        return False
    try:
        teacher_source(one)
    except RunError:
        return True
    return False


def finetune_plan(one: Experiment, labels: tuple[str, ...], rows: pa.Table, label: str) -> FinetunePlan:
    """The training of the teacher of `one` on the labelled `rows`, timed on this machine."""
    config, teacher = finetune_config(one), one.teacher
    source = ModelSource(str(teacher.model), teacher.revision, teacher.trust_remote_code)
    view = one.model_copy(update={"train": config})
    build = functools.partial(new_model, seed=config.seed) if config.init == "random" else load_model
    units = units_of(view, rows, source)
    sample = token_columns(task_of(view), load_tokenizer(source), units)
    check_places(int(sample.lengths.max(initial=0)), source)
    lengths = sample.lengths if sample.whole else np.resize(sample.lengths, sample.rows)
    order = build_order(lengths, config)
    steps, device = total_steps(order, config), pick_device(config.device)
    model = build(source, view.task.kind, labels)
    seconds = step_seconds(view, model, order, frozenset({LOGITS}), lengths, sample.items is not None, device)
    return FinetunePlan(
        label,
        source.model,
        TrainingPlan(
            units.num_rows,
            steps / max(1, order.first_step(1)),
            steps,
            seconds,
            steps * seconds,
            config.worker_range[1],
            device.type,
            task_of(view).unit_name,
        ),
    )

"""Student and teachers timed in turn, from their configs: weights do not change how long a model takes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from raybrew.models.latency import Timings, measure_in_turn
from raybrew.models.loading import ModelSource, load_config, max_tokens
from raybrew.models.students import random_model
from raybrew.pipeline.inputs import Inputs
from raybrew.training.optim import Precision

__all__ = [
    "TimedModel",
    "latency_facts",
    "student_latency",
    "time_in_turn",
    "time_student",
    "timed_inputs",
    "typical_tokens",
]

#: Names of student and teacher in a round of the two.
_STUDENT, _TEACHER = "student", "teacher"


@dataclasses.dataclass(frozen=True)
class TimedModel:
    """A model of a kind of task, known by the config of `source`. Its weights need not exist."""

    source: ModelSource
    kind: str

    def build(self) -> PreTrainedModel:
        return random_model(load_config(self.source), self.kind, self.source.trust_remote_code)


def time_in_turn(
    models: Mapping[str, Sequence[TimedModel]],
    tokens: int,
    device: torch.device,
    precision: str,
    budget_seconds: float = 10.0,
) -> Timings:
    """`measure_in_turn` of models with random weights, on `tokens` tokens or as many as all models can take.

    Several models under one name, such as the teachers of an average, take the time of all.
    """
    limits = [max_tokens(load_config(model.source)) for group in models.values() for model in group]
    return measure_in_turn(
        {name: functools.partial(_build, group) for name, group in models.items()},
        length=min([tokens, *(limit for limit in limits if limit is not None)]),
        device=device,
        precision=precision,
        autocast=Precision(precision, device).autocast,
        budget_seconds=budget_seconds,
    )


def _build(models: Sequence[TimedModel]) -> list[PreTrainedModel]:
    return [model.build() for model in models]


def time_student(
    student: ModelSource, inputs: Inputs, kind: str, device: torch.device, precision: str, *, alone: bool
) -> dict[str, Any]:
    """The `latency` of a run's summary: its model and, if the task has teachers, these, in the same round."""
    models = {_STUDENT: [TimedModel(student, kind)]}
    if inputs.all_teachers:
        models[_TEACHER] = [TimedModel(source, kind) for source in inputs.all_teachers]
    timings = time_in_turn(models, typical_tokens(inputs), device, precision)
    return latency_facts(timings, _STUDENT, _TEACHER, inputs.label, alone=alone)


def latency_facts(timings: Timings, student: str, teacher: str | None, task: str, *, alone: bool) -> dict[str, Any]:
    """The `latency` of a summary from a round in which student and teacher have these names.

    `alone`: no other trial of a sweep ran meanwhile. `task` is the label of the one whose models were timed.
    """
    return {
        **timings.conditions,
        "alone": alone,
        **({"task": task} if task else {}),
        "student": timings.milliseconds[student],
        "teacher": timings.milliseconds.get(teacher) if teacher is not None else None,
    }


def student_latency(latency: Mapping[str, Any] | None) -> dict[str, Any]:
    """The `latency_ms` of a summary: the student's part of its `latency`, for readers of older versions."""
    return {} if latency is None else {**latency["student"], "tokens": latency["tokens"]}


def timed_inputs(inputs: Sequence[Inputs]) -> Inputs:
    """The task whose models are timed: of several the first that has a teacher. Their encoder is the same."""
    return next((part for part in inputs if part.all_teachers), inputs[0])


def typical_tokens(inputs: Inputs) -> int:
    """The median length of the evaluation rows, or of the training rows if there are none."""
    rows = inputs.evaluation if inputs.evaluation is not None else inputs.training
    return max(2, int(sorted(rows.lengths.tolist())[rows.num_rows // 2]))

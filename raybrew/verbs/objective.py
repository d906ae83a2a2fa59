"""The objective of `distill` for one task: its matches resolved for the depths and widths of student and teachers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raybrew.config import DistillConfig, Experiment
from raybrew.distillers.matches import resolve_matches
from raybrew.distillers.objective import Objective, build_objective
from raybrew.models.loading import ModelSource, load_config
from raybrew.models.shapes import TeacherDims, dims_of
from raybrew.signals import PAIR_KINDS, Signal
from raybrew.verbs.prepare import task_of

__all__ = ["labels_only", "objective_of"]


def objective_of(view: Experiment, student_config: Any, teachers: Mapping[str | None, ModelSource]) -> Objective:
    """The objective of an experiment of one task; `teachers` are its teachers by name, a single one under None."""
    if not view.distill.compares_layers:
        return build_objective(view.distill, head=task_of(view).head)
    dims = {name: dims_of(load_config(source)) for name, source in teachers.items()}
    student = dims_of(student_config)
    depths = {name or "": found.layers for name, found in dims.items()}
    matches = resolve_matches(view.distill.matches, student.layers, depths)
    return build_objective(
        view.distill,
        matches,
        {match.student: _size(student, match.student) for match in matches},
        {match.teacher: _size(dims[match.teacher.teacher], match.teacher) for match in matches},
        seed=view.train.seed,
        teacher_heads={name: found.heads for name, found in dims.items()},
        head=task_of(view).head,
        dims=(student, dims[None]) if view.distill.emd is not None else None,
    )


def labels_only(distill: DistillConfig) -> DistillConfig:
    """What fine-tuning learns from."""
    return distill.model_copy(update={"kd_weight": 0.0, "hard_label_weight": 1.0, "matches": (), "emd": None})


def _size(dims: TeacherDims, signal: Signal) -> int:
    return dims.heads if signal.kind in PAIR_KINDS else dims.hidden

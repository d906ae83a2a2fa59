"""Trials before they run: an experiment of the space with one seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from raybrew.config import Experiment
from raybrew.config.loading import build_experiment
from raybrew.config.space import apply_values
from raybrew.records.trials import CANDIDATE, canonical

__all__ = ["Job", "canonical", "make_job", "shape_of"]


@dataclasses.dataclass(frozen=True)
class Job:
    """One trial: a run of `raybrew distill`, named by the hash of its configuration."""

    run: str
    role: str
    values: dict[str, Any]
    seed: int
    experiment: Experiment
    rerun: bool = False


def make_job(
    base: Experiment, values: Mapping[str, Any], seed: int, group: str, role: str = CANDIDATE, rerun: bool = False
) -> Job:
    """The trial of `values` with `train.seed`, under `group` in trackers. ConfigError if they do not go together."""
    plain = apply_values(base.written(), values)
    plain["train"]["seed"] = seed
    plain["tracking"] = base.tracking.grouped(group).model_dump(mode="json")
    experiment = build_experiment(plain, check_files=False)
    return Job(experiment.run_id("distill"), role, dict(values), seed, experiment, rerun)


def shape_of(job: Job) -> str:
    """Equal for trials whose students have the same architecture."""
    student = job.experiment.student
    return canonical({"model": student.model, "shape": student.model_dump(mode="json")["shape"]})

"""Trials before they run: an experiment of the space with one seed, and the controls that it is judged by."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from raybrew.config import Experiment
from raybrew.config.loading import build_experiment
from raybrew.config.space import apply_values
from raybrew.config.views import task_views
from raybrew.reports.sweeps import CANDIDATE, CONTROL, KD_ONLY

__all__ = ["LASTING", "Job", "canonical", "control_jobs", "make_job", "shape_of"]

#: Names of the built-in errors that mean the configuration is at fault: running it again would end the same way.
LASTING = ("ConfigError", "DataError", "LossError", "DivergenceError", "ModelError")

#: What a control does without, whatever its experiment says.
_ALONE: Mapping[str, Any] = {"method": None, "matches": [], "emd": None, "theseus": None, "stages": []}

#: Keys of `data` that a control has no use for.
_UNLABELED = ("unlabeled", "unlabeled_rows", "augment")


@dataclasses.dataclass(frozen=True)
class Job:
    """One trial: a run of `raybrew distill`, named by the hash of its configuration."""

    run: str
    role: str
    values: dict[str, Any]
    seed: int
    experiment: Experiment
    rerun: bool = False


def canonical(values: Mapping[str, Any]) -> str:
    """Equal for equal values."""
    return json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)


def make_job(
    base: Experiment, values: Mapping[str, Any], seed: int, group: str, role: str = CANDIDATE, rerun: bool = False
) -> Job:
    """The trial of `values` with `train.seed`; W&B puts it under `group`. ConfigError if they do not go together."""
    plain = apply_values(base.written(), values)
    plain["train"]["seed"] = seed
    wandb = plain["tracking"].get("wandb")
    if wandb is not None and wandb.get("group") is None:
        wandb["group"] = group
    experiment = build_experiment(plain, check_files=False)
    return Job(experiment.run_id("distill"), role, dict(values), seed, experiment, rerun)


def shape_of(job: Job) -> str:
    """Equal for trials whose students have the same architecture."""
    student = job.experiment.student
    return canonical({"model": student.model, "shape": student.model_dump(mode="json")["shape"]})


def control_jobs(base: Experiment, job: Job, group: str, epochs: int, num_seeds: int, rerun: bool = False) -> list[Job]:
    """The controls of the student of `job`: labels alone, and with unlabelled rows the teacher's logits alone.

    A control has no use for unlabelled rows, so it takes its steps from the labelled ones in `epochs` epochs. A student
    whose head is not trained has none: it is judged by a loss that a control does not have.
    """
    if not job.experiment.distill.trains_head:
        return []
    student = job.experiment.student.model_dump(mode="json")
    alone: dict[str, Any] = {
        "student": student,
        "distill": {**_ALONE, "kd_weight": 0.0, "hard_label_weight": 1.0},
        **{f"{place}data.{key}": None for place in _unlabeled_places(base) for key in _UNLABELED},
        "train.epochs": epochs,
    }
    seeds = range(base.train.seed, base.train.seed + num_seeds)
    found = [_control(base, alone, job, seed, group, CONTROL, rerun) for seed in seeds]
    if _unlabeled_places(base):
        teacher_alone = {
            "student": student,
            "distill": {
                **_ALONE,
                "temperature": base.distill.temperature,
                "kd_weight": base.distill.kd_weight or 1.0,
                "hard_label_weight": 0.0,
            },
        }
        found += [_control(base, teacher_alone, job, seed, group, KD_ONLY, rerun) for seed in seeds]
    return found


def _unlabeled_places(base: Experiment) -> list[str]:
    """What stands before the keys of `data` of each task that has unlabelled rows."""
    return [
        "" if name is None else f"task.tasks.{name}."
        for name, view in task_views(base).items()
        if view.data.unlabeled is not None or view.data.augment is not None
    ]


def _control(base: Experiment, values: dict[str, Any], job: Job, seed: int, group: str, role: str, rerun: bool) -> Job:
    made = make_job(base, values, seed, group, role, rerun)
    shown = {key: value for key, value in job.values.items() if key == "student" or key.startswith("student.")}
    return dataclasses.replace(made, values=shown)

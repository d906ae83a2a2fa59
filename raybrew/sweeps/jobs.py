"""Trials before they run: an experiment with one seed, the GPUs that it holds, and what is left to spend."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any, Protocol

from raybrew.config import Experiment
from raybrew.config.loading import build_experiment
from raybrew.config.space import apply_values
from raybrew.config.sweep import SweepConfig
from raybrew.models.devices import device_of_workers
from raybrew.records.trial_index import Trials
from raybrew.records.trials import CANDIDATE, canonical

__all__ = ["Job", "canonical", "gpus_of", "make_job", "over_budget", "shape_of", "spent"]


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


def gpus_of(experiment: Experiment, sweep: SweepConfig, cluster_gpus: float) -> float:
    """GPUs that a trial holds, those of all its workers together; 0: it trains on CPUs.

    ClusterError where each of several workers needs one and there are too few.
    """
    train, given = experiment.train, sweep.resources.gpus
    if train.worker_range[1] > 1:
        fewest, most = train.worker_range
        return float(most) if device_of_workers(train.device, fewest, cluster_gpus, "train") == "cuda" else 0.0
    if given is not None:
        return given
    return 1.0 if train.device == "cuda" or (train.device == "auto" and cluster_gpus) else 0.0


class Spending(Protocol):
    """What a conductor knows of the time that its sweep has taken."""

    sweep: SweepConfig
    trials: Trials
    running: dict[str, float]
    seconds_before: float
    began: float


def spent(sweep: Spending) -> dict[str, float]:
    """Minutes, GPU-hours, money and failures so far, over all sessions.

    GPU-hours and money are of the time of trials: all of it, also of parts that were interrupted, killed or failed.
    """
    now = time.time()
    trials = sweep.trials
    seconds, gpu_seconds = trials.seconds, trials.gpu_seconds
    for run, since in list(sweep.running.items()):  # another thread may ask
        seconds += now - since
        gpu_seconds += (now - since) * trials[run].gpus
    price = sweep.sweep.budget.price_per_hour
    return {
        "wall_minutes": (sweep.seconds_before + now - sweep.began) / 60,
        "gpu_hours": gpu_seconds / 3600,
        "money": seconds / 3600 * price if price is not None else 0.0,
        "failures": trials.counts["failed"],
    }


def over_budget(sweep: Spending) -> str | None:
    """Which limit is reached, in words; None while there is room."""
    budget, so_far = sweep.sweep.budget, spent(sweep)
    for name in ("wall_minutes", "gpu_hours", "money"):
        limit = getattr(budget, name)
        if limit is not None and so_far[name] >= limit:
            return f"sweep.budget.{name} ({limit:g}) is used up"
    if budget.failures is not None and so_far["failures"] > budget.failures:
        return f"{so_far['failures']:.0f} trials failed, sweep.budget.failures allows {budget.failures}"
    return None

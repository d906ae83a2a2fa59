"""What a sweep has cost, and whether that is more than it may."""

from __future__ import annotations

import time
from typing import Protocol

from raybrew.config import Experiment
from raybrew.config.sweep import SweepConfig
from raybrew.models.devices import device_of_workers
from raybrew.sweeps.trials import Trials

__all__ = ["gpus_of", "over_budget", "spent"]


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

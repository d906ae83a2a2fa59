"""The sweep as one run of Weights & Biases, beside those of its trials: leaderboard, cost and report."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from raybrew.config import Experiment
from raybrew.config.scrub import scrub
from raybrew.reports.sweep_tables import cost_of, leaderboard, trial_rows
from raybrew.reports.sweeps import load_sweep
from raybrew.tracking.wandb import WandbTracker

__all__ = ["mirror_summary"]

logger = logging.getLogger("raybrew.tracking")


def mirror_summary(experiment: Experiment, folder: Path) -> None:
    """Write the summary run of the sweep in `folder`, if W&B is asked for. It never stops a sweep.

    The same sweep continues its run, as trials do theirs. Everything in it is read from what is stored.
    """
    config = experiment.tracking.wandb
    if config is None:
        return
    record = load_sweep(folder)
    best = leaderboard(record).best
    if config.group is None:
        config = config.model_copy(update={"group": f"{record.name}-{record.sweep_id}"})
    tracker = WandbTracker(config, experiment=experiment.name, job_type="sweep")
    try:
        tracker.start(record.sweep_id, experiment.plain(), folder, resume=True)
        tracker.log_table("trials", trial_rows(record))
        tracker.log_table("leaderboard", [row.to_dict() for row in leaderboard(record).rows])
        if (folder / "report.html").is_file():
            tracker.log_page("report", folder / "report.html")
        cost = cost_of(record)
        values: dict[str, Any] = {
            "cost/wall_seconds": cost.wall_seconds,
            "cost/gpu_hours": cost.gpu_hours,
            "trials": cost.num_trials,
        }
        if best is not None and best.quality is not None:
            values |= {f"best/{record.metric}": best.quality.mean, "best/configuration": best.name}
        tracker.summarise(values)
        tracker.finish("done")
    except Exception as error:
        text = " ".join(str(scrub(str(error))).split())[:300]
        logger.warning("W&B has no summary of the sweep (the ledger has): %s: %s", type(error).__name__, text)

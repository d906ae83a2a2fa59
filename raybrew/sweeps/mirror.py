"""The sweep as one run of its trackers, beside those of its trials: leaderboard, cost and report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from raybrew.config import Experiment
from raybrew.records.sweeps import load_sweep
from raybrew.reports.evidence import SPLITS
from raybrew.reports.rows import Row
from raybrew.reports.sweep_tables import cost_of, leaderboard, trial_rows
from raybrew.tracking.trackers import build_trackers

__all__ = ["best_values", "mirror_summary"]


def mirror_summary(experiment: Experiment, folder: Path) -> None:
    """Write the summary run of the sweep in `folder` to the trackers that have such runs. None of them stops a sweep.

    The same sweep continues its run, as trials do theirs. Everything in it is read from what is stored.
    """
    if not any(one.spec.summaries for one in experiment.tracking.asked):
        return
    record = load_sweep(folder)
    board = leaderboard(record)
    best = board.best
    cost = cost_of(record)
    trackers = build_trackers(
        experiment.tracking.grouped(f"{record.name}-{record.sweep_id}"),
        experiment=experiment.name,
        job_type="sweep",
        summaries=True,
        otherwise="the ledger has the sweep",
    )
    trackers.start(record.sweep_id, experiment.plain(), folder, resume=True)
    trackers.log_table("trials", trial_rows(record))
    trackers.log_table("leaderboard", [row.to_dict() for row in board.rows])
    if (folder / "report.html").is_file():
        trackers.log_page("report", folder / "report.html")
    trackers.summarise(
        {
            **(best_values(best) if best is not None else {}),
            "tried": board.tried,
            "cost/wall_seconds": cost.wall_seconds,
            "cost/gpu_hours": cost.gpu_hours,
            "trials": cost.num_trials,
        }
    )
    trackers.finish("done")


def best_values(best: Row) -> dict[str, Any]:
    """The best configuration, first on the rows that chose nothing; `eval/` values were chosen on their rows."""
    values: dict[str, Any] = {}
    for split in SPLITS:
        stat, found = best.on(split), best.intervals[split]
        if stat is not None:
            values[f"{split}/{best.metric}"] = stat.mean
            if found is not None and found.low is not None:
                values |= {f"{split}/{best.metric}_low": found.low, f"{split}/{best.metric}_high": found.high}
    for name, difference in (
        ("over_control", best.gain.interval if best.gain is not None else None),
        ("over_teacher", best.over_teacher),
    ):
        if difference is not None:
            values[name] = difference.value
            values |= {f"{name}_low": difference.low, f"{name}_high": difference.high, f"{name}_p": difference.p}
    if best.quality is not None:
        values |= {f"best/{best.metric}": best.quality.mean, "best/configuration": best.name}
    return {key: value for key, value in values.items() if value is not None}

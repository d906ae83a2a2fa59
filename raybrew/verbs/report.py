"""report: one page about one or many runs, from what they left behind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from raybrew.errors import EnvironmentProblem
from raybrew.files import write_text
from raybrew.records.runs import load_runs
from raybrew.records.sweeps import find_sweeps, load_sweep
from raybrew.reports.html import comparison_of, write_report
from raybrew.reports.sweep_tables import trial_rows, trials_csv
from raybrew.reports.tables import csv_text, json_rows

__all__ = ["report"]


def report(paths: Sequence[str | Path], output: str | Path = "report.html", title: str | None = None) -> Path:
    """Write a self-contained page (and its table as .csv and .json beside it) about all runs in `paths`.

    A path is a run's folder, a sweep's, an experiment's, or a storage path. Trials of sweeps go to .trials.csv and
    .trials.json. Nothing is computed anew. RunError if there is no run.
    """
    runs = load_runs([Path(path) for path in paths])
    sweeps = [load_sweep(folder) for folder in find_sweeps(paths)]
    target = Path(output)
    names = sorted({run.experiment for run in runs})
    comparison = comparison_of(runs, sweeps)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_report(runs, target, title=title or ", ".join(names), sweeps=sweeps)
        write_text(target.with_suffix(".csv"), csv_text(comparison))
        write_text(target.with_suffix(".json"), json.dumps(json_rows(comparison), ensure_ascii=False, indent=2) + "\n")
        if sweeps:
            tables = {record.sweep_id: trial_rows(record, runs) for record in sweeps}
            trials = [{"sweep": name, **row} for name, rows in tables.items() for row in rows]
            write_text(target.with_suffix(".trials.csv"), "".join(trials_csv(rows) for rows in tables.values()))
            write_text(target.with_suffix(".trials.json"), json.dumps(trials, ensure_ascii=False, indent=2) + "\n")
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {target}: {error.strerror or error}") from error
    return target

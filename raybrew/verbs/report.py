"""report: one page about one or many runs, from what they left behind."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from raybrew.errors import EnvironmentProblem
from raybrew.reports.collect import load_runs
from raybrew.reports.compare import compare
from raybrew.reports.html import write_report
from raybrew.reports.tables import csv_text, json_rows

__all__ = ["report"]


def report(paths: Sequence[str | Path], output: str | Path = "report.html", title: str | None = None) -> Path:
    """Write a self-contained page (and its table as .csv and .json beside it) about all runs in `paths`.

    A path is a run's folder, an experiment's, or a storage path. Nothing is computed anew. RunError if there is no run.
    """
    runs = load_runs([Path(path) for path in paths])
    target = Path(output)
    names = sorted({run.experiment for run in runs})
    comparison = compare(runs)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_report([run.folder for run in runs], target, title=title or ", ".join(names))
        _write(target.with_suffix(".csv"), csv_text(comparison))
        _write(target.with_suffix(".json"), json.dumps(json_rows(comparison), ensure_ascii=False, indent=2) + "\n")
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {target}: {error.strerror or error}") from error
    return target


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)

"""raybrew show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raybrew.cli.options import AsJson
from raybrew.cli.terminal import print_json, write_line
from raybrew.config.loading import load_experiment
from raybrew.errors import RunError

__all__ = ["MOST_ROWS", "folder_of", "show"]

#: Rows of a table that people read; each further one costs intervals over its resampled rows.
MOST_ROWS = 50


def show(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH]...",
            help="Run folders, experiment folders, a storage path, or an experiment file for its runs. Default: runs.",
            show_default=False,
        ),
    ] = None,
    show_all: Annotated[
        bool, typer.Option("--all", help=f"Show every row; without it the first {MOST_ROWS} and their controls.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show runs in one table: quality, gain over the control, size, speed. Reads stored results only."""
    from raybrew.cli.summary import print_runs
    from raybrew.records.runs import load_runs
    from raybrew.reports.numbers import count_of
    from raybrew.reports.words import rows_text
    from raybrew.training.run_folder import RunFolder

    runs = load_runs([folder_of(path) for path in paths or ["runs"]])
    if as_json:
        from raybrew.reports.compare import compare
        from raybrew.reports.tables import json_rows

        print_json(json_rows(compare(runs)))
        return
    print_runs(runs, None if show_all else MOST_ROWS)
    if len(runs) == 1:
        run = runs[0]
        write_line(f"{run.folder}: {run.status}")
        if run.command:
            write_line(f"made by: {run.command}")
        chosen, rows = run.facts.chosen, run.facts.rows
        if chosen.checkpoints:
            evaluations = count_of(chosen.checkpoints, "evaluation")
            write_line(f"checkpoint: best of {evaluations} on {rows_text('eval', chosen.rows)}")
        if rows.augmented:
            write_line(f"rows: {rows.train} labelled, {rows.unlabeled} not ({rows.augmented} by data.augment)")
        if run.facts.pruned is not None:
            write_line(f"student: {RunFolder(run.folder, run.run_id).why_no_student()}")
        for event in run.events:
            write_line(f"  step {event.step}: {event.message}")


def folder_of(path: str) -> Path:
    """The folder whose runs are meant."""
    if not path.endswith((".yaml", ".yml")):
        return Path(path)
    experiment = load_experiment(path, check_files=False)
    folder = Path(experiment.store.storage_path) / experiment.name
    if not folder.is_dir():
        raise RunError(f"{path} has no runs yet: {folder.absolute()} does not exist")
    return folder

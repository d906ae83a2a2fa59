"""raybrew compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raybrew.cli.options import AsJson
from raybrew.cli.terminal import print_json, write_line

__all__ = ["compare"]


def compare(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Sweeps, runs, experiment folders or experiment files."),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write the page, with .csv and .json beside it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs and sweeps: the best of each sweep, then all runs in one table. Reads stored results only."""
    from raybrew.cli.show import folder_of
    from raybrew.cli.summary import print_bests, print_runs
    from raybrew.records.runs import load_runs
    from raybrew.records.sweeps import find_sweeps, load_sweep
    from raybrew.reports.compare import compare as compared
    from raybrew.reports.sweep_tables import leaderboard
    from raybrew.reports.tables import json_rows

    folders = [folder_of(path) for path in paths]
    sweeps = [load_sweep(folder) for folder in find_sweeps(folders)]
    runs = load_runs(folders)
    if as_json:
        bests = [(record, leaderboard(record).best) for record in sweeps]
        print_json(
            {
                "sweeps": [
                    {"path": str(record.folder), "best": best.to_dict() if best is not None else None}
                    for record, best in bests
                ],
                "rows": json_rows(compared(runs)),
            }
        )
    else:
        print_bests(sweeps)
        print_runs(runs)
    if output is not None:
        from raybrew.verbs.report import report

        write_line(f"report: {report(folders, output)}")

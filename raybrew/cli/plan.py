"""raybrew plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from raybrew.cli.options import AsJson, ExperimentFile, Overrides
from raybrew.cli.terminal import make_reporter, print_json, results
from raybrew.config.loading import load_experiment

if TYPE_CHECKING:
    from raybrew.planning.result import Plan

__all__ = ["plan"]


def plan(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    trials: Annotated[
        int | None,
        typer.Option("--trials", min=1, help="Trainings that read the store. Default: those of `sweep`, or one."),
    ] = None,
    price_per_hour: Annotated[
        float | None, typer.Option("--price-per-hour", min=0, help="Price of an hour of one device.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what capture and training will take, before anything runs: rows, bytes, time, price, store or live teacher.

    Measures the teacher and the student for a few seconds on this machine. Writes nothing.
    """
    config = load_experiment(experiment, overrides or ())

    from raybrew.verbs.plan import plan as verb

    found = verb(config, trials=trials, price_per_hour=price_per_hour, reporter=make_reporter())
    if as_json:
        print_json(found.plain())
    else:
        _print(found)


def _print(found: Plan) -> None:
    from rich.table import Table

    from raybrew.planning.result import plan_tables

    console = results()
    for title, rows in plan_tables(found):
        table = Table("", "", title=title, title_justify="left", title_style="bold", show_header=False)
        for name, value in rows:
            table.add_row(name, value)
        console.print(table, markup=False)
    for problem in found.problems:
        console.print(f"problem: {problem}", soft_wrap=True, markup=False)
    console.print(f"verdict: {found.verdict}", soft_wrap=True, markup=False)

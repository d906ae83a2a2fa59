"""raybrew demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raybrew.cli.options import AsJson
from raybrew.cli.terminal import make_reporter, print_json, write_line

__all__ = ["demo"]


def demo(
    folder: Annotated[Path, typer.Argument(help="Where data, models, runs and the report go.")] = Path("demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Students and controls to train.")] = 3,
    as_json: AsJson = False,
) -> None:
    """The main job on generated reviews: teacher, capture, students, controls without a teacher, a report.

    Offline, two to three minutes on two CPU cores. Run again, it continues or shows what is there.
    """
    from raybrew.cli.summary import print_runs
    from raybrew.demo.run import run_demo

    result = run_demo(folder, seeds, make_reporter())
    if as_json:
        print_json({"report": str(result.report), "rows": result.rows()})
        return
    print_runs(result.runs)
    write_line(f"report: {result.report.absolute()} (open it in a browser)")
    write_line(f"next:   look into {result.experiment}, change it, and `raybrew distill {result.experiment}`")

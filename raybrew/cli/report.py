"""raybrew report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raybrew.cli.terminal import write_line

__all__ = ["report"]


def report(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="Run folders, experiment folders, storage paths or experiment files."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The page; its table goes beside it as .csv and .json.")
    ] = Path("report.html"),
    title: Annotated[
        str | None, typer.Option("--title", help="Title of the page. Default: the experiments' names.")
    ] = None,
) -> None:
    """Write one self-contained HTML page that compares runs. Reads stored results only."""
    from raybrew.cli.show import folder_of
    from raybrew.verbs.report import report as verb

    write_line(f"report: {verb([folder_of(path) for path in paths], output, title)}")

"""How runs look on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from raybrew.cli.terminal import results, write_line
from raybrew.reports.collect import RunRecord, load_run
from raybrew.reports.compare import compare
from raybrew.reports.tables import caption_lines, comparison_table
from raybrew.verbs.result import RunResult

__all__ = ["print_run", "print_runs"]


def print_run(result: RunResult) -> None:
    """The outcome of one training run."""
    print_runs([load_run(result.path)])
    write_line(f"{'already done' if result.already_done else 'done'}: {_short(result.path)}")
    write_line(f"model:  {_short(result.student)}")
    if (result.path / "report.html").is_file():
        write_line(f"report: {_short(result.path / 'report.html')}")


def print_runs(runs: Sequence[RunRecord]) -> None:
    """One table of all runs."""
    console = results()
    comparison = compare(list(runs))
    console.print(comparison_table(comparison, console.width, plain=not sys.stdout.isatty()))
    for line in caption_lines(comparison):
        console.print(line, style="dim", markup=False)


def _short(path: Path) -> Path:
    """Relative to the current folder where that is shorter."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path

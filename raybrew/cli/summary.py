"""How runs look on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from raybrew.cli.terminal import results, write_line
from raybrew.records.runs import RunRecord, load_run
from raybrew.records.sweeps import SweepRecord
from raybrew.reports.compare import compare
from raybrew.reports.comparison import Comparison
from raybrew.reports.decision import decide
from raybrew.reports.sweep_tables import leaderboard
from raybrew.reports.tables import caption_lines, comparison_table
from raybrew.runs.result import RunResult

__all__ = ["print_bests", "print_comparison", "print_run", "print_runs", "short_path"]


def print_run(result: RunResult) -> None:
    """The outcome of one training run."""
    print_runs([load_run(result.path)])
    write_line(f"{'already done' if result.already_done else 'done'}: {short_path(result.path)}")
    write_line(f"model:  {short_path(result.student)}")
    if (result.path / "report.html").is_file():
        write_line(f"report: {short_path(result.path / 'report.html')}")


def print_runs(runs: Sequence[RunRecord], most: int | None = None) -> None:
    """One table of all runs, or of the `most` first rows of it."""
    comparison = compare(list(runs))
    shown = comparison if most is None else comparison.first(most)
    print_comparison(shown)
    if shown.left_out:
        write_line(f"{len(shown.rows)} of {len(comparison.rows)} rows are shown; --all shows all, --json lists all")


def print_bests(sweeps: Sequence[SweepRecord]) -> None:
    """One line per sweep: its best student."""
    for record in sweeps:
        headline = decide(leaderboard(record)).headline
        count = f"{len(record.trials_of('done'))} of {len(record.trials)} trials done"
        write_line(f"{short_path(record.folder)} ({count}): {headline}")


def print_comparison(comparison: Comparison) -> None:
    """A table with what limits it."""
    console = results()
    console.print(comparison_table(comparison, console.width, plain=not sys.stdout.isatty()))
    for line in caption_lines(comparison):
        console.print(line, style="dim", markup=False)


def short_path(path: Path) -> Path:
    """Relative to the current folder where that is shorter."""
    try:
        return path.relative_to(Path.cwd())
    except ValueError:
        return path

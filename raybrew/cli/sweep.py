"""raybrew sweep."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from raybrew.cli.options import AsJson, ExperimentFile, Overrides
from raybrew.cli.running import load_to_run
from raybrew.cli.terminal import errors, make_reporter, print_json, results, write_line

__all__ = ["sweep"]


def sweep(experiment: ExperimentFile, overrides: Overrides = None, as_json: AsJson = False) -> int:
    """Try many students on one teacher pass (Ray Tune) and recommend the best, with controls and a report.

    The same command continues a sweep that was stopped or killed. Exit code 5 if some trials failed.
    """
    config = load_to_run(experiment, overrides)

    from raybrew.cli.summary import print_comparison, short_path
    from raybrew.sweeps.run import sweep as verb

    result = verb(config, reporter=_reporter())
    if as_json:
        from raybrew.reports.sweep_tables import trial_rows
        from raybrew.reports.tables import json_rows

        best = result.leaderboard.best
        print_json(
            {
                "path": str(result.path),
                "best": best.to_dict() if best is not None else None,
                "rule": result.rule,
                "leaderboard": json_rows(result.leaderboard),
                "trials": trial_rows(result.record),
                "cost": result.cost(),
            }
        )
    else:
        from raybrew.reports.decision import decide

        print_comparison(result.leaderboard)
        decision = decide(result.leaderboard)
        for caution in decision.cautions:
            if caution not in result.leaderboard.notes:
                results().print(f"caution: {caution}", style="dim", markup=False, soft_wrap=True)
        results().print(decision.headline, style="bold", markup=False)
        for answer in decision.answers:
            results().print(f"{answer.question.lower()}: {answer.text}", markup=False, soft_wrap=True)
        write_line(f"{'already done' if result.already_done else 'done'}: {short_path(result.path)}")
        if (result.path / "best").is_dir():
            write_line(f"model:  {short_path(result.path / 'best')}")
        if result.report.is_file():
            write_line(f"report: {short_path(result.report)}")
    for trial in result.failed:
        write_line(f"raybrew: trial {trial.number} ({trial.label}) failed: {trial.error}", sys.stderr)
    return 5 if result.failed else 0


def _reporter() -> Any:
    from raybrew.sweeps.conductor import Conductor
    from raybrew.sweeps.progress import SweepReporter, live_table

    class Live(SweepReporter):
        """A table that is drawn anew while the sweep runs."""

        @contextmanager
        def follow(self, conductor: Conductor, slots: int) -> Iterator[Callable[[], None]]:
            from rich.live import Live as Drawn

            console = errors()

            def table() -> Any:
                return live_table(conductor, slots, console.width)

            with Drawn(table(), console=console, refresh_per_second=2, transient=True) as drawn:
                yield lambda: drawn.update(table())

    base = make_reporter()
    return Live(base) if sys.stderr.isatty() else SweepReporter(base)

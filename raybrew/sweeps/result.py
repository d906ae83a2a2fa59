"""What a sweep came to, read from what it left behind: in scripts, in notebooks, and as a run of Weights & Biases."""

from __future__ import annotations

import dataclasses
import html
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybrew.config import Experiment
from raybrew.errors import RunError
from raybrew.records.ranking import recommended
from raybrew.records.sweeps import SweepRecord, TrialRecord, cost_of, find_sweeps, load_sweep
from raybrew.reports.compare import ShownComparison
from raybrew.reports.decision import decide
from raybrew.reports.rows import Row
from raybrew.reports.statistics.evidence import SPLITS
from raybrew.reports.sweep_tables import leaderboard, rule_of, student_of_sweep, trial_rows
from raybrew.tracking.trackers import build_trackers

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

__all__ = ["BestStudent", "Sweep", "SweepResult", "best_values", "mirror_summary"]

logger = logging.getLogger("raybrew.tracking")


@dataclasses.dataclass(frozen=True)
class BestStudent:
    """The student that a sweep recommends."""

    values: dict[str, Any]
    """Its configuration in the space."""
    metric: str
    value: float
    """Mean over its seeds, without those that chose it to be run again (see `Sweep.rule`)."""
    spread: float | None
    """Standard deviation over these seeds; None for one."""
    gain: float | None
    """Over the same student trained without a teacher."""
    kept: float | None
    """Share of the teacher's quality."""
    parameters: int | None
    run: Path
    """Folder of the run whose student is recommended: its best seed on `data.eval`."""
    run_value: float
    """The metric of that run alone."""
    sweep: Path
    """Folder of the sweep."""

    @property
    def student(self) -> Path:
        """Hugging Face folder of the recommended student; RunError that says what to do if it is not there."""
        return student_of_sweep(self.sweep, self.run.name)

    def _repr_html_(self) -> str:
        """For notebooks."""
        from raybrew.config.values import show_value_of
        from raybrew.reports.notebook import html_table
        from raybrew.reports.numbers import metric_title, show_count, show_share, show_value

        rows = [[key, show_value_of(value)] for key, value in self.values.items()]
        rows.append([metric_title(self.metric), show_value(self.metric, self.value, self.spread)])
        rows += [["gain", show_value(self.metric, self.gain, signed=True)], ["kept", show_share(self.kept)]]
        try:
            folder = str(self.student)
        except RunError as error:
            folder = str(error)
        rows += [["parameters", show_count(self.parameters)], ["folder", folder]]
        return html_table("best student", rows)


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep from its stored results alone; needs neither Ray nor models. `Sweep.load(path)` makes one."""

    path: Path
    record: SweepRecord
    leaderboard: ShownComparison

    @classmethod
    def load(cls, path: str | Path) -> Sweep:
        """The sweep in the folder `path`, or the only one below it; RunError if there is none or several."""
        return cls(*_read(path))

    @property
    def trials(self) -> tuple[TrialRecord, ...]:
        return self.record.trials

    @property
    def failed(self) -> list[TrialRecord]:
        """Trials that failed, with their `error`."""
        return self.record.trials_of("failed")

    @property
    def report(self) -> Path:
        """The HTML page."""
        return self.path / "report.html"

    @property
    def rule(self) -> str:
        """How the best is chosen."""
        return rule_of(self.record.metric, bool(self.record.finalists()))

    def best(self) -> BestStudent:
        """The best student by `rule`; RunError while nothing has finished."""
        row, chosen = self.leaderboard.best, recommended(self.record)
        if row is None or row.quality is None or chosen is None:
            raise RunError(f"{self.path}: no trial has finished with an evaluation")
        return BestStudent(
            values=chosen.values,
            metric=row.metric,
            value=row.quality.mean,
            spread=row.quality.sd,
            gain=row.gain.mean if row.gain else None,
            kept=row.kept,
            parameters=row.parameters,
            run=self.path.parent / chosen.run,
            run_value=next(trial.value or 0.0 for trial in chosen.trials if trial.run == chosen.run),
            sweep=self.path,
        )

    def dataframe(self) -> pd.DataFrame:
        """One row per trial: values of the space, seed, status, metric, size, latency, time, run, command."""
        import pandas as pd

        return pd.DataFrame(trial_rows(self.record))

    def pareto(self, against: str = "parameters") -> pd.DataFrame:
        """Configurations that no other beats without costing more.

        `against`: `parameters`, `megabytes`, or ms per example at `batch_1` or `batch_32`.
        """
        import pandas as pd

        from raybrew.reports.figures.runs import cost_of_row, pareto_front

        rows = [
            (row, cost)
            for row in self.leaderboard.rows
            if row.done and row.role != "teacher" and row.quality and (cost := cost_of_row(row, against)) is not None
        ]
        front = pareto_front([(cost, row.quality.mean) for row, cost in rows if row.quality])
        return pd.DataFrame([rows[index][0].to_dict() for index in front])

    def plots(self) -> dict[str, go.Figure]:
        """Every figure of the report by name, as plotly figures."""
        from raybrew.reports.figures.runs import all_plots
        from raybrew.reports.figures.sweeps import sweep_plots

        found = [*all_plots(self.leaderboard, of_sweep=True), *sweep_plots(self.record, self.leaderboard)]
        return {plot.name: plot.figure for plot in found}

    def cost(self) -> dict[str, Any]:
        """Times, GPU-hours, money, overhead per trial, rows that the teacher read."""
        return dataclasses.asdict(cost_of(self.record))

    def _repr_html_(self) -> str:
        """Decision and leaderboard, for notebooks."""
        decision = decide(self.leaderboard)
        lines = [f"<b>{answer.question}</b>: {html.escape(answer.text)}" for answer in decision.answers]
        answers = f"<p>{'<br>'.join(lines or [html.escape(decision.detail)])}</p>"
        return (
            f"<h3>{html.escape(decision.headline)}</h3>{answers}"
            f"{self.leaderboard._repr_html_()}<p>{html.escape(str(self.report))}</p>"
        )


@dataclasses.dataclass(frozen=True)
class SweepResult(Sweep):
    """What `raybrew.sweep` returns."""

    already_done: bool = False

    @classmethod
    def load(cls, path: str | Path, already_done: bool = False) -> SweepResult:
        """As `Sweep.load`."""
        return cls(*_read(path), already_done=already_done)


def _read(path: str | Path) -> tuple[Path, SweepRecord, ShownComparison]:
    folders = find_sweeps([path])
    if len(folders) != 1:
        found = ", ".join(folder.name for folder in folders) or "none"
        raise RunError(f"{path}: one sweep is wanted there, found {found}; name its folder")
    record = load_sweep(folders[0])
    return folders[0], record, leaderboard(record)


def mirror_summary(experiment: Experiment, folder: Path) -> None:
    """Write the summary run of the sweep in `folder` to the trackers that have such runs. None of them stops a sweep.

    The same sweep continues its run, as trials do theirs. Everything in it is read from what is stored.
    """
    if not any(one.spec.summaries for one in experiment.tracking.asked):
        return
    record = load_sweep(folder)
    board = leaderboard(record)
    best = board.best
    cost = cost_of(record)
    trackers = build_trackers(
        experiment.tracking.grouped(f"{record.name}-{record.sweep_id}"),
        experiment=experiment.name,
        job_type="sweep",
        summaries=True,
        otherwise="the ledger has the sweep",
    )
    trackers.start(record.sweep_id, experiment.plain(), folder, resume=True)
    trackers.log_table("trials", trial_rows(record))
    trackers.log_table("leaderboard", [row.to_dict() for row in board.rows])
    if (folder / "report.html").is_file():
        trackers.log_page("report", folder / "report.html")
    trackers.summarise(
        {
            **(best_values(best) if best is not None else {}),
            "tried": board.tried,
            "cost/wall_seconds": cost.wall_seconds,
            "cost/gpu_hours": cost.gpu_hours,
            "trials": cost.num_trials,
        }
    )
    trackers.finish("done")


def best_values(best: Row) -> dict[str, Any]:
    """The best configuration, first on the rows that chose nothing; `eval/` values were chosen on their rows."""
    values: dict[str, Any] = {}
    for split in SPLITS:
        stat, found = best.on(split), best.intervals[split]
        if stat is not None:
            values[f"{split}/{best.metric}"] = stat.mean
            if found is not None and found.low is not None:
                values |= {f"{split}/{best.metric}_low": found.low, f"{split}/{best.metric}_high": found.high}
    for name, difference in (
        ("over_control", best.gain.interval if best.gain is not None else None),
        ("over_teacher", best.over_teacher),
    ):
        if difference is not None:
            values[name] = difference.value
            values |= {f"{name}_low": difference.low, f"{name}_high": difference.high, f"{name}_p": difference.p}
    if best.quality is not None:
        values |= {f"best/{best.metric}": best.quality.mean, "best/configuration": best.name}
    return {key: value for key, value in values.items() if value is not None}

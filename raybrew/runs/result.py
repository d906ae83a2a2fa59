"""A training run from its stored results alone, and what a training verb returns."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raybrew.errors import RunError
from raybrew.records.lines import Evaluation, LogLine
from raybrew.records.runs import RunRecord, find_runs, load_run
from raybrew.records.summary import RunSummary

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Run", "RunResult"]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run: its folder and its summary (see README, "Runs"). `Run.load(path)` reads one, without torch or Ray."""

    path: Path
    summary: dict[str, Any]
    """Empty while the run has not finished."""

    @classmethod
    def load(cls, path: str | Path) -> Run:
        """The run in the folder `path`, finished or not, or the only one below it; RunError if there is none."""
        folders = find_runs([path])
        if len(folders) != 1:
            found = ", ".join(folder.name for folder in folders)
            raise RunError(f"{path}: one run is wanted there, found {found}; name its folder")
        return Run(folders[0], load_run(folders[0]).facts.plain())

    @property
    def record(self) -> RunRecord:
        """Everything that the folder tells now: config, events, evaluations, problems."""
        return load_run(self.path)

    @property
    def status(self) -> str:
        """`done`, `running or interrupted`, `failed`."""
        return self.record.status

    @property
    def student(self) -> Path:
        """Hugging Face folder of the best model."""
        return self.path / "student"

    @property
    def metrics(self) -> dict[str, float]:
        """Evaluation metrics of the best model, of an unfinished run so far; empty without evaluation rows."""
        told = RunSummary.read(self.summary).best if self.summary else self.record.best
        return dict(told.metrics) if told is not None else {}

    def history(self) -> pd.DataFrame:
        """One row for each log line and evaluation (`kind`): step, losses, metrics, rates, as in metrics.jsonl."""
        import pandas as pd

        record = self.record
        lines: list[LogLine | Evaluation] = [*record.train, *record.evals]
        return pd.DataFrame([line.raw for line in sorted(lines, key=lambda line: line.step or 0)])

    def _repr_html_(self) -> str:
        """The run as in reports, for notebooks."""
        from raybrew.reports.compare import compare

        record = self.record
        return compare([record]).html(f"{record.experiment}: {record.run_id} ({record.status})", [str(self.path)])


@dataclasses.dataclass(frozen=True)
class RunResult(Run):
    """What a training verb returns: a finished run."""

    already_done: bool = False

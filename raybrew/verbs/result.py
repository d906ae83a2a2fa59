"""What a training verb returns."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

__all__ = ["RunResult"]


@dataclasses.dataclass(frozen=True)
class RunResult:
    """A finished run: its folder and its summary (see README, "Runs")."""

    path: Path
    summary: dict[str, Any]
    already_done: bool = False

    @property
    def student(self) -> Path:
        """Hugging Face folder of the best model."""
        return self.path / "student"

    @property
    def metrics(self) -> dict[str, float]:
        """Evaluation metrics of the best model; empty without evaluation rows."""
        best = self.summary.get("best") or {}
        metrics: dict[str, float] = best.get("metrics", {})
        return metrics

    def _repr_html_(self) -> str:
        """Figures of the model beside its teacher's, for notebooks."""
        from raybrew.reports.notebook import html_table

        own, teacher = self.summary.get("student") or {}, self.summary.get("teacher") or {}
        theirs = teacher.get("metrics") or {}
        rows = [
            [name, f"{value:.4f}", f"{theirs[name]:.4f}" if name in theirs else ""]
            for name, value in self.metrics.items()
        ]
        rows += [
            [name, *(f"{facts[name]:,}" if name in facts else "" for facts in (own, teacher))]
            for name in ("parameters", "megabytes")
        ]
        role = "student" if self.summary.get("verb") == "distill" else "model"
        header = ["", role, "teacher"] if teacher else ["", role]
        seconds = self.summary.get("wall_seconds")
        done = "done already" if self.already_done else f"{self.summary.get('steps')} steps in {seconds} s"
        title = f"{self.summary.get('name')}: {self.summary.get('run_id')}"
        return html_table(title, [row[: len(header)] for row in rows], header, [f"{done}; {self.path}"])

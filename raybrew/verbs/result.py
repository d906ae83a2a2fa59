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

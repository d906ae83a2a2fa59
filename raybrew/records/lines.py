"""Lines of `metrics.jsonl` by kind: what was logged in training, evaluations, and events."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from raybrew.config.judge import LOSS
from raybrew.records.sections import Section, integer, number, numbers
from raybrew.tracking.jsonl import read_metrics

__all__ = ["Evaluation", "Event", "LogLine", "evaluations_in", "steps_in_all", "trained_seconds"]

_EVAL = "eval/"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogLine(Section):
    """Means since the line before: `loss`, `loss/<term>`, `learning_rate` and others, by name."""

    step: int | None
    epoch: float | None
    time: float | None

    def value(self, name: str) -> float | None:
        return number(self.raw.get(name))

    @property
    def losses(self) -> list[str]:
        """Names of the loss and of its terms."""
        return [name for name in self.raw if name == LOSS or name.startswith(f"{LOSS}/")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(Section):
    """Metrics of the task and evaluation losses on `data.eval`, by name."""

    step: int | None
    epoch: float | None
    time: float | None
    stage: str | None
    judge: str | None
    """What checkpoints are chosen by; None in older runs, and where nothing is chosen."""

    @property
    def best(self) -> bool:
        """Whether it is the best so far."""
        return self.raw.get("best") is True

    def value(self, name: str) -> float | None:
        return number(self.raw.get(f"{_EVAL}{name}"))

    def written(self, name: str) -> float | None:
        """The value of a name as training had it, which may be no finite number."""
        value = self.raw.get(f"{_EVAL}{name}")
        return float(value) if isinstance(value, int | float) else None

    @property
    def metrics(self) -> dict[str, float]:
        """Those of the task alone."""
        named = {name.removeprefix(_EVAL): value for name, value in self.raw.items() if name.startswith(_EVAL)}
        return {
            name: value
            for name, value in numbers(named).items()
            if name not in ("rows", LOSS) and not name.startswith(f"{LOSS}/")
        }

    @property
    def rows(self) -> int | None:
        """How many it counts."""
        return integer(self.raw.get(f"{_EVAL}rows"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Event(Section):
    """`started`, `note`, `resumed`, `interrupted`, `failed` or `finished`, with a sentence."""

    step: int | None
    event: str | None
    message: str | None
    date: str | None
    total_steps: int | None
    """Of a start: steps of the whole run."""


def evaluations_in(folder: Path) -> list[Evaluation]:
    """Those of the run in `folder`; RunError if its file is damaged."""
    return [Evaluation.read(line) for line in read_metrics(folder / "metrics.jsonl", "eval")]


def steps_in_all(folder: Path) -> int:
    """Steps of the whole run, as the event of its start says; 0 while it does not."""
    events = (Event.read(line) for line in read_metrics(folder / "metrics.jsonl", "event"))
    return next((event.total_steps for event in events if event.total_steps is not None), 0)


def trained_seconds(folder: Path, step: int) -> float:
    """Training time of the run up to `step`."""
    lines = (LogLine.read(line) for line in read_metrics(folder / "metrics.jsonl"))
    return max((line.time for line in lines if line.time is not None and (line.step or 0) <= step), default=0.0)

"""Times per example as runs measured them. Two times compare if they come from one round under the same conditions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raybrew.records.runs import RunRecord
from raybrew.records.sections import integer, numbers
from raybrew.records.summary import RunSummary

__all__ = ["Conditions", "Timing", "alike", "faster", "relative_latency", "timing_of"]


@dataclasses.dataclass(frozen=True)
class Conditions:
    """What a time depends on besides the model."""

    device: str | None
    machine: str | None
    precision: str | None
    threads: int | None
    tokens: int | None
    alone: bool
    """Whether no other trial of a sweep ran meanwhile."""

    @property
    def text(self) -> str:
        """Device, threads and tokens in a few words, as far as they are known."""
        where = self.device if self.threads is not None else self.machine or self.device
        threads = f"{self.threads} thread{'' if self.threads == 1 else 's'}" if self._on_cpu and self.threads else None
        tokens = f"{self.tokens} tokens" if self.tokens else None
        precision = self.precision if self.precision not in (None, "fp32") else None
        return ", ".join(part for part in (where, precision, threads, tokens) if part)

    @property
    def _on_cpu(self) -> bool:
        return (self.device or "").startswith("cpu")


@dataclasses.dataclass(frozen=True)
class Timing:
    """Milliseconds per example by batch size: of a run's model, and of its teacher if that had turns in the round."""

    conditions: Conditions
    round: str | None
    """None for runs of versions that timed models one by one."""
    student: Mapping[str, float]
    teacher: Mapping[str, float]

    @functools.cached_property
    def of_teacher(self) -> Timing:
        """The teacher's part, as a measurement of its own."""
        return dataclasses.replace(self, student=self.teacher, teacher={})


def timing_of(run: RunRecord) -> Timing | None:
    """What the summary of `run` says; None if nothing was measured."""
    latency, older = run.facts.latency, run.facts.latency_ms
    student = _by_batch(latency.student if latency is not None and latency.student else numbers(older))
    if not student:
        return None
    if latency is None:
        threads = integer(older.get("threads"))
        conditions = Conditions(run.facts.device, run.machine, None, threads, run.facts.tokens, alone=False)
        return Timing(conditions, None, student, {})
    conditions = Conditions(
        latency.device, latency.machine, latency.precision, latency.threads, latency.tokens, latency.alone
    )
    return Timing(conditions, latency.round, student, _by_batch(latency.teacher or {}))


def relative_latency(summary: RunSummary) -> float | None:
    """The student's time for one example divided by the teacher's of the same round; None if it is not known.

    Milliseconds if there is no teacher.
    """
    latency = summary.latency
    student = None if latency is None else latency.student.get("batch_1")
    if latency is None or student is None or summary.teacher is None:
        return student
    teacher = (latency.teacher or {}).get("batch_1")
    return student / teacher if teacher else None


def alike(timings: Iterable[Timing]) -> tuple[Timing, ...]:
    """Those under the most common conditions (of equally common ones the first), one of each round."""
    groups: dict[Conditions, list[Timing]] = {}
    for timing in timings:
        groups.setdefault(timing.conditions, []).append(timing)
    most = max(groups.values(), key=len, default=[])
    rounds: dict[Any, Timing] = {}
    for index, timing in enumerate(most):
        rounds.setdefault(timing.round or index, timing)
    return tuple(rounds.values())


def faster(timings: Sequence[Timing]) -> dict[str, float]:
    """The teacher's time divided by the student's by batch size, over rounds in which both had turns."""
    found: dict[str, float] = {}
    for batch in dict.fromkeys(batch for timing in timings for batch in timing.student):
        pairs = [
            (timing.student[batch], timing.teacher[batch])
            for timing in timings
            if batch in timing.student and batch in timing.teacher
        ]
        student = sum(mine for mine, _ in pairs)
        if student > 0:
            found[batch] = sum(theirs for _, theirs in pairs) / student
    return found


def _by_batch(times: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in times.items() if name.startswith("batch_")}

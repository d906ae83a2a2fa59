"""Times per example as runs measured them. Two times compare if they come from one round under the same conditions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from raybrew.records.summary import Latency, RunSummary

__all__ = ["alike", "faster", "relative_latency"]


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


def alike(timings: Iterable[Latency]) -> tuple[Latency, ...]:
    """Those under the most common conditions (of equally common ones the first), one of each round."""
    groups: dict[tuple[Any, ...], list[Latency]] = {}
    for timing in timings:
        groups.setdefault(timing.conditions, []).append(timing)
    most = max(groups.values(), key=len, default=[])
    rounds: dict[Any, Latency] = {}
    for index, timing in enumerate(most):
        rounds.setdefault(timing.round or index, timing)
    return tuple(rounds.values())


def faster(timings: Sequence[Latency]) -> dict[str, float]:
    """The teacher's time divided by the student's by batch size, over rounds in which both had turns."""
    found: dict[str, float] = {}
    for batch in dict.fromkeys(batch for timing in timings for batch in timing.student):
        both = [(timing.student.get(batch), (timing.teacher or {}).get(batch)) for timing in timings]
        pairs = [(mine, theirs) for mine, theirs in both if mine is not None and theirs is not None]
        student = sum(mine for mine, _ in pairs)
        if student > 0:
            found[batch] = sum(theirs for _, theirs in pairs) / student
    return found

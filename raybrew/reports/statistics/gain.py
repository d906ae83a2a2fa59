"""A metric over seeds, and what a student gains over its control."""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Iterable, Mapping
from typing import Protocol

from raybrew.reports.statistics.evidence import Split
from raybrew.reports.statistics.intervals import Interval, Sample, difference

__all__ = ["Gain", "Judged", "Stat"]


class Judged(Protocol):
    """A configuration with what was measured on the rows of each split."""

    @property
    def samples(self) -> Mapping[Split, Sample | None]: ...
    @property
    def tries(self) -> dict[Split, int]: ...


@dataclasses.dataclass(frozen=True)
class Stat:
    """Values over seeds."""

    values: tuple[float, ...]

    @functools.cached_property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @functools.cached_property
    def sd(self) -> float | None:
        """Standard deviation of single runs; None for one run."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def n(self) -> int:
        return len(self.values)

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Stat | None:
        """Over the values that exist; None where there is none."""
        found = tuple(value for value in values if value is not None)
        return cls(found) if found else None


@dataclasses.dataclass(frozen=True)
class Gain:
    """Quality of a student less that of the same student trained without a teacher, whether or not it is shown."""

    mean: float
    sd: float | None
    """Spread of one seed's gain: of the differences seed by seed if `paired`, else sqrt(sd^2 + sd^2) of both sides."""
    n: int
    """Seeds on the side with fewer."""
    paired: bool
    """Whether both sides ran the same seeds."""
    wins: int | None
    """In how many seeds the student is better; None if not paired."""
    differences: tuple[str, ...]
    """Settings other than the distillation losses in which student and control differ, as dotted keys."""
    on: Split = "eval"
    """The rows that both were judged on: of data.test if both were."""
    sides: tuple[Judged, Judged] | None = dataclasses.field(default=None, repr=False, compare=False)
    """Student and control."""

    @functools.cached_property
    def interval(self) -> Interval | None:
        """Paired by rows and seeds, corrected for the configurations that were compared on these rows."""
        if self.sides is None:
            return None
        row, control = self.sides
        one, other = row.samples[self.on], control.samples[self.on]
        return None if one is None or other is None else difference(one, other, row.tries[self.on])

"""Confidence intervals of metrics and of differences between models judged on the same rows.

Two things make a measured difference uncertain: which rows were drawn, and which seeds. The part of the rows comes from
a bootstrap in which all models see the same resamples, so that what the models share cancels out. The part of the seeds
comes from their spread. Both add up,

    SE² = SE_rows² + sd_seeds² / seeds - what both contain

and the interval is the difference ± t SE, with Satterthwaite's degrees of freedom. Both contain that seeds differ on
single rows: the bootstrap tells by how much, and it is counted once. With one seed only the rows' part is known.

Numbers are on the stored scale. Nothing here reads files or knows of runs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = [
    "LEVEL",
    "Interval",
    "Sample",
    "difference",
    "interval",
    "linear",
    "mcnemar",
    "row_weights",
    "sidak",
]

#: Of an interval; of all intervals together where several configurations were tried on the same rows.
LEVEL = 0.95
RESAMPLES = 2000
#: Weights that are drawn at once at most; more rows get fewer resamples.
_MOST_WEIGHTS = 200_000_000

Basis = Literal["rows and seeds", "rows", "seeds", "configurations", "unknown"]


@dataclasses.dataclass(frozen=True)
class Interval:
    """A value or a difference and its confidence interval; without `low` and `high` no interval is known."""

    value: float
    low: float | None
    high: float | None
    rows: int | None
    """Rows that both sides were judged on."""
    seeds: int
    """Seeds of the side with fewer."""
    basis: Basis
    """What the interval counts: the choice of rows, of seeds, of both, or how configurations vary."""
    level: float = LEVEL
    """Of this interval alone: higher than LEVEL where several were tried."""
    p: float | None = None
    """Probability of a difference as large as this one by chance, corrected for what was tried. McNemar's exact test
    for accuracies of single runs, else the t test of the interval."""

    @property
    def half(self) -> float | None:
        """Half of the width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    @property
    def shown(self) -> bool:
        """Whether a difference from zero is shown: the interval excludes zero, and counts more than the seeds.

        An interval over seeds alone says nothing about other rows.
        """
        if self.low is None or self.high is None or self.basis in ("seeds", "unknown"):
            return False
        return (self.low > 0 or self.high < 0) and (self.p is None or self.p < 1 - LEVEL)


@dataclasses.dataclass(frozen=True)
class Sample:
    """A metric of one configuration over its seeds, all judged on the same rows."""

    values: tuple[float, ...]
    rows: int | None
    key: str | None = None
    """Equal for samples of the same rows; None where the scores of rows are not known."""
    drawn: Array | None = dataclasses.field(default=None, repr=False)
    """(seeds, resamples): the metric on resampled rows, the same resamples for every sample of one key."""
    correct: Array | None = dataclasses.field(default=None, repr=False)
    """(rows,) of a single run: whether each row is right, if `share`."""
    share: bool = False
    """Whether the metric is the share of rows that are right."""
    bounded: bool = True
    """Whether the metric lies between 0 and 1."""
    fixed: bool = False
    """Whether this is one given model, such as a teacher, rather than one draw of several seeds."""

    @functools.cached_property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @functools.cached_property
    def mean_drawn(self) -> Array | None:
        return None if self.drawn is None else self.drawn.mean(axis=0)

    @property
    def row_variance(self) -> float | None:
        """Of the mean over seeds, by the choice of rows alone."""
        if self.mean_drawn is not None and self.rows:
            return _at_least_one_row(float(self.mean_drawn.var()), self.rows, self.bounded)
        if self.share and self.rows:
            # Agresti and Coull: two right and two wrong rows more, so that 100 % is not certain either.
            share = (self.mean * self.rows + 2) / (self.rows + 4)
            return share * (1 - share) / (self.rows + 4)
        return None


def interval(sample: Sample, tries: int = 1) -> Interval:
    """The interval of one configuration's metric."""
    seeds = _of_seeds(sample.values, sample.drawn)
    found = _combined(sample.mean, sample.row_variance, [seeds], sample.rows, len(sample.values), tries)
    if not sample.bounded or found.low is None or found.high is None:
        return dataclasses.replace(found, p=None)
    return dataclasses.replace(found, low=max(0.0, found.low), high=min(1.0, found.high), p=None)


def difference(one: Sample, other: Sample, tries: int = 1) -> Interval:
    """`one` less `other`, paired by rows where both know the scores of the same rows.

    Seeds of two trainings are taken as independent: what equal seeds share makes the interval too wide at most.

    `tries`: how many configurations were compared with their controls on these rows.
    """
    variance = None
    paired = one.key is not None and one.key == other.key
    if paired and one.mean_drawn is not None and other.mean_drawn is not None and one.rows:
        variance = float((one.mean_drawn - other.mean_drawn).var())
        variance = _at_least_one_row(variance, one.rows, one.bounded)
    elif one.row_variance is not None and other.row_variance is not None:
        # Rows are not paired: what both models find hard is counted twice, so this is too wide.
        variance = one.row_variance + other.row_variance
    counts = [len(side.values) for side in (one, other) if not side.fixed]
    known = [side.rows for side in (one, other) if side.rows is not None]
    rows = min(known) if known else None
    seeds = _between_seeds(one, other, paired)
    found = _combined(one.mean - other.mean, variance, seeds, rows, min(counts or [1]), tries)
    if one.bounded and other.bounded and found.low is not None and found.high is not None:
        found = dataclasses.replace(found, low=max(-1.0, found.low), high=min(1.0, found.high))
    if paired and len(one.values) == len(other.values) == 1 and one.correct is not None and other.correct is not None:
        return dataclasses.replace(found, p=_for_all(mcnemar(one.correct, other.correct), tries))
    return found


def linear(
    samples: Sequence[Sample], weights: Sequence[float], spread: tuple[float, float] | None, tries: int = 1
) -> Interval:
    """The sum of weighted means of configurations, such as a slope over the values of a key.

    `spread`: the variance of that sum by what else differs between configurations, and its degrees of freedom. No
    interval is known without.
    """
    import numpy as np

    value = sum(weight * sample.mean for weight, sample in zip(weights, samples, strict=True))
    rows, seeds = samples[0].rows, min(len(one.values) for one in samples)
    if spread is None:
        return Interval(value, None, None, rows, seeds, "unknown", sidak(tries))
    drawn = [sample.mean_drawn for sample in samples if sample.mean_drawn is not None]
    keys = {sample.key for sample in samples}
    variance = None
    if len(keys) == 1 and len(drawn) == len(samples):
        variance = float(np.var(np.tensordot(np.array(weights), np.stack(drawn), axes=1)))
    found = _combined(value, variance, [_Part(*spread)], rows, seeds, tries)
    return found if variance is not None else dataclasses.replace(found, basis="configurations")


def sidak(tries: int, level: float = LEVEL) -> float:
    """The level of each of `tries` intervals, so that all of them together hold with `level`."""
    return float(level ** (1 / max(1, tries)))


def mcnemar(one: Array, other: Array) -> float:
    """Two-sided p of McNemar's exact test: whether `one` is right as often as `other` where only one of them is."""
    from scipy.special import bdtr  # scipy.stats takes most of a second to import

    only_one, only_other = int((one & ~other).sum()), int((~one & other).sum())
    return min(1.0, 2 * float(bdtr(min(only_one, only_other), only_one + only_other, 0.5)))


@functools.lru_cache(maxsize=4)
def row_weights(rows: int, salt: str = "") -> Array:
    """(resamples, rows) uint16: how often each row is drawn; the same for every model, so that models are paired."""
    import numpy as np

    resamples = int(min(RESAMPLES, max(200, _MOST_WEIGHTS // max(1, rows))))
    rng = np.random.default_rng([rows, *salt.encode()])
    drawn = np.empty((resamples, rows), np.uint16)
    for number in range(resamples):
        drawn[number] = np.bincount(rng.integers(rows, size=rows), minlength=rows)
    return drawn


@dataclasses.dataclass(frozen=True)
class _Part:
    """A variance of the estimate and its degrees of freedom."""

    variance: float
    freedom: float
    by_rows: float = 0.0
    """How much of it the rows' part contains: single rows on which seeds differ."""


def _of_seeds(values: Sequence[float], drawn: Array | None = None) -> _Part | None:
    """Of a mean over seeds; `drawn` (seeds, resamples) tells what the choice of rows alone spreads them."""
    import numpy as np

    count = len(values)
    if count < 2:
        return None
    by_rows = 0.0
    if drawn is not None:
        spread = np.cov(drawn)
        shared = (spread.sum() - np.trace(spread)) / (count * (count - 1))
        by_rows = max(0.0, float(np.trace(spread) / count - shared)) / count
    return _Part(statistics.variance(values) / count, count - 1, by_rows)


def _between_seeds(one: Sample, other: Sample, paired: bool) -> list[_Part | None]:
    """The seeds' parts of a difference; None where no spread is known."""
    drawn = (one.drawn, other.drawn) if paired else (None, None)
    if other.fixed or one.fixed:
        return [_of_seeds(one.values, drawn[0]) if other.fixed else _of_seeds(other.values, drawn[1])]
    # A single run stands for itself: how other seeds of it would do is not known.
    return [_of_seeds(one.values, drawn[0]), _of_seeds(other.values, drawn[1])]


def _combined(
    value: float,
    row_variance: float | None,
    seeds: Sequence[_Part | None],
    rows: int | None,
    num_seeds: int,
    tries: int,
) -> Interval:
    from scipy.special import stdtr, stdtrit

    spreads = [part for part in seeds if part is not None]
    parts = [
        # Seeds vary at least as much as the rows make them.
        part if part.variance >= part.by_rows else _Part(part.by_rows, part.freedom * max(1, (rows or 2) - 1))
        for part in spreads
    ]
    if row_variance is not None and rows:
        rest = max(0.0, row_variance - sum(part.by_rows for part in spreads))
        parts.append(_Part(rest, max(1, rows - 1)))
    by_rows = row_variance is not None and bool(rows)
    basis: Basis = "rows and seeds" if by_rows and spreads else "rows" if by_rows else "seeds" if spreads else "unknown"
    level = sidak(tries)
    if not parts:
        return Interval(value, None, None, rows, num_seeds, basis, level)
    error = math.sqrt(sum(part.variance for part in parts))
    freedom = _freedom(parts)
    half = float(stdtrit(freedom, (1 + level) / 2)) * error
    p = _for_all(float(2 * stdtr(freedom, -abs(value) / error)) if error else float(value == 0), tries)
    return Interval(value, value - half, value + half, rows, num_seeds, basis, level, p)


def _freedom(parts: Sequence[_Part]) -> float:
    """Satterthwaite's degrees of freedom of the sum of variances."""
    total = sum(part.variance for part in parts)
    if total <= 0:
        return min(part.freedom for part in parts)
    return total**2 / sum(part.variance**2 / part.freedom for part in parts)


def _for_all(p: float, tries: int) -> float:
    return 1 - (1 - p) ** max(1, tries)


def _at_least_one_row(variance: float, rows: int, bounded: bool) -> float:
    """Where all rows come out alike, one row may still be answered otherwise the next time."""
    return max(variance, 1 / rows**2) if bounded else variance

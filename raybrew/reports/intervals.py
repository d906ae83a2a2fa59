"""Confidence intervals of metrics and of differences between models judged on the same rows.

Two things make a measured difference uncertain: which rows were drawn, and which seeds. The part of the rows comes from
a bootstrap in which all models see the same resamples, so that what the models share cancels out. The part of the seeds
comes from their spread. Both add up:

    SE² = SE_rows² + sd_seeds² / seeds

and the interval is the difference ± t SE, with Satterthwaite's degrees of freedom. The rows' part contains a little of
the seeds' part, so intervals are rather too wide than too narrow. With one seed only the rows' part is known.

Numbers are on the stored scale. Nothing here reads files or knows of runs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

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

Array = npt.NDArray[Any]

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
    seeds: tuple[int | None, ...]
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
    rows = _Part.of_rows(sample.row_variance, sample.rows)
    found = _combined(sample.mean, rows, _of_seeds(sample), sample.rows, len(sample.values), tries)
    if not sample.bounded or found.low is None or found.high is None:
        return dataclasses.replace(found, p=None)
    return dataclasses.replace(found, low=max(0.0, found.low), high=min(1.0, found.high), p=None)


def difference(one: Sample, other: Sample, tries: int = 1) -> Interval:
    """`one` less `other`. Paired by rows where both know the scores of the same rows, and by seeds where they agree.

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
    found = _combined(
        one.mean - other.mean, _Part.of_rows(variance, rows), _between_seeds(one, other), rows, min(counts or [1]), tries
    )
    if paired and len(one.values) == len(other.values) == 1 and one.correct is not None and other.correct is not None:
        return dataclasses.replace(found, p=_for_all(mcnemar(one.correct, other.correct), tries))
    return found


def linear(samples: Sequence[Sample], weights: Sequence[float], spread: tuple[float, float], tries: int = 1) -> Interval:
    """The sum of weighted means of configurations, such as a slope over the values of a key.

    `spread`: the variance of that sum by what else differs between configurations, and its degrees of freedom.
    """
    value = sum(weight * sample.mean for weight, sample in zip(weights, samples, strict=True))
    keys = {sample.key for sample in samples}
    variance = None
    if len(keys) == 1 and None not in keys:
        drawn = sum(weight * sample.mean_drawn for weight, sample in zip(weights, samples, strict=True))  # type: ignore[operator]
        variance = float(np.var(drawn))
    rows = samples[0].rows
    part = _Part.of_rows(variance, rows)
    found = _combined(value, part, _Part(*spread), rows, min(len(one.values) for one in samples), tries)
    return found if part is not None else dataclasses.replace(found, basis="configurations")


def sidak(tries: int, level: float = LEVEL) -> float:
    """The level of each of `tries` intervals, so that all of them together hold with `level`."""
    return level ** (1 / max(1, tries))


def mcnemar(one: Array, other: Array) -> float:
    """Two-sided p of McNemar's exact test: whether `one` is right as often as `other` where only one of them is."""
    from scipy.stats import binomtest

    only_one, only_other = int((one & ~other).sum()), int((~one & other).sum())
    if not only_one + only_other:
        return 1.0
    return float(binomtest(only_one, only_one + only_other, 0.5).pvalue)


@functools.lru_cache(maxsize=4)
def row_weights(rows: int, salt: str = "") -> Array:
    """(resamples, rows) uint16: how often each row is drawn; the same for every model, so that models are paired."""
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

    @classmethod
    def of_rows(cls, variance: float | None, rows: int | None) -> _Part | None:
        return None if variance is None or not rows else cls(variance, max(1, rows - 1))


def _of_seeds(sample: Sample) -> _Part | None:
    count = len(sample.values)
    return _Part(statistics.variance(sample.values) / count, count - 1) if count > 1 else None


def _between_seeds(one: Sample, other: Sample) -> _Part | None:
    """The seeds' part of a difference; None where neither side has several."""
    if other.fixed or one.fixed:
        return _of_seeds(one if other.fixed else other)
    if None not in one.seeds and set(one.seeds) == set(other.seeds) and len(set(one.seeds)) == len(one.seeds):
        theirs = dict(zip(other.seeds, other.values, strict=True))
        gaps = [value - theirs[seed] for seed, value in zip(one.seeds, one.values, strict=True)]
        return _Part(statistics.variance(gaps) / len(gaps), len(gaps) - 1) if len(gaps) > 1 else None
    mine, theirs_ = _of_seeds(one), _of_seeds(other)
    if mine is not None and theirs_ is not None:
        return _Part(mine.variance + theirs_.variance, _freedom([mine, theirs_]))
    several = mine or theirs_
    if several is None:
        return None
    # A single run is taken to vary as the seeds of the other side do.
    count = int(several.freedom) + 1
    return _Part(several.variance * (1 + count), several.freedom)


def _combined(
    value: float, rows: _Part | None, seeds: _Part | None, num_rows: int | None, num_seeds: int, tries: int
) -> Interval:
    from scipy.stats import t

    parts = [part for part in (rows, seeds) if part is not None]
    level = sidak(tries)
    basis: Basis = "rows and seeds" if len(parts) == 2 else "rows" if rows else "seeds" if seeds else "unknown"
    if not parts:
        return Interval(value, None, None, num_rows, num_seeds, basis, level)
    error = math.sqrt(sum(part.variance for part in parts))
    freedom = _freedom(parts)
    half = float(t.ppf((1 + level) / 2, freedom)) * error
    p = _for_all(float(2 * t.sf(abs(value) / error, freedom)) if error else float(value == 0), tries)
    return Interval(value, value - half, value + half, num_rows, num_seeds, basis, level, p)


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

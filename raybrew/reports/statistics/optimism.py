"""How much better the best looks than it is, because it was chosen on the rows that it is judged on.

The best of several equal models is the luckiest one on these rows. The same holds for the best checkpoint of a run.
`data.test` chooses nothing, so its value needs no such estimate.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence

import numpy as np

from raybrew.records.runs import RunRecord
from raybrew.reports.rows import Row
from raybrew.reports.statistics.intervals import Sample

__all__ = ["Optimism", "expected_maximum", "of_checkpoints", "of_configurations", "optimism_of"]

#: Share of the rows' variance that students of one teacher have in common; what they share chooses none of them.
_SHARED = 0.6
#: More configurations than this are not resampled.
_MOST = 256


@dataclasses.dataclass(frozen=True)
class Optimism:
    """Expected excess of the best value over what it is on new rows, on the stored scale; None where not known."""

    configurations: float | None
    num_configurations: int
    checkpoints: float | None
    num_checkpoints: int
    rows: int | None


def optimism_of(best: Row, candidates: Sequence[Row]) -> Optimism:
    """Of choosing `best` among `candidates`, the configurations of the last choice, on the rows of data.eval."""
    samples = [sample for row in candidates if (sample := row.samples["eval"]) is not None]
    own = best.samples["eval"]
    runs = [run for run in best.runs if run.best is not None]
    counts = [checkpoints_of(run) for run in runs]
    found = [of_checkpoints(run, own) for run in runs] if own is not None else []
    known = [value for value in found if value is not None]
    return Optimism(
        of_configurations(samples) if len(samples) == len(candidates) else None,
        len(candidates),
        statistics.fmean(known) if known and len(known) == len(found) else None,
        round(statistics.fmean(counts)) if counts else 0,
        best.eval_rows,
    )


def of_configurations(samples: Sequence[Sample]) -> float | None:
    """Of the highest of several means over seeds.

    With row scores: the choice is repeated on resampled rows, and its value there compared with the one on all rows.
    Values are drawn together first by as much as the choice of rows alone spreads them: equal configurations have
    different values too. Without row scores: the expected maximum of equal ones.
    """
    if len(samples) < 2:
        return 0.0
    keys = {sample.key for sample in samples}
    drawn = [sample.mean_drawn for sample in samples[:_MOST] if sample.mean_drawn is not None]
    if len(keys) == 1 and None not in keys and len(drawn) == len(samples[:_MOST]):
        values = np.array([sample.mean for sample in samples[:_MOST]])
        noise = np.stack(drawn)
        noise -= noise.mean(axis=1, keepdims=True)
        # Only what differs between configurations chooses among them.
        within = float((noise - noise.mean(axis=0)).var(axis=1).mean()) * len(values) / (len(values) - 1)
        spread = float(values.var(ddof=1))
        kept = max(0.0, 1 - within / spread) if spread > 0 else 0.0
        centre = values.mean() + math.sqrt(kept) * (values - values.mean())
        chosen = (centre[:, None] + noise).argmax(axis=0)
        return float(noise[chosen, np.arange(noise.shape[1])].mean())
    error = statistics.fmean(_own_error(sample) or math.nan for sample in samples)
    return None if math.isnan(error) else expected_maximum(len(samples)) * error


def of_checkpoints(run: RunRecord, sample: Sample) -> float | None:
    """Of the best of a run's checkpoints, by order statistics.

    Checkpoints that compete are those within three times their error of the best one; the error is what the curve
    shows from one evaluation to the next there, and no more than the choice of rows explains.
    """
    count = checkpoints_of(run)
    if count < 2:
        return 0.0
    single = dataclasses.replace(sample, values=sample.values[:1], drawn=_first(sample))
    most = _own_error(single)
    if most is None or run.best is None:
        return None
    metric = run.best.metric
    curve = [value for line in run.evals if (value := line.value(metric)) is not None]
    rivals = [value for value in curve if value >= run.best.value - 3 * most]
    if not curve:
        return expected_maximum(count) * most
    if len(rivals) < 2:
        return 0.0
    steps = [abs(b - a) for a, b in itertools.pairwise(rivals)]
    # Half of the mean square of differences is the variance of what differs.
    shown = math.sqrt(statistics.fmean(step**2 for step in steps) / 2)
    return expected_maximum(min(count, len(rivals))) * min(most, shown)


def checkpoints_of(run: RunRecord) -> int:
    """How many evaluations could become the best."""
    told = run.facts.chosen.checkpoints
    return told if told is not None else len(run.evals)


def expected_maximum(count: int) -> float:
    """Of `count` independent standard normal values, by Blom's approximation."""
    from scipy.special import ndtri

    return float(ndtri((count - 0.375) / (count + 0.25))) if count > 1 else 0.0


def _first(sample: Sample) -> np.ndarray | None:
    return None if sample.drawn is None else sample.drawn[:1]


def _own_error(sample: Sample) -> float | None:
    """Standard error by the choice of rows of what one configuration does not share with others."""
    variance = sample.row_variance
    if variance is None:
        return None
    # A mean over seeds shares its rows as well: only the rest is averaged out.
    seeds = len(sample.values) if sample.drawn is None else 1
    return math.sqrt(variance * (1 - _SHARED) / seeds)

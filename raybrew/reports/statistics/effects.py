"""Whether a key of a sweep makes a difference: an interval for what its best value adds to its worst one.

The other keys vary as well. Where each configuration of one value has a twin of the other value that agrees in all
other keys, twins are compared; otherwise the means of both values. Of a key with a range it is what the straight line
through all configurations rises from its lowest to its highest value.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from raybrew.config.sweep import ParameterConfig
from raybrew.config.values import show_value_of
from raybrew.records.sweeps import CANDIDATE, SweepRecord
from raybrew.reports.comparison import Comparison
from raybrew.reports.numbers import count_of
from raybrew.reports.statistics.intervals import Interval, Sample, linear
from raybrew.reports.words import plain_metric, show_difference

__all__ = ["Configuration", "Effect", "configurations_of", "effect_of"]

#: A straight line through fewer configurations shows nothing.
_LEAST_FOR_LINE = 4


@dataclasses.dataclass(frozen=True)
class Configuration:
    """Values of the space, and what was measured on data.eval."""

    values: dict[str, Any]
    sample: Sample

    @property
    def quality(self) -> float:
        return self.sample.mean


@dataclasses.dataclass(frozen=True)
class Effect:
    """What the value `high` of a key adds to the value `low`."""

    key: str
    high: str
    low: str
    interval: Interval
    num_configurations: int

    @property
    def shown(self) -> bool:
        return self.interval.shown

    def sentence(self, metric: str) -> str:
        """An effect is named one only where its interval excludes zero."""
        rows = "" if self.interval.rows is None else f", {count_of(self.interval.rows, 'row')}"
        counted = f"({count_of(self.num_configurations, 'configuration')}{rows})"
        gap = show_difference(metric, self.interval)
        if self.shown:
            return f"{self.high} adds {gap} {plain_metric(metric)} to {self.low} {counted}."
        if self.interval.low is None:
            return f"{self.high} minus {self.low} is {gap}; too few configurations to tell an effect {counted}."
        return f"No effect could be shown: {self.high} minus {self.low} is {gap} {counted}."


def configurations_of(record: SweepRecord, comparison: Comparison) -> list[Configuration]:
    """The finished configurations of a sweep with what their rows in `comparison` measured."""
    rows = {run.folder.name: row for row in comparison.rows for run in row.runs}
    found: dict[str, Configuration] = {}
    for trial in record.trials:
        if trial.role != CANDIDATE or trial.status != "done" or trial.value is None:
            continue
        row = rows.get(trial.run)
        sample = row.samples["eval"] if row is not None else None
        key = json.dumps(trial.values, sort_keys=True, default=str)
        if key not in found or row is not None:
            found[key] = Configuration(trial.values, sample or Sample((trial.value,), None))
    return list(found.values())


def effect_of(
    configurations: Sequence[Configuration], key: str, parameter: ParameterConfig, keys: int = 1
) -> Effect | None:
    """The effect of `key`, corrected for the pairs of its values and for the number of `keys`; None for one value."""
    having = [one for one in configurations if key in one.values]
    groups: dict[str, list[Configuration]] = {}
    for one in having:
        groups.setdefault(show_value_of(one.values[key]), []).append(one)
    if len(groups) < 2:
        return None
    if not parameter.discrete:
        return _line(having, key, parameter.kind == "loguniform", keys)
    means = {name: statistics.fmean(one.quality for one in group) for name, group in groups.items()}
    high, low = max(means, key=lambda name: means[name]), min(means, key=lambda name: means[name])
    if high == low:
        high, low = list(groups)[:2]
    tries = len(groups) * (len(groups) - 1) // 2 * keys
    return Effect(key, high, low, _between(groups[high], groups[low], key, tries), len(having))


def _between(high: Sequence[Configuration], low: Sequence[Configuration], key: str, tries: int) -> Interval:
    twins = {_others(one.values, key): one for one in low}
    pairs = [(one, twins[other]) for one in high if (other := _others(one.values, key)) in twins]
    spread: tuple[float, float] | None
    if len(pairs) == len(high) == len(low) and len(pairs) > 1:
        gaps = [one.quality - other.quality for one, other in pairs]
        spread = (statistics.variance(gaps) / len(gaps), len(gaps) - 1.0)
    else:
        spread = _welch([one.quality for one in high], [one.quality for one in low])
    weights = [1 / len(high)] * len(high) + [-1 / len(low)] * len(low)
    return linear([one.sample for one in (*high, *low)], weights, spread, tries)


def _welch(one: Sequence[float], other: Sequence[float]) -> tuple[float, float] | None:
    """Variance of the difference of two means, and its degrees of freedom; a single value varies as the others do."""
    parts = [(statistics.variance(side), len(side)) if len(side) > 1 else None for side in (one, other)]
    known = [part for part in parts if part is not None]
    if not known:
        return None
    if len(known) == 1:
        variance, count = known[0]
        return variance * (1 + 1 / count), count - 1.0
    shares = [variance / count for variance, count in known]
    below = sum(share**2 / (count - 1) for share, (_, count) in zip(shares, known, strict=True))
    return sum(shares), sum(shares) ** 2 / below if below else float(min(count for _, count in known) - 1)


def _line(having: Sequence[Configuration], key: str, logarithmic: bool, keys: int) -> Effect | None:
    places = [math.log(one.values[key]) if logarithmic else float(one.values[key]) for one in having]
    middle, reach = statistics.fmean(places), max(places) - min(places)
    square = sum((place - middle) ** 2 for place in places)
    weights = [reach * (place - middle) / square for place in places]
    spread = None
    if len(having) >= _LEAST_FOR_LINE:
        mean = statistics.fmean(one.quality for one in having)
        slope = sum(weight * one.quality for weight, one in zip(weights, having, strict=True)) / reach
        rest = sum(
            (one.quality - mean - slope * (place - middle)) ** 2 for one, place in zip(having, places, strict=True)
        )
        freedom = len(having) - 2.0
        spread = (rest / freedom / square * reach**2, freedom)
    interval = linear([one.sample for one in having], weights, spread, keys)
    ends = [show_value_of(end(one.values[key] for one in having)) for end in (max, min)]
    if interval.value < 0:
        interval, ends = _turned(interval), ends[::-1]
    return Effect(key, ends[0], ends[1], interval, len(having))


def _turned(interval: Interval) -> Interval:
    low = None if interval.high is None else -interval.high
    high = None if interval.low is None else -interval.low
    return dataclasses.replace(interval, value=-interval.value, low=low, high=high)


def _others(values: Mapping[str, Any], key: str) -> str:
    rest = {name: value for name, value in values.items() if name != key}
    return json.dumps(rest, sort_keys=True, default=str)

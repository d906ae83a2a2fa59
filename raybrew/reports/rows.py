"""Rows of a comparison: runs grouped by configuration, with their values over seeds.

Only finished runs are grouped; an unfinished run is a row of its own with its best so far. `sd` is the standard
deviation over seeds (n - 1 in the denominator), absent for a single seed. Configurations are chosen by `quality`, the
value on data.eval; what is shown first is the value on data.test, where there is one.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from raybrew.config.judge import quality
from raybrew.records.lines import Evaluation, LogLine
from raybrew.records.runs import Role, RunRecord, RunStatus, dict_at
from raybrew.records.summary import Latency
from raybrew.records.timing import alike, faster
from raybrew.reports.statistics.evidence import Split, rows_of, sample_of_runs, sample_of_teacher, value_on
from raybrew.reports.statistics.gain import Gain, Stat
from raybrew.reports.statistics.intervals import Interval, Sample, difference, interval

__all__ = ["Gain", "Row", "Stat", "group_runs", "model_name", "row_of"]

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Row:
    """One configuration over its seeds, or one unfinished run; without `runs` a teacher known by its facts only."""

    label: str
    variant: str
    role: Role
    status: RunStatus
    runs: tuple[RunRecord, ...]
    metric: str
    quality: Stat | None
    metrics: dict[str, Stat]
    eval_rows: int | None
    parameters: int | None
    megabytes: float | None
    steps: int | None
    wall_seconds: Stat | None
    timings: tuple[Latency, ...] = ()
    """Measurements of this model under the same conditions, one of each round."""
    gain: Gain | None = None
    kept: float | None = None
    """Share of the teacher's quality; None over a teacher that has next to none (`kept_share`)."""
    smaller: float | None = None
    """The teacher's parameters divided by this model's."""
    teacher_quality: float | None = None
    """On the rows of `teacher_on`."""
    teacher_ms: dict[str, float] = dataclasses.field(default_factory=dict)
    """The teacher's time in the rounds of `timings`; empty if its own row tells another time."""
    timed_alike: bool = True
    """Whether the times compare with those of most rows, as they were measured under the same conditions."""
    teacher_on: Split = "eval"
    teacher: Row | None = dataclasses.field(default=None, repr=False, compare=False)
    control: Row | None = dataclasses.field(default=None, repr=False, compare=False)
    test: Stat | None = None
    """The metric on data.test, which chose nothing, over the seeds that were scored on it."""
    test_metrics: dict[str, Stat] = dataclasses.field(default_factory=dict)
    test_rows: int | None = None
    told_by: RunRecord | None = dataclasses.field(default=None, repr=False, compare=False)
    """Of a teacher: the run of a student whose summary has figures that the teacher's own runs lack."""
    tries: dict[Split, int] = dataclasses.field(default_factory=lambda: {"test": 1, "eval": 1})
    """How many configurations were compared on these rows."""

    @functools.cached_property
    def latency_ms(self) -> dict[str, Stat]:
        """Milliseconds per example by batch size."""
        batches = dict.fromkeys(batch for timing in self.timings for batch in timing.student)
        found = {batch: Stat.of(timing.student.get(batch) for timing in self.timings) for batch in batches}
        return {batch: stat for batch, stat in found.items() if stat}

    @functools.cached_property
    def faster(self) -> dict[str, float]:
        """The teacher's time per example divided by this model's, by batch size, where both were timed in turn."""
        return faster(self.timings)

    @property
    def split(self) -> Split:
        """Where the value that is shown first comes from."""
        return "test" if self.test is not None else "eval"

    def on(self, split: Split) -> Stat | None:
        """The metric on the rows of `split`."""
        return self.test if split == "test" else self.quality

    @property
    def leading(self) -> Stat | None:
        """The value that is shown first."""
        return self.test if self.test is not None else self.quality

    @property
    def leading_rows(self) -> int | None:
        return self.test_rows if self.test is not None else self.eval_rows

    @functools.cached_property
    def samples(self) -> Mapping[Split, Sample | None]:
        """What was measured on the rows of each split, as intervals are made of."""
        return _BySplit(self._sample)

    def _sample(self, split: Split) -> Sample | None:
        found = sample_of_runs(self.runs, split, self.metric, self.role == "teacher")
        return found or (None if self.told_by is None else sample_of_teacher([self.told_by], split, self.metric))

    @functools.cached_property
    def intervals(self) -> Mapping[Split, Interval | None]:
        """Of the metric on each split."""
        return _BySplit(self._interval)

    def _interval(self, split: Split) -> Interval | None:
        sample = self.samples[split]
        return None if sample is None else interval(sample)

    @property
    def interval(self) -> Interval | None:
        """Of the value that is shown first; None for a run that has not finished."""
        return self.intervals[self.split] if self.done else None

    @functools.cached_property
    def over_teacher(self) -> Interval | None:
        """The metric less the teacher's, on the rows of `teacher_on`."""
        if self.teacher_quality is None or not self.runs or not self.done:
            return None
        one = self.samples[self.teacher_on]
        other = sample_of_teacher(self.runs, self.teacher_on, self.metric)
        if other is None and self.teacher is not None:
            other = self.teacher.samples[self.teacher_on]
        return None if one is None or other is None else difference(one, other, self.tries[self.teacher_on])

    @property
    def name(self) -> str:
        """Label and variant together."""
        return f"{self.label} ({self.variant})" if self.variant else self.label

    @property
    def done(self) -> bool:
        return self.status == "done"

    @property
    def score(self) -> float:
        """The mean of `quality` as a number of which more is better; the least of all without one."""
        return -math.inf if self.quality is None else quality(self.metric, self.quality.mean)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs if run.seed is not None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values at full precision, on the stored scale, for CSV and JSON; None where nothing was measured."""
        quality, gain, wall = self.leading, self.gain, self.wall_seconds
        over_control = gain.interval if gain is not None else None
        return {
            "model": self.label,
            "variant": self.variant or None,
            "role": self.role,
            "status": self.status,
            "runs": [run.run_id for run in self.runs],
            "seeds": list(self.seeds),
            "metric": self.metric,
            "value": quality.mean if quality else None,
            "value_sd": quality.sd if quality else None,
            "value_n": quality.n if quality else 0,
            **_columns("value", self.interval, self.split if quality else None, self.leading_rows),
            "eval_value": self.quality.mean if self.quality else None,
            "eval_rows": self.eval_rows,
            "gain": gain.mean if gain else None,
            "gain_sd": gain.sd if gain else None,
            "gain_n": gain.n if gain else 0,
            **_columns("gain", over_control, gain.on if gain else None),
            "gain_p": over_control.p if over_control else None,
            "gain_shown": over_control.shown if over_control else None,
            "kept": self.kept,
            "over_teacher": self.over_teacher.value if self.over_teacher else None,
            **_columns("over_teacher", self.over_teacher, self.teacher_on if self.over_teacher else None),
            "over_teacher_p": self.over_teacher.p if self.over_teacher else None,
            "parameters": self.parameters,
            "megabytes": self.megabytes,
            "smaller": self.smaller,
            **{f"ms_{batch}": stat.mean for batch, stat in self.latency_ms.items()},
            **{f"faster_{batch}": factor for batch, factor in self.faster.items()},
            "timed_on": self.timings[0].where if self.timings else None,
            "steps": self.steps,
            "wall_seconds": wall.mean if wall else None,
            "metrics": {name: {"mean": stat.mean, "sd": stat.sd, "n": stat.n} for name, stat in self.metrics.items()},
            "test_metrics": {name: {"mean": stat.mean, "sd": stat.sd, "n": stat.n}
                             for name, stat in self.test_metrics.items()},
        }  # fmt: skip


class _BySplit(dict[Split, _T]):
    """A value of each split, made when it is asked for: scores of rows are read for what is shown."""

    def __init__(self, make: Callable[[Split], _T]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, split: Split) -> _T:
        self[split] = self._make(split)
        return self[split]


def _columns(name: str, found: Interval | None, on: Split | None, rows: int | None = None) -> dict[str, Any]:
    """The interval of a value: low, high, its level, and the rows and seeds that it counts."""
    return {
        f"{name}_low": found.low if found else None,
        f"{name}_high": found.high if found else None,
        f"{name}_level": found.level if found and found.low is not None else None,
        f"{name}_on": on,
        f"{name}_rows": found.rows if found else rows,
        f"{name}_seeds": found.seeds if found else None,
    }


def group_runs(runs: Sequence[RunRecord], notes: list[str]) -> list[tuple[RunRecord, ...]]:
    """Finished runs by configuration without seed, ordered by seed; each unfinished run alone."""
    groups: dict[str, dict[Any, RunRecord]] = {}
    repeated = 0
    for run in runs:
        key = json.dumps([run.role, run.settings], sort_keys=True, default=str)
        seed: Any = run.seed
        if run.status != "done":
            key, seed = f"{key} {run.folder}", None
        elif seed is None:
            seed = str(run.folder)
        seeds = groups.setdefault(key, {})
        if seed in seeds:
            repeated += 1
        else:
            seeds[seed] = run
    if repeated:
        notes.append(f"Left out of the means, as they repeat configuration and seed of another run: {repeated} run(s).")
    return [
        tuple(seeds[seed] for seed in sorted(seeds, key=lambda seed: (isinstance(seed, str), seed)))
        for seeds in groups.values()
    ]


def row_of(runs: tuple[RunRecord, ...]) -> Row:
    """What one group measured, before it is related to others."""
    first = runs[0]
    bests = [run.best for run in runs]
    metric = next((best.metric for best in bests if best), None) or str(first.task.get("metric") or "accuracy")
    names = dict.fromkeys(name for best in bests if best for name in best.metrics if name != "rows")
    metrics = {name: Stat.of(best.metrics.get(name) for best in bests if best) for name in names}
    tests = [run.facts.test.metrics for run in runs if run.facts.test is not None]
    tested = dict.fromkeys(name for test in tests for name in test if name != "rows")
    test_metrics = {name: Stat.of(test.get(name) for test in tests) for name in tested}
    steps = first.facts.steps
    if steps is None:
        lines: list[LogLine | Evaluation] = [*first.train, *first.evals]
        steps = max((line.step for line in lines if line.step is not None), default=None)
    return Row(
        label=_label(first),
        variant="",
        role=first.role,
        status=first.status,
        runs=runs,
        metric=metric,
        quality=Stat.of(best.value for best in bests if best and best.metric == metric),
        metrics={name: stat for name, stat in metrics.items() if stat},
        eval_rows=first.eval_rows,
        parameters=first.facts.student.parameters,
        megabytes=first.facts.student.megabytes,
        timings=alike(run.latency for run in runs if run.latency is not None),
        steps=steps,
        wall_seconds=Stat.of(run.facts.wall_seconds for run in runs),
        test=Stat.of(value_on(run, "test", metric) for run in runs),
        test_metrics={name: stat for name, stat in test_metrics.items() if stat},
        test_rows=next((rows for run in runs if (rows := rows_of(run, "test")) is not None), None),
    )


def _label(run: RunRecord) -> str:
    """The model in a few words: its description, else its architecture and size, else how the config names it."""
    student = run.facts.student
    if run.role == "teacher":
        base = run.facts.base_model or dict_at(run.config, "teacher").get("model")
        if base:
            return model_name(str(base))
    if student.description:
        return student.description
    if student.architecture and student.layers and student.hidden:
        family = student.architecture.split("For")[0].removesuffix("Model")
        return f"{family} {student.layers}x{student.hidden}"
    section = dict_at(run.config, "student")
    shape = section.get("shape")
    if isinstance(shape, str):
        return shape
    if isinstance(shape, Mapping) and shape.get("layers") and shape.get("hidden"):
        return f"{shape['layers']}x{shape['hidden']}"
    return model_name(str(section["model"])) if section.get("model") else run.run_id


def model_name(model: str) -> str:
    """Last part of a hub name or folder; run folders keep their model in `student/`, which says nothing."""
    parts = [part for part in model.replace("\\", "/").split("/") if part not in ("", "student")]
    return parts[-1] if parts else model

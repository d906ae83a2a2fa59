"""Rows of a comparison: runs grouped by configuration, with their values over seeds.

Only finished runs are grouped; an unfinished run is a row of its own with its best so far. `±` is the standard
deviation over seeds (n - 1 in the denominator), absent for a single seed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from raybrew.config.judge import quality
from raybrew.reports.collect import Role, RunRecord, RunStatus, dict_at, integer, number
from raybrew.reports.timing import Timing, alike, faster, timing_of

__all__ = ["Gain", "Row", "Stat", "evaluation_key", "group_runs", "model_name", "row_of", "settings_of"]


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
    """Quality of a student less that of the same student trained without a teacher."""

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
    timings: tuple[Timing, ...] = ()
    """Measurements of this model under the same conditions, one of each round."""
    gain: Gain | None = None
    kept: float | None = None
    """Share of the teacher's quality; None over a teacher that has next to none (`kept_share`)."""
    smaller: float | None = None
    """The teacher's parameters divided by this model's."""
    teacher_quality: float | None = None
    teacher_ms: dict[str, float] = dataclasses.field(default_factory=dict)
    """The teacher's time in the rounds of `timings`; empty if its own row tells another time."""
    timed_alike: bool = True
    """Whether the times compare with those of most rows, as they were measured under the same conditions."""

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
        quality, gain, wall = self.quality, self.gain, self.wall_seconds
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
            "gain": gain.mean if gain else None,
            "gain_sd": gain.sd if gain else None,
            "gain_n": gain.n if gain else 0,
            "kept": self.kept,
            "parameters": self.parameters,
            "megabytes": self.megabytes,
            "smaller": self.smaller,
            **{f"ms_{batch}": stat.mean for batch, stat in self.latency_ms.items()},
            **{f"faster_{batch}": factor for batch, factor in self.faster.items()},
            "timed_on": self.timings[0].conditions.text if self.timings else None,
            "steps": self.steps,
            "wall_seconds": wall.mean if wall else None,
            "metrics": {name: {"mean": stat.mean, "sd": stat.sd, "n": stat.n} for name, stat in self.metrics.items()},
        }


#: Sections of a config that decide what a run computes, for run folders without an identity.
_SECTIONS = ("task", "data", "teacher", "student", "distill", "train")


def group_runs(runs: Sequence[RunRecord], notes: list[str]) -> list[tuple[RunRecord, ...]]:
    """Finished runs by configuration without seed, ordered by seed; each unfinished run alone."""
    groups: dict[str, dict[Any, RunRecord]] = {}
    repeated = 0
    for run in runs:
        key = json.dumps([run.role, settings_of(run)], sort_keys=True, default=str)
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


def settings_of(run: RunRecord) -> dict[str, Any]:
    """What the run computes, without its seed."""
    settings = dict(dict_at(run.identity, "identity") or {name: run.config.get(name) for name in _SECTIONS})
    section = settings.get("teacher") if run.verb == "finetune" else None
    if isinstance(section, Mapping) and isinstance(section.get("finetune"), Mapping):
        settings["teacher"] = {**section, "finetune": _without(section["finetune"], "seed")}
    elif isinstance(settings.get("train"), Mapping):
        settings["train"] = _without(settings["train"], "seed")
    return settings


def evaluation_key(run: RunRecord) -> str:
    """Equal for runs judged by the same task, or tasks, on the same rows."""
    settings = settings_of(run)
    task = dict_at(settings, "task")
    judged: Any = _judged(settings.get("task"), dict_at(settings, "data"))
    if task.get("kind") == "multi":
        parts = dict_at(task, "tasks")
        judged = {name: _judged(dict_at(parts, name, "task"), dict_at(parts, name, "data")) for name in parts}
    return json.dumps(judged, sort_keys=True, default=str)


def _judged(task: Any, data: Mapping[str, Any]) -> list[Any]:
    return [task, {name: data.get(name) for name in ("eval", "eval_rows", "columns")} if data else {}]


def row_of(runs: tuple[RunRecord, ...]) -> Row:
    """What one group measured, before it is related to others."""
    first = runs[0]
    summaries = [run.summary or {} for run in runs]
    student = dict_at(summaries[0], "student")
    bests = [run.best for run in runs]
    configured = str(dict_at(first.config, "task").get("metric") or "accuracy")
    metric = next((best.metric for best in bests if best), configured)
    names = dict.fromkeys(name for best in bests if best for name in best.metrics if name != "rows")
    metrics = {name: Stat.of(best.metrics.get(name) for best in bests if best) for name in names}
    lines = [record for record in (*first.train, *first.evals) if integer(record.get("step")) is not None]
    steps = integer(summaries[0].get("steps"))
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
        parameters=integer(student.get("parameters")),
        megabytes=number(student.get("megabytes")),
        timings=alike(timing for run in runs if (timing := timing_of(run)) is not None),
        steps=steps if steps is not None else max((record["step"] for record in lines), default=None),
        wall_seconds=Stat.of(number(summary.get("wall_seconds")) for summary in summaries),
    )


def _label(run: RunRecord) -> str:
    """The model in a few words: its description, else its architecture and size, else how the config names it."""
    summary = run.summary or {}
    student = dict_at(summary, "student")
    if run.role == "teacher":
        base = summary.get("base_model") or dict_at(run.config, "teacher").get("model")
        if base:
            return model_name(str(base))
    if student.get("description"):
        return str(student["description"])
    if student.get("architecture") and student.get("layers") and student.get("hidden"):
        family = str(student["architecture"]).split("For")[0].removesuffix("Model")
        return f"{family} {student['layers']}x{student['hidden']}"
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


def _without(section: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name != key}

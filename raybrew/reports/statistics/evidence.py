"""What was measured on which rows: samples for intervals, read from the summaries and row scores of runs."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from raybrew.config.kinds import known_task
from raybrew.records.runs import RunRecord, dict_at
from raybrew.records.summary import HeldOut
from raybrew.reports.numbers import PERCENT_METRICS
from raybrew.reports.statistics.intervals import Sample, row_weights

if TYPE_CHECKING:
    from raybrew.reports.statistics.intervals import Array
    from raybrew.tasks.scores import RowScores

__all__ = [
    "CHUNK",
    "SPLITS",
    "Split",
    "resampled_metrics",
    "rows_of",
    "sample_of_runs",
    "sample_of_teacher",
    "scores_of",
    "teacher_value",
    "test_of",
    "value_on",
]

#: `test` chose nothing; `eval` chose checkpoints and configurations.
Split = Literal["test", "eval"]
SPLITS: tuple[Split, ...] = ("test", "eval")

#: Weights that are multiplied at once.
CHUNK = 4_000_000
#: Weights up to this number are kept as floats.
_KEPT = 4 * CHUNK
#: Row scores that differ from the summary by more were written by something else.
_CLOSE = 1e-3


def value_on(run: RunRecord, split: Split, metric: str) -> float | None:
    """The metric of the run's best checkpoint on data.test or data.eval; None where it was not measured."""
    if split == "eval":
        return run.best.value if run.best is not None and run.best.metric == metric else None
    test = run.facts.test
    if test is None or metric in test.metrics:
        return None if test is None else test.metrics[metric]
    return test.value if test.metric == metric else None


def rows_of(run: RunRecord, split: Split) -> int | None:
    """How many rows that value counts."""
    if split == "eval":
        return run.eval_rows
    return None if run.facts.test is None else run.facts.test.rows


def sample_of_runs(runs: Sequence[RunRecord], split: Split, metric: str, fixed: bool = False) -> Sample | None:
    """What `runs`, seeds of one configuration, measured on `split`; runs without that value are left out."""
    found = [(run, value) for run in runs if (value := value_on(run, split, metric)) is not None]
    if not found:
        return None
    resampled = [_matching(_resampled_of(run, split), metric, value) for run, value in found]
    return _sample(
        metric,
        tuple(value for _, value in found),
        rows_of(found[0][0], split),
        resampled,
        _share_of(found[0][0]) == metric,
        fixed,
    )


def test_of(runs: Sequence[RunRecord]) -> HeldOut | None:
    """What the first of `runs` that was scored on data.test says of it; None if none was."""
    return next((run.facts.test for run in runs if run.facts.test is not None), None)


def teacher_value(run: RunRecord, split: Split, metric: str) -> float | None:
    """What the teacher of `run` reaches on its rows, by the summary of `run`."""
    facts = run.facts.teacher
    if facts is None or split == "eval":
        return None if facts is None else facts.metrics.get(metric)
    return None if facts.test is None else facts.test.metrics.get(metric)


def sample_of_teacher(runs: Sequence[RunRecord], split: Split, metric: str) -> Sample | None:
    """What the teacher of `runs` measured on their rows, by the first summary that says so."""
    run = next((run for run in runs if teacher_value(run, split, metric) is not None), None)
    value = None if run is None else teacher_value(run, split, metric)
    if run is None or value is None:
        return None
    test = run.facts.teacher.test if run.facts.teacher is not None else None
    rows = rows_of(run, split) if split == "eval" else test.rows if test is not None else None
    resampled = _matching(_resampled_of(run, f"teacher-{split}"), metric, value)
    share = _share_of(run) == metric
    return _sample(metric, (value,), rows, [resampled], share, fixed=True)


def scores_of(run: RunRecord, name: str) -> dict[str, RowScores]:
    """Row scores `name` (`eval`, `test`, `teacher-eval`, `teacher-test`) by task, "" being the only one."""
    from raybrew.tasks.scores import load_scores

    found = {task: load_scores(path) for task, path in _files(run.folder, name).items()}
    return {task: scores for task, scores in found.items() if scores is not None and len(scores)}


@dataclasses.dataclass(frozen=True)
class _Resampled:
    """Metrics of one model on some rows, and on resamples of them."""

    key: str
    rows: int
    values: Mapping[str, float]
    drawn: Mapping[str, Array]
    correct: Array | None


def _sample(
    metric: str,
    values: tuple[float, ...],
    rows: int | None,
    resampled: Sequence[_Resampled | None],
    share: bool,
    fixed: bool,
) -> Sample:
    import numpy as np

    bounded = metric in PERCENT_METRICS or share
    known = [one for one in resampled if one is not None]
    plain = Sample(values, rows, share=share, bounded=bounded, fixed=fixed)
    if len(known) < len(values) or len({one.key for one in known}) > 1:
        return plain
    return dataclasses.replace(
        plain,
        rows=known[0].rows,
        key=known[0].key,
        drawn=np.stack([one.drawn[metric] for one in known]),
        correct=known[0].correct if share and len(known) == 1 else None,
    )


def _matching(found: _Resampled | None, metric: str, value: float) -> _Resampled | None:
    """`found` if it is of the model whose `value` is in the summary."""
    if found is None or metric not in found.drawn:
        return None
    return found if math.isclose(found.values[metric], value, rel_tol=_CLOSE, abs_tol=_CLOSE) else None


def _resampled_of(run: RunRecord, name: str) -> _Resampled | None:
    files = _files(run.folder, name)
    stamps = tuple((task, str(path), path.stat().st_mtime_ns) for task, path in sorted(files.items()))
    return _resampled(stamps, json.dumps(_own_metrics(run), sort_keys=True)) if stamps else None


def _files(folder: Path, name: str) -> dict[str, Path]:
    """The files of row scores by task."""
    whole = folder / "scores" / f"{name}.npz"
    if whole.is_file():
        return {"": whole}
    return {path.parent.name: path for path in sorted(folder.glob(f"scores/*/{name}.npz"))}


def _own_metrics(run: RunRecord) -> dict[str, str]:
    """Task -> the metric that it adds to the mean, of several tasks."""
    tasks = dict_at(run.task, "tasks")
    return {str(task): str(dict_at(tasks, task, "task").get("metric") or "") for task in tasks}


@functools.lru_cache(maxsize=1024)
def _resampled(files: tuple[tuple[str, str, int], ...], own: str) -> _Resampled | None:
    """Metrics on resamples, of several tasks under `task.metric`, and their `mean`."""
    import numpy as np

    from raybrew.tasks.scores import load_scores

    scores = {task: load_scores(Path(path)) for task, path, _ in files}
    if any(one is None or not len(one) for one in scores.values()):
        return None
    values: dict[str, float] = {}
    drawn: dict[str, Array] = {}
    known = {task: one for task, one in scores.items() if one is not None}
    for task, one in known.items():
        prefix = f"{task}." if task else ""
        values |= {f"{prefix}{name}": value for name, value in one.metrics().items()}
        drawn |= {f"{prefix}{name}": value for name, value in resampled_metrics(one, task).items()}
    # Tasks without rows have no part in the mean.
    means = [f"{task}.{metric}" for task, metric in json.loads(own).items() if task in known]
    if len(means) == len(known) and all(name in drawn for name in means):
        values["mean"] = sum(values[name] for name in means) / len(means)
        shortest = min(len(drawn[name]) for name in means)
        drawn["mean"] = np.mean([drawn[name][:shortest] for name in means], axis=0)
    first = next(iter(known.values()))
    return _Resampled(
        " ".join(one.key for one in known.values()),
        sum(map(len, known.values())),
        values,
        drawn,
        first.correct if len(known) == 1 else None,
    )


@functools.lru_cache(maxsize=2)
def _as_floats(rows: int, salt: str) -> Array:
    """`row_weights` as products need them, for many models on the same rows."""
    return row_weights(rows, salt).astype("float32")


def resampled_metrics(scores: RowScores, salt: str = "") -> dict[str, Array]:
    """Each metric on the resamples of `row_weights`, a part of them at a time."""
    import numpy as np

    weights = row_weights(len(scores), salt)
    if weights.size <= _KEPT:
        return scores.metrics(_as_floats(len(scores), salt))
    size = max(1, CHUNK // max(1, len(scores)))
    parts = [scores.metrics(weights[start : start + size]) for start in range(0, len(weights), size)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _share_of(run: RunRecord) -> str | None:
    """The metric of the run's task that is the share of rows that are right."""
    spec = known_task(run.task.get("kind"))
    return spec.share if spec is not None else None

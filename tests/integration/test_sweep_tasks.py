"""Sweeps of every kind of task, of several tasks and of students that differ in kind, by Ray Tune on one cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from family_models import rows_of, save_family_teacher

import raybrew
from raybrew.config import Experiment
from raybrew.config.loading import load_experiment
from raybrew.config.views import task_views
from raybrew.records.sweeps import CANDIDATE, CONTROL
from raybrew.runtime import ray_runtime
from raybrew.store.reader import Store

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(200)]

#: Kind -> settings of the task, labels of the teacher, and what a prediction of it has.
TASKS: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "classification": ({"max_length": 24}, ("no", "yes"), "label"),
    "tagging": ({"max_length": 24}, ("O", "B-X", "I-X"), "tags"),
    "qa": ({"max_length": 60, "stride": 8, "max_question": 24}, ("LABEL_0", "LABEL_1"), "answer"),
    "regression": ({"max_length": 24}, ("LABEL_0",), "score"),
    "multilabel": ({"max_length": 24}, ("a", "b", "c"), "labels"),
}
TEMPERATURES = {"distill.temperature": [1, 4]}
#: Two configurations of students, each with a control of its own.
STUDENTS = {"student": [{"shape": {"layers": 1}}, {"shape": "BiGRU", "vocabulary": {}}]}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One for all: sweeps that find this process connected stay with it."""
    with ray_runtime("tests", num_cpus=2, dashboard=False):
        yield


def task_in(folder: Path, kind: str) -> dict[str, Any]:
    """Rows and an untrained teacher of a task, as sections of an experiment."""
    folder.mkdir()
    settings, labels, _ = TASKS[kind]
    data = {}
    for part, count in (("train", 24), ("eval", 8)):
        path = folder / f"{part}.jsonl"
        rows_of(kind if kind in ("tagging", "qa") else "classification", path, count)
        if kind in ("regression", "multilabel"):
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            for number, row in enumerate(rows):
                row["label"] = number / count if kind == "regression" else list(labels[: number % 3])
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        data[part] = str(path)
    teacher = {"model": save_family_teacher("bert", folder / "teacher", kind, labels)}
    return {"task": {"kind": kind, **settings}, "data": data, "teacher": teacher}


def experiment_in(folder: Path, kinds: tuple[str, ...], space: dict[str, Any]) -> Experiment:
    parts = {kind: task_in(folder / kind, kind) for kind in kinds}
    several = {"task": {"kind": "multi", "tasks": parts}}
    values = {
        "name": "-".join(kinds),
        **(several if len(kinds) > 1 else parts[kinds[0]]),
        "student": {"shape": {"layers": 1}},
        "train": {"max_steps": 4, "batch_size": 8, "learning_rate": 1e-3, "threads": 1, "device": "cpu"},
        "store": {"storage_path": str(folder / "runs"), "launcher": "local"},
        "sweep": {"space": space, "search": "grid", "concurrency": 2},
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return load_experiment(path)


@pytest.mark.parametrize(
    ("kinds", "space", "controls"),
    [
        (("tagging",), STUDENTS, 2),
        (("qa",), TEMPERATURES, 1),
        (("regression",), TEMPERATURES, 1),
        (("multilabel",), TEMPERATURES, 1),
        (("classification", "tagging"), STUDENTS, 2),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_a_sweep_from_its_space_to_the_best_students_predictions(
    kinds: tuple[str, ...], space: dict[str, Any], controls: int, cluster: None, tmp_path: Path
) -> None:
    experiment = experiment_in(tmp_path, kinds, space)
    result = raybrew.sweep(experiment)
    assert not result.failed, [trial.error for trial in result.failed]
    record = result.record
    assert record.closed == "finished"
    assert sorted((trial.role, trial.status) for trial in record.trials) == sorted(
        [(CANDIDATE, "done")] * 2 + [(CONTROL, "done")] * controls
    )
    assert len(record.teachers) == len(kinds)
    stores = [Store.open(path) for path in (tmp_path / "runs" / "store").iterdir()]
    computed = sum(teacher.computed for teacher in record.teachers)
    assert 0 < computed == sum(store.num_rows for store in stores), "every row went through a teacher once"

    # What the leaderboard says is what the runs say.
    summaries = {trial.run: summary_of(result.path.parent / trial.run) for trial in record.trials}
    for trial in record.trials:
        assert summaries[trial.run]["steps"] == 4
        assert trial.value == summaries[trial.run]["best"]["value"]
        assert summaries[trial.run]["best"]["metric"] == experiment.task.metric
    rows = json.loads((result.path / "report.json").read_text(encoding="utf-8"))
    shown = {run: row["value"] for row in rows for run in row["runs"]}
    assert shown == {run: summary["best"]["value"] for run, summary in summaries.items()}
    assert " student: " in result.report.read_text(encoding="utf-8")

    best = result.best()
    assert best.value == max(trial.value for trial in record.trials if trial.role == CANDIDATE)
    assert best.parameters == summaries[best.run.name]["student"]["parameters"]
    of_best = load_experiment(best.run / "config.yaml")
    planned = raybrew.plan(of_best).student
    assert planned is not None
    assert planned.parameters == best.parameters, "a plan of the best tells what it is made of"
    for _, task, view in task_views(experiment):
        kind = view.task.kind
        model = str(best.student / task)
        new = str(tmp_path / kind / "eval.jsonl")
        predictions = raybrew.predict(experiment, new, model=model, task=task or None)
        assert len(predictions) == 8
        assert all(TASKS[kind][2] in row for row in predictions)
        assert predictions == raybrew.predict(of_best, new, task=task or None), "exported is what the run has"


def summary_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return found

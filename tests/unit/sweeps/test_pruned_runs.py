"""Runs whose students a sweep has removed, and the steps of real controls: small trainings in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from family_models import rows_of, without_latency
from safetensors.torch import load_file

import raybrew
from raybrew.config.loading import build_experiment
from raybrew.errors import Interrupted, RunError
from raybrew.pipeline.reporter import LineReporter
from raybrew.records.runs import load_run
from raybrew.sweeps.controls import Controls
from raybrew.sweeps.jobs import make_job
from raybrew.sweeps.prepare import control_steps
from raybrew.training.run_folder import RunFolder
from raybrew.verbs.distill import distill
from unit.models.test_families import experiment_of


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    without_latency(monkeypatch)


def test_distill_trains_a_pruned_student_again(tmp_path: Path) -> None:
    experiment = experiment_of(
        tmp_path, "bert", "classification", train={"max_steps": 4, "eval_steps": 2, "batch_size": 4, "threads": 1}
    )
    first = distill(experiment)
    weights = load_file(first.student / "model.safetensors")
    run = RunFolder(first.path, first.path.name)
    assert run.prune_student("the sweep sweep-x") > 0
    assert not first.student.exists()
    summary = run.summary()
    assert summary is not None
    assert summary.pruned is not None
    assert summary.pruned.by == "the sweep sweep-x"
    assert load_run(run.path).best is not None, "what it measured stays"
    with pytest.raises(RunError, match="the sweep sweep-x removed"):
        raybrew.evaluate(experiment)

    # As trials of another sweep ask: its numbers will do.
    assert distill(experiment, needs_student=False).already_done
    with pytest.raises(Interrupted):
        distill(experiment, on_evaluation=lambda metrics: True)
    assert first.student.is_dir()
    assert not run.has_student, "half of a training"

    lines: list[str] = []
    again = distill(experiment, reporter=LineReporter(lines.append))
    assert any("the sweep sweep-x removed the student" in line and "trained again" in line for line in lines), lines
    assert not again.already_done
    assert "pruned" not in again.summary
    assert run.has_student
    assert again.summary["best"] == first.summary["best"]
    trained = load_file(again.student / "model.safetensors")
    assert all(bool((trained[name] == tensor).all()) for name, tensor in weights.items())
    assert distill(experiment).already_done


def test_a_student_that_somebody_removed_is_trained_again(tmp_path: Path) -> None:
    experiment = experiment_of(tmp_path, "bert", "classification")
    first = distill(experiment)
    for path in first.student.iterdir():
        path.unlink()
    assert not distill(experiment).already_done
    assert (first.student / "model.safetensors").is_file()


@pytest.mark.parametrize("task", ["classification", "tagging"])
def test_a_control_takes_the_steps_and_evaluations_of_its_student(task: str, tmp_path: Path) -> None:
    """Of tagging a row may be several windows, which are what steps are made of."""
    values: dict[str, Any] = experiment_of(
        tmp_path,
        "bert",
        task,
        distill={"temperature": 2.0, "hard_label_weight": 0.5},
        train={"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "threads": 1},
        sweep={"space": {"distill.temperature": [1, 2]}},
    ).written()
    values["data"] |= {"unlabeled": rows_of(task, tmp_path / "more.jsonl", 17)}
    values["task"] |= {"max_length": 12}
    base = build_experiment(values)
    job = make_job(base, {"distill.temperature": 2}, 0, "group")
    labels, teacher = Controls(base, "group", control_steps()).jobs(job, 1)
    runs = [distill(one.experiment, score_test=False) for one in (job, labels, teacher)]
    steps = [[line.step for line in load_run(run.path).evals] for run in runs]
    assert steps[0] == steps[1] == steps[2]
    assert len(steps[0]) == 2
    assert {run.summary["steps"] for run in runs} == {steps[0][-1]}

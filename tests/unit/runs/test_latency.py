"""What runs tell of times: student and teachers in one round, by the process that trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_teacher import make_teacher
from torch import nn

import raybrew
from raybrew.config import Experiment
from raybrew.config.loading import build_experiment
from raybrew.errors import ModelError
from raybrew.models.latency import Timings
from raybrew.models.loading import ModelSource, load_config
from raybrew.records.runs import load_run
from raybrew.runs.result import RunResult
from raybrew.sweeps.trial import _distill

#: Names in a round, each with the layers of its modules.
Round = dict[str, list[int]]


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[Round]:
    """What is timed; a model takes a millisecond per layer."""
    found: list[Round] = []

    def measure(models: Mapping[str, Callable[[], Sequence[nn.Module]]], **options: Any) -> Timings:
        layers = {name: [module.config.num_hidden_layers for module in build()] for name, build in models.items()}  # type: ignore[union-attr]
        found.append(layers)
        times = {name: {"batch_1": float(sum(each)), "batch_32": 0.5} for name, each in layers.items()}
        device: torch.device = options["device"]
        where = {"device": str(device), "machine": "here", "threads": 1, "rounds": 5, "round": f"r{len(found)}"}
        return Timings(times, precision=options["precision"], tokens=options["length"], **where)

    monkeypatch.setattr("raybrew.runs.latency.measure_in_turn", measure)
    return found


def experiment(tmp_path: Path, **changes: Any) -> Experiment:
    for name in ("teacher", "second"):
        if not (tmp_path / name).exists():
            make_teacher(tmp_path / name)
    rows = tmp_path / "rows.tsv"
    rows.write_text("text\tlabel\n" + "".join(f"kola mane {number}\t{number % 3}\n" for number in range(30)))
    values: dict[str, Any] = {
        "name": "x",
        "task": {"kind": "classification", "max_length": 16},
        "data": {"train": str(rows), "eval": str(rows)},
        "teacher": {"model": str(tmp_path / "teacher")},
        "student": {"shape": {"layers": 1, "hidden": 32, "heads": 2, "feed_forward": 48}},
        "train": {"epochs": 1, "device": "cpu"},
        "store": {"storage_path": str(tmp_path / "runs")},
    }
    return build_experiment({**values, **changes})


def latency_of(run: RunResult) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.path / "summary.json").read_text())["latency"]
    return found


def test_student_and_teacher_are_timed_in_one_round(tmp_path: Path, rounds: list[Round]) -> None:
    run = raybrew.distill(experiment(tmp_path))
    assert rounds == [{"student": [1], "teacher": [2]}]
    latency = latency_of(run)
    assert (latency["student"]["batch_1"], latency["teacher"]["batch_1"]) == (1.0, 2.0)
    assert {name: latency[name] for name in ("device", "precision", "alone", "round")} == {
        "device": "cpu",
        "precision": "fp32",
        "alone": True,
        "round": "r1",
    }
    assert run.summary["latency_ms"] == {**latency["student"], "tokens": latency["tokens"]}
    assert load_config(ModelSource(str(run.path / "architecture"))).num_hidden_layers == 1
    assert "latency_ms" not in run.summary["teacher"], "a teacher has no time apart from a round"


def test_a_control_is_timed_beside_the_teacher_that_it_does_not_learn_from(tmp_path: Path, rounds: list[Round]) -> None:
    raybrew.distill(experiment(tmp_path, distill={"kd_weight": 0.0, "hard_label_weight": 1.0}))
    assert rounds == [{"student": [1], "teacher": [2]}]


def test_several_teachers_take_the_time_of_all(tmp_path: Path, rounds: list[Round]) -> None:
    members = {name: {"model": str(tmp_path / name)} for name in ("teacher", "second")}
    run = raybrew.distill(experiment(tmp_path, teacher={"members": members}))
    assert rounds == [{"student": [1], "teacher": [2, 2]}]
    assert latency_of(run)["teacher"]["batch_1"] == 4.0


def test_of_several_tasks_one_is_timed_and_named(tmp_path: Path, rounds: list[Round]) -> None:
    whole = experiment(tmp_path).plain()
    part = {"task": {"kind": "classification", "max_length": 16}, "data": whole["data"]}
    tasks = {"plain": part, "taught": {**part, "teacher": {"model": str(tmp_path / "teacher")}}}
    run = raybrew.distill(
        experiment(
            tmp_path,
            task={"kind": "multi", "tasks": tasks},
            data={},
            teacher={},
            student={"model": str(tmp_path / "second")},
            distill={"kd_weight": 0.0, "hard_label_weight": 1.0},
        )
    )
    assert rounds == [{"student": [2], "teacher": [2]}]
    assert latency_of(run)["task"] == "taught"
    assert (run.path / "architecture" / "config.json").is_file()


def test_a_fine_tuned_teacher_is_timed_by_itself(tmp_path: Path, rounds: list[Round]) -> None:
    teacher = {"model": str(tmp_path / "teacher"), "finetune": {"epochs": 1, "device": "cpu"}}
    run = raybrew.finetune(experiment(tmp_path, teacher=teacher))
    assert rounds == [{"student": [2]}]
    assert latency_of(run)["teacher"] is None


def test_evaluating_a_teacher_times_nothing(tmp_path: Path, rounds: list[Round]) -> None:
    found = raybrew.evaluate(experiment(tmp_path), model="teacher")
    assert rounds == []
    assert not any("latency" in name for name in found.plain())


def test_a_trial_of_a_sweep_is_not_alone(tmp_path: Path, rounds: list[Round]) -> None:
    whole = experiment(tmp_path)
    threads = torch.get_num_threads()
    try:
        _distill(whole, "raybrew sweep x.yaml", lambda metrics: False, needs_student=True, device="cpu")
    finally:
        torch.set_num_threads(threads)
    (run,) = (tmp_path / "runs" / "x").glob("distill-*")
    assert json.loads((run / "summary.json").read_text())["latency"]["alone"] is False


def test_a_time_that_cannot_be_measured_costs_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Timings:
        raise ModelError("the model does not fit on cuda: out of memory")

    monkeypatch.setattr("raybrew.runs.latency.measure_in_turn", broken)
    run = raybrew.distill(experiment(tmp_path))
    assert latency_of(run) is None
    assert run.summary["latency_ms"] == {}
    assert any("out of memory" in str(event.message) for event in load_run(run.path).events)

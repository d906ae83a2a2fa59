"""Each family of the catalogue takes a part from outside the package, and nothing in the package knows it.

Signals have one form, dense, until payloads have codecs: a form of one's own belongs here then.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import raybrew
from raybrew.config import Experiment
from raybrew.config.loading import build_experiment, load_experiment
from raybrew.config.space import planned_configurations
from raybrew.errors import ConfigError
from raybrew.sweeps.jobs import canonical, make_job
from raybrew.sweeps.search import build_source
from tests.tiny_teacher import make_rows, make_teacher

EXTENSION = Path(__file__).with_name("extension.py")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The module of the user's in the folder raybrew runs in, which is on no path; its name."""
    name = f"own_parts_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(EXTENSION.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    make_teacher(tmp_path / "teacher")
    with (tmp_path / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in make_rows(24).select(["text", "label"]).to_pylist():
            file.write(json.dumps(row) + "\n")
    return name


def experiment_of(own: str, **sections: Any) -> Experiment:
    values: dict[str, Any] = {
        "name": "own",
        "task": {"kind": "classification", "max_length": 24, "labels": ["0", "1", "2"]},
        "data": {"train": "rows.jsonl", "eval": "rows.jsonl"},
        "teacher": {"model": "teacher", "source": "live"},
        "student": {"shape": {"layers": 2}},
        "train": {"epochs": 1, "batch_size": 8, "threads": 1, "learning_rate": 1e-3, "device": "cpu"},
        "store": {"storage_path": "runs", "launcher": "local"},
    }
    return build_experiment(values | sections)


def trained(experiment: Experiment) -> raybrew.RunResult:
    """The run, which a file of the experiment trains alike: every name in it is read again."""
    again = Path("again.yaml")
    again.write_text(experiment.to_yaml(), encoding="utf-8")
    assert load_experiment(again).run_id("distill") == experiment.run_id("distill")
    return raybrew.distill(experiment, report=False)


def test_a_file_with_parts_from_outside_is_valid(own: str) -> None:
    file = Path("experiment.yaml")
    sections = {
        "task": {"kind": f"{own}:MOOD", "labels": ["0", "1", "2"]},
        "student": {"shape": f"{own}:WIDE", "init": f"{own}:halved", "init_layers": f"{own}:crossed"},
        "distill": {
            "kd_loss": {"kind": f"{own}:total_variation"},
            "matches": [{"loss": f"{own}:absolute", "layers": f"{own}:crossed"}],
        },
        "tracking": {"others": {f"{own}:NOTEBOOK": {"file": "notes.jsonl"}}},
        "sweep": {
            "space": {"distill.temperature": [1, 2]},
            "search": f"{own}:BACKWARDS",
            "scheduler": f"{own}:IMPATIENT",
        },
    }
    file.write_text(experiment_of(own, **sections).to_yaml(), encoding="utf-8")
    from raybrew.cli.main import app

    result = CliRunner().invoke(app, ["validate", str(file)])
    assert result.exit_code == 0, result.output
    assert own in json.dumps(load_experiment(file).identity("distill")), "a run's name depends on the parts"


def test_losses_rules_shapes_and_initialisations(own: str) -> None:
    distill = {
        "kd_loss": {"kind": f"{own}:total_variation"},
        "matches": [{"loss": f"{own}:absolute", "layers": f"{own}:crossed"}],
    }
    student = {"shape": f"{own}:WIDE", "init": f"{own}:halved", "init_layers": f"{own}:crossed"}
    run = trained(experiment_of(own, distill=distill, student=student))
    (line, *_) = [json.loads(each) for each in (run.path / "metrics.jsonl").read_text().splitlines() if "train" in each]
    assert {"loss/absolute_hidden.1-2", "loss/absolute_hidden.2-1"} <= line.keys()
    config = json.loads((run.student / "config.json").read_text())
    assert (config["num_hidden_layers"], config["intermediate_size"]) == (2, 40)
    assert "halved, started from teacher layers 2, 1" in (run.path / "metrics.jsonl").read_text()


def test_a_method(own: str) -> None:
    experiment = experiment_of(own, distill={"method": f"{own}:GENTLE", "temperature": 5.0})
    assert (experiment.distill.kd_weight, experiment.distill.temperature) == (0.2, 5.0)
    plain = experiment_of(own, distill={"temperature": 5.0, "kd_weight": 0.2, "hard_label_weight": 0.8})
    assert experiment.run_id("distill") == plain.run_id("distill"), "a method is what it sets"
    assert trained(experiment).metrics
    with pytest.raises(ConfigError, match="has no such part"):
        experiment_of(own, distill={"method": f"{own}:GENTLE", "emd": {}})


def test_a_task(own: str) -> None:
    task = {"kind": f"{own}:MOOD", "max_length": 24, "labels": ["0", "1", "2"]}
    run = trained(experiment_of(own, task=task, distill={"hard_label_weight": 0.5}))
    assert "accuracy" in run.metrics
    with pytest.raises(ConfigError) as caught:
        experiment_of(own, task=task | {"metric": "f1", "scheme": "bio"})
    first, second = sorted(map(str, caught.value.problems))
    assert first.startswith("task.metric: given 'f1'")
    assert second.startswith("task.scheme: unknown key")
    several = {"kind": "multi", "tasks": {name: _part(kind) for name, kind in (("a", f"{own}:MOOD"), ("b", "qa"))}}
    built = build_experiment({"name": "x", "task": several, "student": {"shape": "T3"}}, check_files=False)
    assert type(built.task.tasks["a"].task).__name__ == "MoodConfig"  # type: ignore[union-attr]
    assert built.plain()["task"]["tasks"]["a"]["task"]["labels"] is None


def _part(kind: str) -> dict[str, Any]:
    return {"task": {"kind": kind}, "data": {"train": "rows.jsonl"}, "teacher": {"model": "teacher"}}


def test_a_searcher(own: str) -> None:
    sweep = {"space": {"distill.temperature": [1, 2, 4]}, "search": f"{own}:BACKWARDS"}
    experiment = experiment_of(own, sweep=sweep)
    assert experiment.sweep is not None
    assert planned_configurations(experiment.sweep) == 3
    source = build_source(experiment.sweep)
    known: set[str] = set()
    found = []
    while (values := source.next(known)) is not None:
        known.add(canonical(values))
        found.append(values["distill.temperature"])
    assert found == [4, 2, 1]
    with pytest.raises(ConfigError, match="has no values to list"):
        experiment_of(own, sweep=sweep | {"space": {"distill.temperature": {"uniform": [1, 2]}}})


def test_a_scheduler(own: str) -> None:
    from types import SimpleNamespace

    from raybrew.sweeps.schedulers import build_scheduler

    sweep = {"space": {"distill.temperature": [1, 2]}, "scheduler": {"kind": f"{own}:IMPATIENT", "grace": 0.6}}
    experiment = experiment_of(own, sweep=sweep)
    assert experiment.sweep is not None
    scheduler = build_scheduler(experiment.sweep.scheduler)
    answers = []
    for name, quality, may_stop in (("good", 0.9, True), ("bad", 0.5, True), ("control", 0.5, False)):
        trial: Any = SimpleNamespace(trial_id=name, config={"may_stop": may_stop, "run": name}, status="RUNNING")
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        answers.append(scheduler.on_trial_result(None, trial, {"percent": 50, "quality": quality}))  # type: ignore[arg-type]
    assert answers == ["CONTINUE", "STOP", "CONTINUE"]
    with pytest.raises(ConfigError, match="with several objectives; allowed: none"):
        experiment_of(own, sweep=sweep | {"search": {"kind": "optuna", "objectives": ["quality", "parameters"]}})


def test_a_tracker(own: str) -> None:
    name = f"{own}:NOTEBOOK"
    experiment = experiment_of(own, tracking={"tensorboard": True, "others": {name: {"file": "notes.jsonl"}}})
    run = trained(experiment)
    head, *records, end = [json.loads(line) for line in Path("notes.jsonl").read_text().splitlines()]
    assert head == {"experiment": "own", "job_type": "distill", "group": None, "run_id": run.path.name}
    assert any("eval/accuracy" in record for record in records)
    assert end == {"status": "done"}
    assert list((run.path / "tensorboard").iterdir()), "the others work as before"
    sweep = {"space": {"distill.temperature": [1, 2]}}
    job = make_job(experiment_of(own, tracking=experiment.plain()["tracking"], sweep=sweep), {}, 0, "group-1")
    assert job.experiment.plain()["tracking"]["others"][name] == {"file": "notes.jsonl", "group": "group-1"}
    with pytest.raises(
        ConfigError, match=rf"tracking.others: .*{own}:NOTEBOOK.fiel: unknown key .*did you mean 'file'"
    ):
        experiment_of(own, tracking={"others": {name: {"fiel": "x"}}})


@pytest.mark.parametrize(
    ("key", "sections"),
    [
        ("task.kind", {"task": {"kind": "{name}"}}),
        ("student.shape", {"student": {"shape": "{name}"}}),
        ("distill.method", {"distill": {"method": "{name}"}}),
        ("sweep.search.kind", {"sweep": {"space": {"distill.temperature": [1, 2]}, "search": "{name}"}}),
        ("sweep.scheduler.kind", {"sweep": {"space": {"distill.temperature": [1, 2]}, "scheduler": "{name}"}}),
        ("tracking.others", {"tracking": {"others": {"{name}": {"file": "x"}}}}),
    ],
)
def test_one_error_for_all_families(key: str, sections: dict[str, Any], own: str) -> None:
    """Rows are looked at as the file is read: what is no row of the family, and what cannot be imported."""

    def problem(name: str) -> str:
        given = json.loads(json.dumps(sections).replace("{name}", name))
        with pytest.raises(ConfigError) as caught:
            experiment_of(own, **given)
        (line,) = map(str, caught.value.problems)
        return line

    for name, why in (
        ("no_such.module:X", "no_such.module cannot be imported"),
        (f"{own}:absolute", f"{own} has no such "),
    ):
        line = problem(name)
        assert line.startswith(key)
        assert f": given '{name}'; {why}" in line


@pytest.mark.parametrize(
    ("key", "sections"),
    [
        ("distill.kd_loss.kind", {"distill": {"kd_loss": {"kind": "{name}"}}}),
        ("distill.matches.0.loss", {"distill": {"matches": [{"loss": "{name}"}]}}),
        ("distill.matches.0.layers", {"distill": {"matches": [{"loss": "cos", "layers": "{name}"}]}}),
        ("student.init", {"student": {"shape": {"layers": 2}, "init": "{name}"}}),
        ("student.init_layers", {"student": {"shape": {"layers": 2}, "init_layers": "{name}"}}),
    ],
)
def test_functions_are_imported_when_a_verb_runs(key: str, sections: dict[str, Any], own: str) -> None:
    """Reading a file checks their form alone."""
    for name, why in (
        ("no_such.module:x", "no_such.module cannot be imported"),
        (f"{own}:WIDE", "has no such function"),
    ):
        experiment = experiment_of(own, **json.loads(json.dumps(sections).replace("{name}", name)))
        with pytest.raises(ConfigError) as caught:
            raybrew.distill(experiment, report=False)
        (line,) = map(str, caught.value.problems)
        assert line.startswith(f"{key}: given '{name}'; ")
        assert why in line


def test_signatures_are_checked_before_anything_runs(own: str) -> None:
    experiment = experiment_of(own, student={"shape": {"layers": 2}, "init": f"{own}:crossed"})
    with pytest.raises(ConfigError, match=r"student\.init: .*wanted: \(student, teacher, layers\)"):
        raybrew.distill(experiment, report=False)
    assert not Path("runs").exists()


def test_the_extension_trains_another_student(own: str) -> None:
    """What the parts compute reaches the weights."""
    base = trained(experiment_of(own, distill={"kd_weight": 1.0}))
    other = trained(experiment_of(own, distill={"kd_loss": {"kind": f"{own}:total_variation"}}))
    from safetensors.torch import load_file

    one, two = (load_file(run.student / "model.safetensors") for run in (base, other))
    assert not all(torch.equal(one[name], two[name]) for name in one)

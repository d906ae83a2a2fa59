"""Several teachers and several tasks from the command line: teachers, capture, one worker and two by Ray Train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_project import cli, losses_of, make_model, make_rows

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

TRAIN = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "threads": 1, "log_steps": 5}
TWO = ("train.workers=2", "train.cpus_per_worker=0.5")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experiment files on two sets of rows and models without dropout, whose draws differ by worker."""
    folder = tmp_path_factory.mktemp("project")
    for place, name in enumerate(("one", "other")):
        make_rows(folder / f"{name}.jsonl", (120, 60)[place], seed=1 + place)
        make_rows(folder / f"{name}-eval.jsonl", 40, seed=5 + place)
    make_model(folder / "base")
    make_model(folder / "deep", layers=6, seed=1)
    make_model(folder / "foreign", hidden=48, seed=2, extra_words="zebra quokka")
    for config in folder.glob("*/config.json"):
        config.write_text(config.read_text().replace('dropout_prob": 0.1', 'dropout_prob": 0.0'))
    finetune = {"epochs": 2, "batch_size": 16, "learning_rate": 2e-3, "threads": 1}
    data = {
        name: {"train": str(folder / f"{name}.jsonl"), "eval": str(folder / f"{name}-eval.jsonl")}
        for name in ("one", "other")
    }
    store = {"storage_path": str(folder / "runs"), "launcher": "local"}
    shared = {"student": {"shape": {"layers": 2}}, "train": TRAIN, "store": store}
    matches = [{"loss": "hidden_mse", "teacher": "base"}, {"loss": "cos", "layers": "last", "teacher": "deep"}]
    teachers = {
        "name": "teachers",
        "data": data["one"],
        "task": {"max_length": 32},
        "teacher": {
            "average": "probabilities",
            "members": {
                "base": {"model": str(folder / "base"), "weight": 2.0, "finetune": finetune},
                "deep": {"model": str(folder / "deep"), "source": "live", "finetune": finetune},
                "foreign": {"model": str(folder / "foreign"), "finetune": finetune},
            },
        },
        "distill": {"matches": matches},
        **shared,
    }
    tasks = {
        "name": "tasks",
        "task": {
            "kind": "multi",
            "tasks": {
                name: {
                    "task": {"max_length": 32},
                    "data": data[name],
                    "teacher": {"model": str(folder / "base"), "finetune": finetune},
                }
                for name in data
            },
        },
        "distill": {"matches": [{"loss": "hidden_mse", "teacher": "one"}]},
        **shared,
    }
    for values in (teachers, tasks):
        (folder / f"{values['name']}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return folder


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return found


def gap(first: Path, second: Path) -> float:
    ours, theirs = load_file(first / "model.safetensors"), load_file(second / "model.safetensors")
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def run_of(project: Path, name: str, run_id: str) -> Path:
    return project / "runs" / name / run_id


def test_several_teachers(project: Path) -> None:
    file = project / "teachers.yaml"
    out, _ = cli("finetune", file)
    assert out.count("model:") == 3
    out, _ = cli("finetune", file, "--teacher", "deep")
    assert out.count("already done") == 1
    out, err = cli("capture", file)
    assert "base: store" in out
    assert "foreign: store" in out
    assert "deep: source is live" in err
    out, _ = cli("distill", file, "--run-id", "one")
    assert "2 base + 1 deep + 1 foreign" in out
    teacher = summary(run_of(project, "teachers", "one"))["teacher"]
    assert set(teacher["members"]) == {"base", "deep", "foreign"}
    assert 0 <= teacher["metrics"]["accuracy"] <= 1
    assert teacher["parameters"] == sum(member["parameters"] for member in teacher["members"].values())
    assert {name for name, member in teacher["members"].items() if member["fingerprint"]} == {"base", "foreign"}
    out, _ = cli("evaluate", file, "--model", "teacher", "--json")
    assert json.loads(out)["average"]["metrics"] == teacher["metrics"]
    cli("distill", file, *TWO, "--run-id", "two", timeout=300)
    one, two = run_of(project, "teachers", "one"), run_of(project, "teachers", "two")
    assert gap(one / "student", two / "student") < 2e-4
    _, err = cli("distill", file, "teacher.members.foreign.source=live", "--run-id", "three", code=1)
    assert "teacher.members.foreign.source: live feeds both models the same tokens" in err
    _, err = cli("distill", file, "distill.matches=[{loss: cos, teacher: foreign}]", "--run-id", "three", code=1)
    assert "of teacher foreign token by token" in err


def test_several_tasks(project: Path) -> None:
    file = project / "tasks.yaml"
    cli("finetune", file, "--task", "other")
    out, _ = cli("finetune", file)
    assert out.count("already done") == 1
    out, _ = cli("distill", file, "--run-id", "one")
    assert "mean" in out
    one, two = run_of(project, "tasks", "one"), run_of(project, "tasks", "two")
    cli("distill", file, *TWO, "--run-id", "two", timeout=300)
    for name in ("one", "other"):
        assert gap(one / "student" / name, two / "student" / name) < 2e-4
    ours, theirs = losses_of(one), losses_of(two)
    assert len(ours) == len(theirs) > 4
    for first, second in zip(ours, theirs, strict=True):
        assert second.get("loss", 0) == pytest.approx(first.get("loss", 0), abs=1e-4)
    found = summary(one)
    assert {"mean", "one.accuracy", "other.accuracy"} <= set(found["best"]["metrics"])
    assert set(found["teacher"]["members"]) == {"one", "other"}
    first, second = (load_file(one / "student" / name / "model.safetensors") for name in ("one", "other"))
    embeddings = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(first[embeddings], second[embeddings])
    assert not torch.equal(first["classifier.weight"], second["classifier.weight"])
    heads = first["classifier.weight"].numel() + first["classifier.bias"].numel()
    assert found["student"]["parameters"] == sum(value.numel() for value in first.values()) + heads
    out, _ = cli("evaluate", file, "--run-id", "one", "--json")
    evaluated = json.loads(out)
    assert {name: each["metrics"]["accuracy"] for name, each in evaluated.items()} == pytest.approx(
        {name: found["best"]["metrics"][f"{name}.accuracy"] for name in ("one", "other")}
    )
    out, _ = cli("predict", file, "--task", "other", "--run-id", "one", "-i", project / "other-eval.jsonl")
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 40
    assert {row["label"] for row in rows} <= {"negative", "positive"}
    _, err = cli("predict", file, "--run-id", "one", "-i", project / "other-eval.jsonl", code=3)
    assert "--task: required" in err
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(one / "student" / "other"))
    assert [found["label"] for found in classify([row["text"] for row in rows])] == [row["label"] for row in rows]

"""Every family from a teacher's store to a student's folder, for tasks that judge rows, words and places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import FAMILY_MODELS, rows_of, save_family_teacher, without_latency

import raybrew
from raybrew.config import Experiment
from raybrew.config.loading import build_experiment
from raybrew.models.loading import ModelSource, load_model, load_tokenizer

LABELS = {"classification": ("no", "yes"), "tagging": ("O", "B-X", "I-X"), "qa": ("LABEL_0", "LABEL_1")}
#: The task's own settings, small enough that contexts have several windows.
TASKS: dict[str, dict[str, Any]] = {
    "classification": {"max_length": 32},
    "tagging": {"max_length": 32},
    "qa": {"max_length": 60, "stride": 8, "max_question": 24},
}


def experiment_of(folder: Path, family: str, task: str, **more: Any) -> Experiment:
    values = {
        "name": f"{family}-{task}",
        "task": {"kind": task, **TASKS[task]},
        "data": {"train": rows_of(task, folder / "train.jsonl"), "eval": rows_of(task, folder / "eval.jsonl", 4)},
        "teacher": {"model": save_family_teacher(family, folder / "teacher", task, LABELS[task])},
        "student": {"shape": {"layers": 2}},
        "distill": {"temperature": 2.0, "matches": [{"loss": "hidden_mse"}]},
        "train": {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-3, "threads": 1},
        "store": {"storage_path": str(folder / "runs"), "launcher": "local"},
    }
    return build_experiment({**values, **more})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    without_latency(monkeypatch)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", FAMILY_MODELS)
def test_a_family_from_its_store_to_a_student(family: str, task: str, tmp_path: Path) -> None:
    experiment = experiment_of(tmp_path, family, task)
    store = raybrew.capture(experiment)
    # What the store holds is what the model says, of a row alone as well as among longer ones, so no padding counts.
    checks = raybrew.verify_live(experiment, 3)[""]
    assert all(check.agrees and check.itself < 1e-5 for check in checks), checks
    assert {signal.name for signal in store.signals} >= {"logits", "hidden.00", "hidden.02", "hidden.04"}
    run = raybrew.distill(experiment)
    assert run.summary["steps"] == 2
    assert "teacher layers 2, 4" in (run.path / "metrics.jsonl").read_text()
    assert run.summary["distill"]["source"] == "store"

    source = ModelSource(str(run.student))
    student, tokenizer = load_model(source, task), load_tokenizer(source)
    assert student.config.model_type == FAMILY_MODELS[family][0]
    teacher = load_model(ModelSource(str(tmp_path / "teacher")), task)
    assert any(
        not torch.equal(tensor, dict(teacher.named_parameters()).get(name, tensor))
        for name, tensor in student.named_parameters()
        if "embeddings" in name
    ), "nothing was trained"
    inputs = tokenizer("Anna met Peter", "in Paris", return_tensors="pt")
    with torch.inference_mode():
        outputs = student(**inputs)
    assert all(value.isfinite().all() for value in outputs.values())
    # What was saved is what was measured.
    assert raybrew.evaluate(experiment).metrics == pytest.approx(run.metrics)

"""Losses that are functions of the user's, named in an experiment file: equal to built in ones, stored as live."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import raybrew
from raybrew.config import Experiment
from raybrew.config.loading import build_experiment
from raybrew.errors import ConfigError, LossError
from raybrew.pipeline.reporter import QuietReporter
from tests.tiny_teacher import make_rows, make_teacher
from tests.told import told

MODULE = """
from raybrew.losses.attention import attention_mse
from raybrew.losses.features import hidden_mse, pooled_mse
from raybrew.losses.logits import kl
from raybrew.losses.term import LossTerm

def layers(student, teacher, mask):
    return hidden_mse(student, teacher, mask)

def scores(student, teacher, mask):
    return attention_mse(student, teacher, mask)

def vectors(student, teacher, mask):
    return pooled_mse(student, teacher, mask)

def logits(student, teacher, mask, *, temperature, scale_by_temperature_squared):
    return kl(student, teacher, mask, temperature=temperature,
              scale_by_temperature_squared=scale_by_temperature_squared)

def mean(student, teacher, mask):
    return (student - teacher).square().mean()

def rows(student, teacher, mask):
    term = hidden_mse(student, teacher, mask)
    return LossTerm(term.sum, mask.amax(dim=1).sum())

def no_mask(student, teacher):
    return None
"""


class Listening(QuietReporter):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the folder raybrew runs in, which is on no path."""
    name = f"losses_of_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return name


def experiment_of(folder: Path, distill: dict[str, Any], source: str = "live", **more: Any) -> Experiment:
    teacher = folder / "teacher"
    if not teacher.exists():
        make_teacher(teacher)
    rows = folder / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for row in make_rows(24).select(["text", "label"]).to_pylist():
            file.write(json.dumps(row) + "\n")
    values = {
        "name": "own",
        "task": {"kind": "classification", "max_length": 24, "labels": ["0", "1", "2"]},
        "data": {"train": str(rows)},
        "teacher": {"model": str(teacher), "source": source},
        "student": {"shape": {"layers": 1}},
        "distill": distill,
        "train": {"epochs": 2, "batch_size": 8, "threads": 1, "learning_rate": 1e-3, "device": "cpu"},
        "store": {"storage_path": str(folder / "runs"), "launcher": "local", "element_type": "float32"},
    }
    return build_experiment(values | more)


def weights_after(experiment: Experiment, run_id: str) -> dict[str, torch.Tensor]:
    run = raybrew.distill(experiment, run_id=run_id, report=False)
    state: dict[str, torch.Tensor] = AutoModelForSequenceClassification.from_pretrained(run.student).state_dict()
    assert state
    return state


def test_own_functions_train_like_the_built_in_ones(tmp_path: Path, module: str) -> None:
    built_in = {
        "kd_loss": {"kind": "kl"},
        "matches": [
            {"loss": "hidden_mse", "layers": "final"},
            {"loss": "attention_mse", "layers": "final"},
            {"loss": "pooled_mse"},
        ],
    }
    own = {
        "kd_loss": {"kind": f"{module}:logits"},
        "matches": [
            {"loss": f"{module}:layers", "layers": "final"},
            {"loss": f"{module}:scores", "layers": "final", "feature": "attention"},
            {"loss": f"{module}:vectors", "feature": "pooled"},
        ],
    }
    wanted = weights_after(experiment_of(tmp_path, built_in), "built-in")
    found = weights_after(experiment_of(tmp_path, own), "own")
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    control = weights_after(experiment_of(tmp_path, {"kd_weight": 1.0}), "logits")
    assert not all(torch.equal(wanted[name], control[name]) for name in wanted)

    stored = experiment_of(tmp_path, own, source="store")
    listening = Listening()
    raybrew.capture(stored, reporter=listening)
    assert listening.lines[:2] == [
        f"distill.kd_loss.kind: imports {module}:logits",
        f"distill.matches.0.loss: imports {module}:layers",
    ]
    from_store = weights_after(stored, "stored")
    assert max(float((wanted[name] - from_store[name]).abs().max()) for name in wanted) < 1e-3


def test_what_a_function_returns_is_checked(tmp_path: Path, module: str) -> None:
    with pytest.raises(LossError, match=r"mean_hidden\.1-2: .*:mean must return LossTerm.* it returned Tensor"):
        weights_after(experiment_of(tmp_path, {"matches": [{"loss": f"{module}:mean", "layers": "final"}]}), "a")
    counts = {"loss": f"{module}:rows", "layers": "final"}
    with pytest.raises(
        LossError, match=r"rows_hidden\.1-2: the function counted 8 items, but the mask has \d+ \(token"
    ):
        weights_after(experiment_of(tmp_path, {"matches": [counts]}), "b")
    assert weights_after(experiment_of(tmp_path, {"matches": [counts | {"per": "row"}]}), "c")


def test_what_cannot_be_imported_or_called_is_told_at_once(tmp_path: Path, module: str) -> None:
    matches = [{"loss": f"{module}:{name}", "layers": "final"} for name in ("layer", "no_mask")]
    experiment = experiment_of(
        tmp_path, {"kd_loss": {"kind": f"{module}:scores"}, "matches": [*matches, {"loss": "no_such.module:f"}]}
    )
    with pytest.raises(ConfigError) as caught:
        raybrew.distill(experiment)
    assert told(caught.value) == [
        "distill.kd_loss.kind: value",
        "distill.matches.0.loss: missing",
        "distill.matches.1.loss: value",
        "distill.matches.2.loss: missing",
    ]
    kd, name, signature, _ = (problem.message for problem in caught.value.problems)
    assert "wanted: (student, teacher, mask, *, temperature" in kd
    assert name.endswith("did you mean 'layers'?")
    assert signature.endswith("whose signature is (student, teacher); wanted: (student, teacher, mask)")
    assert not (tmp_path / "runs").exists(), "nothing was made before the functions were known to fit"


def test_validation_checks_the_form_alone(tmp_path: Path) -> None:
    def error_of(**distill: Any) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            experiment_of(tmp_path, distill)
        return caught.value

    found = error_of(matches=[{"loss": "my module:f"}])
    assert told(found) == ["distill.matches.0.loss: unknown"]
    assert str(found).endswith("or a function of your own as package.module:function")
    found = error_of(kd_loss={"kind": "kll"})
    assert str(found).endswith("package.module:function; did you mean 'kl'?")
    found = error_of(matches=[{"loss": "cos", "feature": "hidden", "per": "row"}])
    assert told(found) == ["distill.matches.0.feature: unused", "distill.matches.0.per: unused"]
    found = error_of(matches=[{"loss": "a.b:c", "feature": "pooled", "per": "token"}])
    assert told(found) == ["distill.matches.0.per: unused"]
    code = (
        "import sys; from raybrew.config.loading import build_experiment; "
        "build_experiment({'name': 'x', 'teacher': {'model': 'a/b'}, 'distill': {'kd_loss': {'kind': 'no.such:f'}, "
        "'matches': [{'loss': 'no.such:g', 'feature': 'attention'}]}}); "
        "assert not {'torch', 'no'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_emd_from_an_experiment_file(tmp_path: Path) -> None:
    """Stored as live, from files; another training than without it."""
    emd = {"emd": {"hidden": 1.0, "attention": 0.5}}
    live = weights_after(experiment_of(tmp_path, emd), "live")
    stored = experiment_of(tmp_path, emd, source="store")
    store = raybrew.capture(stored)
    assert {signal.name for signal in store.signals} == {
        *("logits", "hidden.00", "hidden.01", "hidden.02"),
        *("attention.01", "attention.02"),
    }
    from_store = weights_after(stored, "stored")
    assert max(float((live[name] - from_store[name]).abs().max()) for name in live) < 1e-3
    without = weights_after(experiment_of(tmp_path, {}), "without")
    assert max(float((live[name] - without[name]).abs().max()) for name in live) > 1e-3
    with pytest.raises(ConfigError, match=r"distill\.emd: given with teacher\.members; it is for one teacher"):
        experiment_of(tmp_path, emd, teacher={"members": {"a": {"model": "x/a"}, "b": {"model": "x/b"}}})
    with pytest.raises(ConfigError, match=r"distill\.emd: hidden and attention are 0"):
        experiment_of(tmp_path, {"emd": {"hidden": 0}})


def test_fields_that_are_not_given_leave_the_identity(tmp_path: Path) -> None:
    match = experiment_of(tmp_path, {"matches": [{"loss": "cos"}]})
    assert set(match.identity("distill")["distill"]["matches"][0]).isdisjoint({"feature", "per"})
    assert "emd" not in match.identity("distill")["distill"]
    own = experiment_of(tmp_path, {"matches": [{"loss": "a:b", "feature": "hidden"}]})
    assert own.identity("distill")["distill"]["matches"][0]["feature"] == "hidden"


def test_modules_compared_are_those_of_layers(tmp_path: Path, module: str) -> None:
    """The last layer and the pooler by name train as `final` and `pooled_mse` do; projections where widths differ."""
    by_layer = {"matches": [{"loss": "hidden_mse", "layers": "final"}, {"loss": "pooled_mse", "weight": 0.5}]}
    layers = {"student_module": "bert.encoder.layer.0", "teacher_module": "bert.encoder.layer.1"}
    poolers = {"student_module": "bert.pooler", "teacher_module": "bert.pooler", "weight": 0.5}
    by_name = {"matches": [{"loss": "hidden_mse", **layers}, {"loss": "hidden_mse", **poolers}]}
    wanted = weights_after(experiment_of(tmp_path, by_layer), "layers")
    found = weights_after(experiment_of(tmp_path, by_name), "modules")
    assert max(float((wanted[name] - found[name]).abs().max()) for name in wanted) < 1e-5
    without = weights_after(experiment_of(tmp_path, {}), "without")
    assert max(float((wanted[name] - without[name]).abs().max()) for name in wanted) > 1e-3
    own = {"matches": [{"loss": f"{module}:layers", **layers}, {"loss": f"{module}:layers", **poolers}]}
    same = weights_after(experiment_of(tmp_path, own), "own-modules")
    assert all(torch.equal(found[name], same[name]) for name in found)
    planned = raybrew.plan(experiment_of(tmp_path, by_name))
    assert planned.advice == "live"
    assert "whose outputs no store holds" in planned.verdict
    assert raybrew.plan(experiment_of(tmp_path, by_layer)).advice == "store"
    narrow = {"shape": {"layers": 1, "hidden": 16, "heads": 2, "feed_forward": 32}}
    assert weights_after(experiment_of(tmp_path, by_name, student=narrow), "narrow")


def test_modules_that_cannot_be_compared_are_told_before_training(tmp_path: Path) -> None:
    names = {"student_module": "bert.encoder.layer.0", "teacher_module": "bert.encoder.layer.1"}

    def error_of(*matches: dict[str, Any], source: str = "live", **more: Any) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            raybrew.distill(experiment_of(tmp_path, {"matches": list(matches)}, source, **more))
        return caught.value

    def sentences(*matches: dict[str, Any], **more: Any) -> list[str]:
        return [str(problem) for problem in error_of(*matches, **more).problems]

    found = error_of({"loss": "cos", **names}, source="store")
    assert told(found) == ["distill.matches.0.teacher_module: conflict"]
    found = error_of({"loss": "cos", "student_module": "bert.pooler"})
    assert told(found) == ["distill.matches.0.teacher_module: required"]
    found = error_of({"loss": "attention_mse", **names})
    assert told(found) == ["distill.matches.0.student_module: conflict"]
    student, teacher = sentences(
        {"loss": "cos", "student_module": "bert.poler", "teacher_module": "bert.encoder.layer.7"}
    )
    assert "student_module: BertForSequenceClassification has no module 'bert.poler'; did you mean" in student
    assert "teacher_module: BertForSequenceClassification has no module 'bert.encoder.layer.7'" in teacher
    (words,) = sentences({"loss": "cos", **names, "teacher_module": "bert.pooler"})
    assert "(2, 5, 32), the teacher's (2, 32); wanted of both" in words
    (words,) = sentences({"loss": "gram", "student_module": "bert.pooler", "teacher_module": "bert.pooler"})
    assert "one vector per row; allowed: hidden_mse, cos" in words
    found = error_of(
        {"loss": "cos", **names},
        train={"epochs": 1, "batch_size": 8, "threads": 1, "device": "cpu", "gradient_checkpointing": True},
    )
    assert told(found) == ["train.gradient_checkpointing: conflict"]

"""raybrew export: what it finds, what the folder and its card say, and that it is whole or not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_helpers import LABELS, make_model, write_rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import raybrew
from raybrew.cli.main import main
from raybrew.config import Experiment
from raybrew.errors import ConfigError, EnvironmentProblem, RunError
from raybrew.exports.folder import whole_folder
from raybrew.verbs.evaluate import evaluate


def rows_of(count: int, seed: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    words = ("kala", "mone", "tido", "relu", "sula", "kane")
    return [
        {"text": f"{' '.join(random.choice(words, random.integers(1, 9)))} {seed} {number}", "label": label}
        for number, label in enumerate(random.choice(LABELS["classification"], count).tolist())
    ]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A student of a random teacher, its control, and their experiment."""
    folder = tmp_path_factory.mktemp("export")
    make_model(folder / "teacher")
    values: dict[str, Any] = {
        "name": "shop",
        "data": {
            "train": str(write_rows(folder / "train.jsonl", rows_of(24, 1))),
            "eval": str(write_rows(folder / "eval.jsonl", rows_of(30, 2))),
        },
        "task": {"max_length": 32},
        "teacher": {"model": str(folder / "teacher")},
        "student": {"shape": {"layers": 1}},
        "distill": {"temperature": 3, "matches": [{"loss": "hidden_mse"}]},
        "train": {"epochs": 1, "batch_size": 8, "threads": 1, "seed": 4},
        "store": {"storage_path": str(folder / "runs"), "launcher": "local"},
    }
    experiment = raybrew.build_experiment(values)
    run = raybrew.distill(experiment, report=False, command="raybrew distill shop.yaml")
    alone = {"temperature": 3, "kd_weight": 0, "hard_label_weight": 1, "matches": []}
    control = raybrew.distill(raybrew.build_experiment(values | {"distill": alone}), report=False)
    return {"folder": folder, "experiment": experiment, "run": run, "control": control}


def test_a_run_becomes_a_folder_with_its_lineage(project: dict[str, Any], tmp_path: Path) -> None:
    run = project["run"]
    found = raybrew.export(run.path, tmp_path / "out")
    assert found.path == tmp_path / "out"
    names = {path.name for path in found.path.iterdir()}
    assert names >= {"README.md", "config.json", "model.safetensors", "tokenizer.json", "raybrew.json"}
    card = (found.path / "README.md").read_text(encoding="utf-8")
    teacher, own, alone = run.summary["teacher"], run.metrics["accuracy"], project["control"].metrics["accuracy"]
    assert f"| accuracy | {own:.4f} | {teacher['metrics']['accuracy']:.4f} | {alone:.4f} |" in card
    for fact in (teacher["fingerprint"], run.path.name, project["control"].path.name, "torch 2.", "- loss: hidden_mse"):
        assert fact in card
    assert str(project["folder"]) not in card
    assert "raybrew distill shop.yaml" in card
    texts = [row["text"] for row in rows_of(5, 3)]
    shown = pipeline("text-classification", model=str(found.path), device="cpu")(texts)
    predicted = raybrew.load_student(found.path).predict([{"text": text} for text in texts])
    assert [row["label"] for row in predicted] == [row["label"] for row in shown]
    assert [row["score"] for row in predicted] == pytest.approx([row["score"] for row in shown], abs=1e-5)
    assert found.formats["hf"]["latency_ms"]["batch_1"] > 0
    # The student's own folder is known as a part of its run.
    again = raybrew.export(run.student, tmp_path / "again")
    assert again.facts["run"] == run.path.name


def test_int8_is_measured_against_the_float_student(project: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="needs the extra int8")
    found = raybrew.export(project["run"].path, tmp_path / "out", formats=("int8", "int8-weights"))
    experiment: Experiment = project["experiment"]
    assert found.facts["float32"]["metrics"] == evaluate(experiment).metrics
    assert found.facts["evaluated_rows"] == 30
    assert list(found.formats) == ["int8", "int8-weights"]
    rows = rows_of(30, 2)
    tokenizer = AutoTokenizer.from_pretrained(found.path)
    inputs = tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")
    labels = torch.tensor([LABELS["classification"].index(row["label"]) for row in rows])
    with torch.inference_mode():
        floats = AutoModelForSequenceClassification.from_pretrained(project["run"].student)(**inputs).logits
        for name in found.formats:
            model = AutoModelForSequenceClassification.from_pretrained(found.path / name)
            assert "Int8" in type(model.bert.encoder.layer[0].output.dense.weight).__name__
            logits = model(**inputs).logits
            assert 0 < (logits - floats).abs().max() < 0.1
            accuracy = (logits.argmax(-1) == labels).float().mean().item()
            assert found.formats[name]["metrics"]["accuracy"] == pytest.approx(accuracy)
            changed = int((logits.argmax(-1) != floats.argmax(-1)).sum())
            assert found.formats[name]["changed_rows"] == changed
    card = (found.path / "README.md").read_text(encoding="utf-8")
    assert "float32, not exported" in card
    assert "Quality is that of the files themselves on 30 evaluation rows." in card
    assert not (found.path / "model.safetensors").exists()


def test_command_line(
    project: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, run = tmp_path / "out", str(project["run"].path)

    def command(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["export", *arguments, "--to", str(target)])
        assert isinstance(stopped.value.code, int)
        out, err = capsys.readouterr()
        return stopped.value.code, out, err

    code, _, err = command(run, "--format", "onx")
    assert code == 3
    assert "given 'onx'; allowed: hf, onnx, onnx-int8, int8, int8-weights; did you mean 'onnx'?" in err
    code, _, err = command(str(tmp_path / "nothing"))
    assert code == 1
    assert "does not exist" in err
    assert not target.exists()
    code, out, _ = command(run, "--json")
    assert code == 0
    assert json.loads(out)["formats"]["hf"]["megabytes"] > 0
    made = (target / "raybrew.json").read_bytes()
    code, out, err = command(run)
    assert code == 0
    assert "holds this export already; --force makes it anew" in err
    assert "model.safetensors" in out
    code, _, err = command(run, "--format", "hf", "--no-evaluate")
    assert code == 1
    assert "holds another export; --force replaces it" in err
    assert (target / "raybrew.json").read_bytes() == made
    code, out, _ = command(run, "--force")
    assert code == 0
    assert "model.safetensors" in out
    (target / "raybrew.json").unlink()
    code, _, err = command(run, "--force")
    assert code == 1
    assert "is no export and is not replaced" in err
    assert (target / "model.safetensors").is_file()


def test_a_missing_package_is_named_before_any_work(
    project: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(EnvironmentProblem, match=r"onnxruntime cannot be imported .*pip install 'raybrew\[onnx\]'"):
        raybrew.export(project["run"].path, tmp_path / "out", formats=("hf", "onnx"))
    assert not (tmp_path / "out").exists()


def test_a_plain_folder_and_its_rows(project: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="needs the extra int8")
    folder = project["folder"] / "teacher"
    with pytest.raises(ConfigError, match=r"quality of int8 is measured on data\.eval.*--experiment"):
        raybrew.export(folder, tmp_path / "out", formats=("int8",))
    found = raybrew.export(folder, tmp_path / "out", formats=("int8",), evaluate=False)
    assert "metrics" not in found.formats["int8"]
    card = (found.path / "README.md").read_text(encoding="utf-8")
    assert "The quality of the quantized files was not measured." in card
    assert "knowledge-distillation" not in card
    again = raybrew.export(folder, tmp_path / "out", formats=("int8",), experiment=project["experiment"], force=True)
    assert again.formats["int8"]["metrics"]["accuracy"] == pytest.approx(
        evaluate(project["experiment"], model="teacher").metrics["accuracy"], abs=0.2
    )


def test_nothing_finished_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(RunError, match="neither a run, nor a sweep, nor a model"):
        raybrew.export(tmp_path / "run", tmp_path / "out")
    (tmp_path / "run" / "identity.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RunError, match="is not finished"):
        raybrew.export(tmp_path / "run", tmp_path / "out")


def test_the_old_export_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with whole_folder(target) as new:
        (new / "config.json").write_text("old", encoding="utf-8")
        (new / "onnx").mkdir()
        (new / "onnx" / "model.onnx").write_text("old", encoding="utf-8")
        (new / "raybrew.json").write_text("{}", encoding="utf-8")
    left = tmp_path / ".out.new-0badcafe"
    left.mkdir()  # of a killed export

    def interrupted() -> None:
        with whole_folder(target, force=True) as new:
            assert not left.exists()
            (new / "config.json").write_text("new", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (target / "config.json").read_text(encoding="utf-8") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with whole_folder(target, force=True) as new:
        (new / "config.json").write_text("new", encoding="utf-8")
    assert (target / "config.json").read_text(encoding="utf-8") == "new"
    assert not (target / "onnx").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

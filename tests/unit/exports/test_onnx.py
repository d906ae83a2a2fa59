"""ONNX exports of every task and family answer as torch does, on rows of any number and length."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_helpers import LABELS, ROWS, make_model
from transformers import AutoTokenizer

import raybrew
from raybrew.errors import ModelError, RunError
from raybrew.exports import writer
from raybrew.exports.onnx_file import OnnxModel, check_onnx

pytest.importorskip("onnx", reason="needs the extra onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")


def numbers_of(value: Any) -> Any:
    """Predictions with what is a matter of rounding taken out of the comparison."""
    if isinstance(value, dict):
        return {name: numbers_of(item) for name, item in value.items()}
    if isinstance(value, list):
        return [numbers_of(item) for item in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


@pytest.mark.parametrize(
    ("family", "task", "rows"),
    [
        ("bert", "classification", "pair"),
        ("roberta", "tagging", "tokens"),
        ("distilbert", "qa", "qa"),
        ("electra", "multilabel", "text"),
        ("modernbert", "regression", "text"),
        ("deberta-v2", "classification", "text"),
        ("bigru", "tagging", "tokens"),
    ],
)
def test_onnx_answers_as_torch(tmp_path: Path, family: str, task: str, rows: str) -> None:
    make_model(tmp_path / "model", family, task)
    experiment = None
    if rows == "pair":
        columns = {"text_pair": "text_pair"}
        experiment = raybrew.build_experiment({"name": "x", "teacher": {"model": "x/y"}, "data": {"columns": columns}})
    found = raybrew.export(tmp_path / "model", tmp_path / "out", formats=("hf", "onnx"), experiment=experiment)
    facts = json.loads((tmp_path / "out" / "raybrew.json").read_text(encoding="utf-8"))
    assert facts == found.facts
    assert facts["task"]["kind"] == task
    assert tuple(facts["labels"]) == LABELS[task]
    assert facts["formats"]["onnx"]["opset"] == 20
    assert facts["formats"]["onnx"]["max_difference"] < 1e-4
    assert len({tuple(shape) for shape in facts["formats"]["onnx"]["checked"]}) > 3
    in_torch, in_onnx = (raybrew.load_student(tmp_path / "out", name) for name in ("hf", "onnx"))
    expected = in_torch.predict(ROWS[rows])
    assert len(expected) == len(ROWS[rows])
    assert in_onnx.predict(ROWS[rows]) == numbers_of(expected)
    # Rows do not see one another, nor the padding that they get from one another.
    assert [in_onnx.predict([row])[0] for row in ROWS[rows]] == numbers_of(expected)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT classifier in `model`, and its export in `out`."""
    folder = tmp_path_factory.mktemp("onnx")
    make_model(folder / "model")
    raybrew.export(folder / "model", folder / "out", formats=("onnx", "onnx-int8"), evaluate=False)
    return folder


def test_onnx_runs_without_torch_and_raybrew(exported: Path) -> None:
    # The way that the card shows, against transformers on the original.
    tokenizer = AutoTokenizer.from_pretrained(exported / "out")
    session = onnxruntime.InferenceSession(exported / "out" / "onnx" / "model.onnx")
    texts = [row["text"] for row in ROWS["text"]]
    inputs = dict(tokenizer(texts, padding=True, return_tensors="np"))
    (logits,) = session.run(None, {each.name: inputs[each.name] for each in session.get_inputs()})
    model = make_model(exported / "again")
    with torch.inference_mode():
        expected = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)
    assert np.abs(logits).max() > 0.1
    assert {shape for each in session.get_inputs() for shape in each.shape} == {"rows", "tokens"}


def test_onnx_int8_is_smaller_and_close(exported: Path) -> None:
    formats = json.loads((exported / "out" / "raybrew.json").read_text(encoding="utf-8"))["formats"]
    files = [exported / "out" / formats[name]["file"] for name in ("onnx", "onnx-int8")]
    whole, small = (OnnxModel(file) for file in files)
    batch = {"input_ids": torch.tensor([[2, 7, 8, 9, 3]]), "attention_mask": torch.ones(1, 5, dtype=torch.int64)}
    gap = (whole(**batch)["logits"] - small(**batch)["logits"]).abs().max()
    assert 0 < gap < 0.2
    assert "DynamicQuantizeLinear" in {node.op_type for node in _graph(files[1]).node}


def _graph(file: Path) -> Any:
    import onnx

    return onnx.load(file).graph


def test_another_model_in_the_file_is_an_error(exported: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other", seed=1)
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    with pytest.raises(ModelError, match=r"outputs differ from torch's by up to .*nothing was exported"):
        check_onnx(other, inputs, exported / "out" / "onnx" / "model.onnx")


def test_what_cannot_be_exported_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(tmp_path / "model")
    forward = type(model).forward

    def branches(self: Any, *given: Any, **named: Any) -> Any:
        found = forward(self, *given, **named)
        if found.logits.sum().item() > 0:  # depends on data, which no graph can
            found.logits = found.logits * 2
        return found

    monkeypatch.setattr(type(model), "forward", branches)
    with pytest.raises(
        ModelError, match=r"^onnx: torch cannot export BertForSequenceClassification: .*need no export$"
    ):
        raybrew.export(tmp_path / "model", tmp_path / "out", formats=("onnx",))
    assert not (tmp_path / "out").exists()


def test_a_wrong_export_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make_model(tmp_path / "other", seed=1)
    make_model(tmp_path / "model")
    write = writer.write_onnx
    monkeypatch.setattr(writer, "write_onnx", lambda model, *rest: write(other, *rest))
    with pytest.raises(ModelError, match="differ from torch"):
        raybrew.export(tmp_path / "model", tmp_path / "out", formats=("hf", "onnx"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "other"]


def test_a_format_that_was_not_exported(exported: Path) -> None:
    with pytest.raises(RunError, match=r"has no 'hf'; it was exported as onnx, onnx-int8"):
        raybrew.load_student(exported / "out", "hf")
    with pytest.raises(RunError, match=r"holds no raybrew\.json"):
        raybrew.load_student(exported / "model")


def test_facts_are_plain(exported: Path) -> None:
    student = raybrew.load_student(exported / "out")
    assert student.predict([]) == []
    assert dataclasses.is_dataclass(student.labels)
    with pytest.raises(raybrew.errors.DataError, match="row 1: column 'text': missing"):  # type: ignore[attr-defined]
        student.predict([{"text": "kala"}, {"txt": "kala"}])

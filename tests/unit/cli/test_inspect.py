"""`raybrew inspect`: sizes, operations and latency of models, by their configs alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    PretrainedConfig,
)

import raybrew
from raybrew.cli.main import main
from raybrew.errors import ConfigError, ModelError
from raybrew.models.inspection import count_flops, count_parameters
from raybrew.models.shapes import FAMILIES
from raybrew.training.run_folder import RunFolder
from unit.models.test_students import tiny_config

SIZES = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
LENGTH = 24


def two_labels(family: str) -> PretrainedConfig:
    config = tiny_config(family)
    config.num_labels = 2
    return config


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "head", [AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModelForQuestionAnswering]
)
def test_operations_are_those_that_torch_counts(family: str, head: Any) -> None:
    model = head.from_config(two_labels(family)).eval()
    tokens = torch.full((1, LENGTH), 7)
    # torch does not count the fused attention of CPUs, so it counts the plain one.
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    if family not in ("deberta-v2", "mpnet"):
        model.set_attn_implementation("sdpa")
    model.train()
    found = count_flops(model, LENGTH)
    assert model.training
    assert found.total * LENGTH == counter.get_total_flops()


def test_operations_follow_from_sizes_and_length() -> None:
    config = BertConfig(vocab_size=40, max_position_embeddings=64, **SIZES)
    model = BertForSequenceClassification(config)
    layers, hidden = config.num_hidden_layers, config.hidden_size
    matrices = sum(p.numel() for name, p in model.bert.encoder.named_parameters() if p.dim() == 2)
    for length in (1, 16, 64):
        found = count_flops(model, length)
        per_row = 2 * (hidden * hidden + hidden * config.num_labels)  # the pooler and the classifier
        assert found.weights == pytest.approx(2 * matrices + per_row / length)
        assert found.products == 4 * layers * hidden * length
    with pytest.raises(ModelError, match="1 x 65 tokens"):
        count_flops(model, 65)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An experiment whose teacher folder holds a config alone, and three kinds of rows."""
    BertConfig(vocab_size=40, max_position_embeddings=48, **SIZES).save_pretrained(tmp_path / "teacher")
    rows = [json.dumps({"text": f"word {number}", "label": "abc"[number % 3]}) for number in range(6)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    values = {
        "name": "inspected",
        "data": {"train": str(tmp_path / "train.jsonl")},
        "teacher": {"model": str(tmp_path / "teacher"), "finetune": {}},
        "student": {"shape": {"layers": 2, "hidden": 16}},
        "store": {"storage_path": str(tmp_path / "runs")},
    }
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def parameters(layers: int, hidden: int, labels: int) -> int:
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": 2 * hidden}
    config = BertConfig(vocab_size=40, max_position_embeddings=48, num_attention_heads=2, num_labels=labels, **sizes)
    return count_parameters(BertForSequenceClassification(config))


def test_student_and_teacher_of_an_experiment_before_anything_is_trained(project: Path) -> None:
    found = raybrew.inspect(project, latency=False)
    assert list(found) == ["student", "teacher"]
    student, teacher = found["student"], found["teacher"]
    assert student.facts["parameters"] == student.modules.parameters == parameters(2, 16, 3)
    assert teacher.facts["parameters"] == parameters(4, 32, 3)
    assert student.flops.length == teacher.flops.length == 48, "128 tokens do not fit"
    assert student.flops.total < teacher.flops.total
    assert student.latency_ms == {}
    assert "not trained yet" in student.source
    wider = raybrew.inspect(project, ["student.shape.hidden=24"], length=5, batch_sizes=(1, 3))["student"]
    assert wider.facts["hidden"] == 24
    assert wider.flops.length == 5
    assert list(wider.latency_ms) == ["batch_1", "batch_3"]
    assert all(value > 0 for value in wider.latency_ms.values())
    plain = student.plain(1)
    assert json.loads(json.dumps(plain)) == plain
    below = plain["modules"]["modules"]
    assert [module["name"] for module in below] == ["bert", "classifier"]
    assert sum(module["share"] for module in below) == pytest.approx(1)
    assert below[0]["modules"] == []


def test_a_trained_student_is_read_from_its_run(project: Path) -> None:
    folder = RunFolder.of(raybrew.load_experiment(project), "distill").student
    BertForSequenceClassification(BertConfig(vocab_size=10, **SIZES)).save_pretrained(folder)
    student = raybrew.inspect(project, latency=False)["student"]
    assert student.source == str(folder)
    assert student.facts["vocabulary"] == 10


def test_any_model_folder(tmp_path: Path) -> None:
    model = BertForMaskedLM(BertConfig(vocab_size=40, **SIZES))
    model.config.architectures = ["BertForMaskedLM"]
    model.config.save_pretrained(tmp_path)
    found = raybrew.inspect(tmp_path, latency=False)["model"]
    assert found.facts["architecture"] == "BertForMaskedLM"
    assert found.modules.parameters == count_parameters(model)
    assert found.modules.shared == 40 * 32 + 40, "the tied decoder and its bias count once"
    with pytest.raises(ConfigError, match="overrides and a task are for experiment files"):
        raybrew.inspect(tmp_path, ["train.seed=1"])
    with pytest.raises(ModelError, match="no such folder"):
        raybrew.inspect(tmp_path / "nothing")


def test_lengths_that_do_not_fit_are_refused(project: Path) -> None:
    for length in (0, 49):
        with pytest.raises(ConfigError, match=rf"--length: given {length}; allowed: 1 to 48"):
            raybrew.inspect(project, length=length)


def test_the_command_shows_both_side_by_side(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["inspect", str(project), "--no-latency", "--level", "2"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line for line in shown.splitlines() if line.startswith("│")}
    both = (f"{parameters(2, 16, 3):,}", f"{parameters(4, 32, 3):,}")
    for name in ("parameters", "all"):
        assert all(number in rows[name] for number in both), name
    assert "embeddings" in rows
    assert "word_embeddings" not in rows
    assert "48 tokens" in shown
    with pytest.raises(SystemExit):
        main(["inspect", str(project), "--no-latency", "--json"])
    assert json.loads(capsys.readouterr().out)["teacher"]["layers"] == 4


def test_a_narrow_terminal_gets_one_table_for_each_model(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raybrew.cli.inspect.results", lambda: Console(width=80, highlight=False))
    with pytest.raises(SystemExit):
        main(["inspect", str(project), "--no-latency"])
    shown = capsys.readouterr().out
    tables = [line for line in shown.splitlines() if line[:1] in "┃│"]
    assert all(len(line) <= 80 and "…" not in line for line in tables)
    rows = {line.split("│")[1].strip() for line in tables if line.startswith("│")}
    assert "token_type_embeddings" in rows
    for name, number in (("student", parameters(2, 16, 3)), ("teacher", parameters(4, 32, 3))):
        headed = [line for line in tables if f"{name}: parameters" in line]
        assert len(headed) == 1
        assert any(line.startswith("│ all ") and f" {number:,} " in line for line in tables)

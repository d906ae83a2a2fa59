"""A regression teacher on another scale than the labels, in runs without labelled evaluation rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_teacher import make_rows, make_teacher
from transformers import BertForSequenceClassification

from raybrew.config.loading import build_experiment
from raybrew.models.loading import load_tokenizer
from raybrew.pipeline.reporter import QuietReporter
from raybrew.verbs.distill import distill


class Told(QuietReporter):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize(
    ("factor", "shift", "distill_config", "told"),
    [
        (50.0, 7.0, {"hard_label_weight": 1.0}, True),
        (1.0, 0.0, {"hard_label_weight": 1.0}, False),
        (50.0, 7.0, {}, False),  # the labels are not learnt
    ],
)
def test_scales_are_compared_on_training_rows(
    tmp_path: Path, factor: float, shift: float, distill_config: dict[str, float], told: bool
) -> None:
    folder = tmp_path / "teacher"
    source = make_teacher(folder)
    model = BertForSequenceClassification.from_pretrained(folder, num_labels=1, ignore_mismatched_sizes=True).eval()
    model.classifier.weight.data.mul_(20)
    model.save_pretrained(folder)
    texts = make_rows(40).column("text").to_pylist()
    tokenizer = load_tokenizer(source)
    with torch.no_grad():
        scores = [float(model(**tokenizer(text, return_tensors="pt")).logits) for text in texts]
    rows = [{"text": text, "label": factor * score + shift} for text, score in zip(texts, scores, strict=True)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {
        "name": "scales",
        "task": {"kind": "regression", "max_length": 32},
        "data": {"train": str(tmp_path / "train.jsonl")},
        "teacher": {"model": str(folder)},
        "student": {"shape": {"layers": 1, "hidden": 32, "heads": 2, "feed_forward": 48}, "init": "random"},
        "distill": {"temperature": 1, **distill_config},
        "train": {"epochs": 1, "device": "cpu"},
        "store": {"storage_path": str(tmp_path / "runs")},
    }
    reporter = Told()
    result = distill(build_experiment(values), reporter=reporter)
    found = [each["kind"] for each in result.summary["teacher"].get("cautions", [])]
    assert ("other scale" in found) == told
    assert any("training rows" in line for line in reporter.lines) == told

"""Tagging through the command line: CoNLL files in, capture by Ray actors, a student, predictions with spans."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_project import cli, make_model

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]

PEOPLE, REST = ("ann", "bob", "carla"), ("saw", "met", "in", "left", "then")


def write_conll(path: Path, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8") as file:
        file.write("-DOCSTART- O\n\n")
        for _ in range(count):
            for _ in range(int(random.integers(3, 30))):
                if random.integers(3):
                    file.write(f"{random.choice(REST)} X O\n")
                else:
                    file.write(f"{random.choice(PEOPLE)} X B-PER\nsmith X I-PER\n")
            file.write("\n")


def test_tagging_from_conll_files_to_predictions(tmp_path: Path) -> None:
    write_conll(tmp_path / "train.conll", 80, 1)
    write_conll(tmp_path / "eval.conll", 30, 2)
    with (tmp_path / "train.conll").open("a", encoding="utf-8") as file:
        file.write("ann X I-PER\n")  # breaks BIO
    make_model(tmp_path / "base", layers=2, extra_words=" ".join((*PEOPLE, *REST, "smith")))
    training = {"batch_size": 8, "learning_rate": 5e-3, "threads": 1}
    values = {
        "name": "tags",
        "task": {"kind": "tagging", "max_length": 20},
        "data": {
            "train": str(tmp_path / "train.conll"),
            "eval": str(tmp_path / "eval.conll"),
            "columns": {"tokens": 0, "tags": -1},
        },
        "teacher": {"model": str(tmp_path / "base"), "finetune": {"epochs": 6, **training}},
        "student": {"shape": {"layers": 1}},
        "distill": {"temperature": 2.0, "matches": [{"loss": "hidden_mse", "layers": "final"}]},
        "train": {"epochs": 5, **training},
        "store": {"storage_path": str(tmp_path / "runs"), "launcher": "ray", "rows_per_shard": 40},
    }
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(yaml.safe_dump(values), encoding="utf-8")
    _, refused = cli("finetune", experiment, code=1)
    assert "row 81" in refused
    assert "BIO: word 1 (I-PER) must follow B-PER or I-PER, not the start" in refused
    options = ("data.on_bad_row=skip", "teacher.source=store")  # of the store: what `capture` made must suffice
    cli("finetune", experiment, *options)
    cli("capture", experiment, *options)
    cli("distill", experiment, *options)
    out, _ = cli("evaluate", experiment, *options, "--json")
    found = json.loads(out)
    assert found["metrics"]["f1"] > 0.9
    assert found["rows"] == 30, "sentences, not the units they are cut into"
    rows = tmp_path / "new.jsonl"
    rows.write_text(json.dumps({"tokens": ["then", "bob", "smith", "left"]}) + "\n", encoding="utf-8")
    out, _ = cli("predict", experiment, *options, "--input", rows)
    predicted = json.loads(out)
    assert predicted["tags"] == ["O", "B-PER", "I-PER", "O"]
    assert [(span["type"], span["start"], span["end"]) for span in predicted["spans"]] == [("PER", 1, 3)]

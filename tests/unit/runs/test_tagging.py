"""Tagging from rows to a student that `transformers.pipeline` runs, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import BertConfig, BertForTokenClassification, pipeline

import raybrew
from raybrew.config import Experiment
from raybrew.config.loading import build_experiment
from raybrew.data.rows import load_rows
from raybrew.demo.tokenizer import build_tokenizer
from raybrew.errors import ConfigError
from raybrew.models.loading import ModelSource, load_tokenizer
from raybrew.signals import LOGITS, Signal
from raybrew.storage.open import stores_root
from raybrew.store.reader import Store
from raybrew.tasks.base import build_task

PEOPLE, PLACES = ("ann", "bob", "carlos"), ("rome", "oslo", "lima")
REST = ("saw", "met", "in", "and", "then", "near", "left", "for", "unbelievably")


def write_rows(path: Path, count: int, seed: int, tags: bool = True) -> None:
    """Sentences of 3 to 30 words in which the word alone tells the tag; some are longer than `max_length`."""
    random = np.random.default_rng(seed)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            words, names = [], []
            for _ in range(int(random.integers(3, 30))):
                kind = int(random.integers(4))
                if kind == 0:
                    words += [str(random.choice(PEOPLE))]
                    names += ["B-PER"]
                elif kind == 1:
                    words += ["new", str(random.choice(PLACES))]
                    names += ["B-LOC", "I-LOC"]
                else:
                    words += [str(random.choice(REST))]
                    names += ["O"]
            file.write(json.dumps({"tokens": words, **({"tags": names} if tags else {})}) + "\n")


def make_model(folder: Path, words: str = "", seed: int = 0) -> Path:
    vocabulary = " ".join((*PEOPLE, *PLACES, *REST[:-1], "new", words))
    tokenizer = build_tokenizer([vocabulary], folder, max_length=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
        )
        BertForTokenClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A finished teacher, and the experiment's values."""
    folder = tmp_path_factory.mktemp("tagging")
    write_rows(folder / "train.jsonl", 80, 1)
    write_rows(folder / "eval.jsonl", 30, 2)
    write_rows(folder / "more.jsonl", 20, 3, tags=False)
    make_model(folder / "base")
    training = {"batch_size": 8, "learning_rate": 5e-3, "threads": 1}
    return {
        "name": "tags",
        "task": {"kind": "tagging", "max_length": 24},
        "data": {
            "train": str(folder / "train.jsonl"),
            "eval": str(folder / "eval.jsonl"),
            "unlabeled": str(folder / "more.jsonl"),
        },
        "teacher": {"model": str(folder / "base"), "finetune": {"epochs": 6, **training}},
        "student": {"shape": {"layers": 1}},
        "distill": {"hard_label_weight": 0.5, "matches": [{"loss": "hidden_mse", "layers": "final"}]},
        "train": {"epochs": 5, **training},
        "store": {"storage_path": str(folder / "runs"), "launcher": "local"},
    }


@pytest.fixture(scope="module")
def experiment(values: dict[str, Any]) -> Experiment:
    experiment = build_experiment(values)
    assert raybrew.finetune(experiment).metrics["f1"] > 0.95
    return experiment


def test_every_verb(experiment: Experiment, tmp_path: Path) -> None:
    raybrew.capture(experiment)
    run = raybrew.distill(experiment)
    assert run.metrics["f1"] > 0.9
    assert raybrew.evaluate(experiment).metrics == pytest.approx(run.metrics)
    assert set(run.metrics) == {"f1", "precision", "recall", "accuracy", "macro_f1"}
    source = tmp_path / "new.jsonl"
    long = ["saw"] * 40 + ["ann", "in", "new", "rome"]
    source.write_text(json.dumps({"tokens": ["bob", "left"]}) + "\n" + json.dumps({"tokens": long}) + "\n")
    short, whole = raybrew.predict(experiment, str(source))
    assert short["tags"] == ["B-PER", "O"]
    assert [(span["type"], span["words"]) for span in short["spans"]] == [("PER", ["bob"])]
    assert len(whole["tags"]) == len(long)
    assert [(span["type"], span["start"], span["end"]) for span in whole["spans"]] == [("PER", 40, 41), ("LOC", 42, 44)]
    tagger = pipeline("token-classification", model=str(run.student), aggregation_strategy="first")
    found = tagger("then ann saw new oslo")
    assert [(entry["entity_group"], entry["word"]) for entry in found] == [("PER", "ann"), ("LOC", "new oslo")]


def test_the_store_holds_one_vector_per_word(experiment: Experiment) -> None:
    raybrew.capture(experiment)
    (path,) = [path for path in Path(stores_root(experiment.store)).iterdir() if (path / "manifest.json").is_file()]
    store = Store.open(path)
    items = store.examples.ragged("items").lengths
    rows = np.arange(store.num_rows)
    assert store.gather(LOGITS, rows).shape == (store.num_rows, items.max(), 5)
    assert store.gather(Signal("hidden", 2), rows).shape[1] == store.lengths.max() <= 24
    task, tokenizer = build_task(experiment.task), load_tokenizer(ModelSource(experiment.teacher.model))
    tables = [load_rows(experiment.data, split, task).table for split in ("train", "unlabeled", "eval")]
    units = task.units(pa.concat_tables(tables), (tokenizer,)).column("tokens").to_pylist()
    assert sum(map(len, units)) == sum(len(row) for table in tables for row in table.column("tokens").to_pylist())
    assert items.sum() == sum(map(len, {tuple(unit) for unit in units})), "one vector for each word of each unit"


def test_a_student_with_another_tokenizer_learns_word_by_word(
    experiment: Experiment, values: dict[str, Any], tmp_path: Path
) -> None:
    # Without `new` and the places whole, words have other numbers of pieces, so sentences are cut elsewhere too.
    other = make_model(tmp_path / "other", "xyz " * 3, seed=5)
    student = {**values, "student": {"model": str(other)}, "distill": {"temperature": 2.0}}
    run = raybrew.distill(build_experiment(student))
    assert run.metrics["f1"] > 0.9


def test_live_and_stored_teacher_train_alike(experiment: Experiment, values: dict[str, Any]) -> None:
    finals = []
    for source in ("store", "live"):
        changed = {**values, "teacher": {**values["teacher"], "source": source}}
        changed["train"] = {**values["train"], "epochs": 1, "micro_batch_size": 3}
        changed["store"] = {**values["store"], "element_type": "float32"}
        if source == "store":
            raybrew.capture(build_experiment(changed))
        run = raybrew.distill(build_experiment(changed))
        records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
        finals.append([record["loss"] for record in records if record["kind"] == "train"])
    assert len(finals[0]) > 1
    assert finals[0] == pytest.approx(finals[1], rel=1e-4)


def test_rows_longer_than_the_model_takes_are_refused(values: dict[str, Any]) -> None:
    changed = {**values, "task": {"kind": "tagging", "max_length": 128}}
    with pytest.raises(ConfigError, match=r"task.max_length: the longest row has \d+ tokens, but .* at most 64"):
        raybrew.finetune(build_experiment(changed))

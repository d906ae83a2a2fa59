"""Masked language modelling from random weights to a student, a classifier that begins from it, and filled masks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from transformers import AutoModelForMaskedLM, BertConfig, pipeline

import raybrew
from raybrew.config import Experiment
from raybrew.config.loading import build_experiment
from raybrew.demo.tokenizer import build_tokenizer
from raybrew.errors import ConfigError, DataError

#: Each word of the first kind is followed by its own of the second.
PAIRS = {"ka": "mo", "ti": "re", "so": "lu", "ne": "fa", "bi": "du"}
TRAINING = {"batch_size": 8, "learning_rate": 5e-3, "threads": 1}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def texts(count: int, seed: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    return [
        {"text": " ".join(f"{word} {PAIRS[word]}" for word in random.choice(list(PAIRS), random.integers(1, 3)))}
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and a config, but no weights, and a trained teacher."""
    folder = tmp_path_factory.mktemp("mlm")
    tokenizer = build_tokenizer([" ".join([*PAIRS, *PAIRS.values()])], folder / "base", max_length=32)
    BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    ).save_pretrained(folder / "base")
    write(folder / "train.jsonl", texts(160, 1))
    write(folder / "eval.jsonl", texts(60, 2))
    raybrew.finetune(experiment_of(folder))
    return folder


def experiment_of(folder: Path, **sections: Any) -> Experiment:
    values = {
        "name": "mlm",
        "task": {"kind": "masked_lm", "max_length": 16, "mask_rate": 0.25},
        "data": {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl")},
        "teacher": {"model": str(folder / "base"), "finetune": {"epochs": 20, "init": "random", **TRAINING}},
        "student": {"shape": {"layers": 1}},
        "distill": {"method": "distilbert"},
        "train": {"epochs": 6, "log_steps": 1, **TRAINING},
        "store": {"storage_path": str(folder / "runs"), "launcher": "local"},
    }
    return build_experiment({**values, **sections})


def test_from_random_weights_to_a_student_by_distilberts_recipe(project: Path) -> None:
    experiment = experiment_of(project)
    teacher = raybrew.finetune(experiment)
    assert teacher.already_done
    assert set(teacher.metrics) == {"accuracy", "log_likelihood", "perplexity"}
    assert teacher.metrics["accuracy"] > 0.8, "each word follows from the one beside it"
    assert teacher.metrics["perplexity"] == pytest.approx(math.exp(-teacher.metrics["log_likelihood"]))
    student = raybrew.distill(experiment)
    losses = [json.loads(line) for line in (student.path / "metrics.jsonl").read_text().splitlines()]
    assert {key for line in losses for key in line if key.startswith("loss/")} == {
        "loss/kd",
        "loss/label",
        "loss/cos.1-2",
    }
    assert student.metrics["accuracy"] > 0.6
    assert student.summary["distill"]["source"] == "live"
    assert student.summary["rows"] == {"train": 160, "unlabeled": 0, "eval": 60}
    assert student.summary["teacher"]["metrics"] == pytest.approx(teacher.metrics)
    assert raybrew.evaluate(experiment).metrics == pytest.approx(student.metrics)
    assert raybrew.evaluate(experiment, model="teacher").metrics == pytest.approx(teacher.metrics)


def test_student_folder_is_what_transformers_reads(project: Path) -> None:
    run = raybrew.distill(experiment_of(project))
    with safe_open(run.student / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "bert.embeddings.word_embeddings.weight" in names
    assert "cls.predictions.decoder.weight" not in names, "tied weights are kept once"
    model = AutoModelForMaskedLM.from_pretrained(run.student)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    new = write(
        project / "new.jsonl", [{"text": "ka [MASK] ti re"}, {"text": "so lu"}, {"text": "[MASK] fa ne [MASK]"}]
    )
    filled = raybrew.predict(experiment_of(project), new)
    assert [len(row["masks"]) for row in filled] == [1, 0, 2]
    best = pipeline("fill-mask", model=str(run.student))("ka [MASK] ti re")
    assert [(guess["token"], pytest.approx(guess["score"], abs=1e-5)) for guess in filled[0]["masks"][0]] == [
        (guess["token_str"], guess["score"]) for guess in best
    ]
    with pytest.raises(DataError, match="no text holds the model's mask token"):
        raybrew.predict(experiment_of(project), write(project / "none.jsonl", [{"text": "ka mo"}]))


def test_a_classifier_begins_from_a_masked_language_model(project: Path) -> None:
    run = raybrew.finetune(experiment_of(project))
    rows = [{"text": row["text"], "label": "yes" if "ka" in row["text"].split() else "no"} for row in texts(80, 3)]
    data = {"train": write(project / "labelled.jsonl", rows), "eval": str(project / "labelled.jsonl")}
    started = {
        "name": "after",
        "data": data,
        "teacher": {"model": str(run.student), "finetune": {"epochs": 6, **TRAINING}},
        "student": {"model": str(run.student)},
        "train": {"epochs": 4, **TRAINING},
        "task": {"kind": "classification", "max_length": 16},
        "store": {"storage_path": str(project / "runs"), "launcher": "local"},
    }
    experiment = build_experiment(started)
    assert raybrew.finetune(experiment).metrics["accuracy"] > 0.9
    assert raybrew.distill(experiment).metrics["accuracy"] > 0.9


def test_what_cannot_be_is_refused_with_its_reason(project: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        experiment_of(
            project,
            teacher={"members": {"a": {"model": "x"}, "b": {"model": "y"}}},
            data={"unlabeled": str(project / "train.jsonl")},
            store={"signals": ["logits"]},
            student={"shape": "BiGRU", "vocabulary": {}},
            task={"kind": "masked_lm", "masked": 0.8, "randomised": 0.3},
        )
    keys = {problem.key for problem in caught.value.problems}
    assert {
        "student.shape",
        "student.vocabulary",
        "teacher.members",
        "data.unlabeled",
        "store.signals",
        "task.randomised",
    } <= keys
    with pytest.raises(
        ConfigError, match=r"teacher.source: given 'store' for task.kind 'masked_lm'; allowed: auto, live"
    ):
        experiment_of(project, teacher={"model": str(project / "base"), "source": "store"})
    with pytest.raises(ConfigError, match="nothing to capture: masks are new in every epoch"):
        raybrew.capture(experiment_of(project))
    other = tmp_path / "other"
    tokenizer = build_tokenizer(["other words"], other, max_length=32)
    BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2).save_pretrained(
        other
    )
    AutoModelForMaskedLM.from_config(BertConfig.from_pretrained(other)).save_pretrained(other)
    with pytest.raises(DataError, match="tokenizers of student and teacher differ"):
        raybrew.distill(experiment_of(project, student={"model": str(other)}))


@pytest.mark.parametrize("trained", [True, False])
def test_plan_says_that_the_teacher_runs_live(project: Path, trained: bool) -> None:
    experiment = experiment_of(project)
    if not trained:  # there are no weights yet
        finetune = {"epochs": 1, "init": "random", **TRAINING}
        experiment = experiment_of(project, teacher={"model": str(project / "base"), "finetune": finetune})
    found = raybrew.plan(experiment)
    assert found.advice == "live"
    assert "masks are new in every epoch" in found.verdict
    assert found.stores[0].bytes == {}
    assert found.stores[0].tokens_per_second > 0
    assert found.training is not None
    assert found.training.rows == 160

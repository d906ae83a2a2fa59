"""Regression, multi-label and question answering from rows to a student, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForQuestionAnswering, BertConfig, BertModel, pipeline

import raybrew
from raybrew.config import Experiment
from raybrew.config.loading import build_experiment
from raybrew.demo.tokenizer import build_tokenizer
from raybrew.errors import DataError
from raybrew.pipeline.reporter import LineReporter

PARTS = {"good": 2.0, "fair": 1.0, "poor": -1.0, "awful": -2.0}
FILLERS = ("ka", "mo", "ti", "re", "so", "lu", "ne")
CITIES = ("rome", "oslo", "lima", "kyiv", "bern", "doha")


def make_model(folder: Path, words: tuple[str, ...], seed: int = 0) -> str:
    """An untrained BERT without a head for any task."""
    tokenizer = build_tokenizer([" ".join(words)], folder, max_length=64)
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
        BertModel(config).save_pretrained(folder)
    return str(folder)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def without_labels(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("label", "answers")}


def texts(count: int, seed: int) -> list[list[str]]:
    random = np.random.default_rng(seed)
    return [
        [*random.choice(list(PARTS), random.integers(1, 3)), *random.choice(FILLERS, random.integers(1, 5))]
        for _ in range(count)
    ]


def experiment_of(
    folder: Path, task: dict[str, Any], rows: Any, words: tuple[str, ...], rate: float = 2e-3, **more: Any
) -> Experiment:
    training = {"batch_size": 8, "learning_rate": rate, "threads": 1}
    values = {
        "name": task["kind"],
        "task": task,
        "data": {
            "train": write(folder / "train.jsonl", rows(96, 1)),
            "eval": write(folder / "eval.jsonl", rows(40, 2)),
            "unlabeled": write(folder / "more.jsonl", [without_labels(row) for row in rows(16, 3)]),
        },
        "teacher": {"model": make_model(folder / "base", words), "finetune": {"epochs": 12, **training}},
        "student": {"shape": {"layers": 1}},
        "train": {"epochs": 10, **training},
        "store": {"storage_path": str(folder / "runs"), "launcher": "local"},
        **more,
    }
    return build_experiment(values)


def test_regression(tmp_path: Path) -> None:
    def rows(count: int, seed: int) -> list[dict[str, Any]]:
        return [
            {"text": " ".join(words), "label": sum(PARTS.get(word, 0.0) for word in words)}
            for words in texts(count, seed)
        ]

    experiment = experiment_of(
        tmp_path,
        {"kind": "regression", "max_length": 16},
        rows,
        (*PARTS, *FILLERS),
        distill={"temperature": 3.0, "hard_label_weight": 0.5},
    )
    assert raybrew.finetune(experiment).metrics["pearson"] > 0.8
    run = raybrew.distill(experiment)
    assert set(run.metrics) == {"pearson", "spearman", "mse"}
    assert run.metrics["pearson"] > 0.75
    assert raybrew.evaluate(experiment).metrics == pytest.approx(run.metrics)
    new = write(tmp_path / "new.jsonl", [{"text": "good good ka"}, {"text": "awful ti"}])
    high, low = (row["score"] for row in raybrew.predict(experiment, new))
    assert high > 1 > -1 > low
    found = pipeline("text-classification", model=str(run.student))("good good ka")
    assert found[0]["score"] == pytest.approx(high, abs=1e-4), "the pipeline must not squash the number"


def test_multilabel(tmp_path: Path) -> None:
    def rows(count: int, seed: int) -> list[dict[str, Any]]:
        made = []
        for number, words in enumerate(texts(count, seed)):
            labels = sorted({word for word in words if word in PARTS and word != "fair"})
            made.append({"text": " ".join(words), "label": labels if number % 2 else " / ".join(labels)})
        return made

    experiment = experiment_of(
        tmp_path,
        {"kind": "multilabel", "max_length": 16, "separator": "/"},
        rows,
        (*PARTS, *FILLERS),
        rate=3e-3,
        distill={"temperature": 2.0, "hard_label_weight": 0.5},
    )
    assert raybrew.finetune(experiment).metrics["micro_f1"] > 0.8
    run = raybrew.distill(experiment)
    assert set(run.metrics) == {"micro_f1", "macro_f1", "subset_accuracy"}
    assert run.metrics["micro_f1"] > 0.75
    assert run.summary["distill"]["kd_loss"] == "bce"
    new = write(tmp_path / "new.jsonl", [{"text": "good awful ka"}, {"text": "fair ti"}])
    both, none = raybrew.predict(experiment, new)
    assert both["labels"] == ["awful", "good"]
    assert none["labels"] == []
    found = pipeline("text-classification", model=str(run.student), top_k=None)(["good awful ka"])[0]
    assert {entry["label"]: round(entry["score"], 4) for entry in found} == {
        name: round(score, 4) for name, score in both["scores"].items()
    }


def question_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """`who lives` is answered by the words after `in`, far into a context of several windows or soon."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        before = " ".join(random.choice(FILLERS, random.integers(0, 50)))
        answer = f"new {random.choice(CITIES)}" if number % 2 else str(random.choice(CITIES))
        context = f"{before} lives in {answer} {' '.join(random.choice(FILLERS, 3))}".strip()
        answers = {"text": [answer], "answer_start": [context.index(f"in {answer}") + 3]}
        made.append({"question": "lives where", "context": context, "answers": answers})
    return made


def test_question_answering(tmp_path: Path) -> None:
    experiment = experiment_of(
        tmp_path,
        {"kind": "qa", "max_length": 32, "stride": 8, "max_question": 8},
        question_rows,
        (*FILLERS, *CITIES, "lives", "in", "new", "where"),
        rate=5e-3,
        distill={"temperature": 2.0, "hard_label_weight": 0.2, "matches": [{"loss": "hidden_mse", "layers": "final"}]},
    )
    assert raybrew.finetune(experiment).metrics["f1"] > 0.9
    raybrew.capture(experiment)
    run = raybrew.distill(experiment)
    assert set(run.metrics) == {"f1", "exact_match"}
    assert run.metrics["f1"] > 0.8
    assert raybrew.evaluate(experiment).metrics == pytest.approx(run.metrics)
    rows = [without_labels(row) for row in question_rows(4, 7)]
    found = raybrew.predict(experiment, write(tmp_path / "new.jsonl", rows))
    assert [row["context"][row["start"] : row["end"]] for row in found] == [row["answer"] for row in found]
    assert all("scored" not in row and len(row["n_best"]) > 1 for row in found)
    assert sum(entry["score"] for entry in found[0]["n_best"]) == pytest.approx(1, abs=1e-3)
    AutoModelForQuestionAnswering.from_pretrained(run.student)

    data = experiment.data.model_dump(mode="json")
    words = FILLERS * 8
    long: dict[str, Any] = {"question": "lives where", "context": " ".join(words)}
    answer = " ".join(words[20:44])
    long["answers"] = {"text": [answer], "answer_start": [long["context"].index(answer)]}
    more = [{**long, "question": f"{name} lives where"} for name in CITIES[:6]]
    data["train"] = write(tmp_path / "long.jsonl", [*question_rows(3, 1), long, *more])
    plain = {**experiment.plain(), "data": data, "distill": {"hard_label_weight": 0.5}}
    with pytest.raises(DataError) as caught:
        raybrew.finetune(build_experiment(plain))
    rule = "column 'answers': no window of 32 tokens holds an answer whole; neighbours share 8 tokens"
    assert f"{tmp_path / 'long.jsonl'}, row 4 (line 4), {rule}" in str(caught.value)
    assert str(caught.value).endswith("row 8 (line 8), " + rule + " (task.max_length, task.stride)\n  and 2 more")
    one_step = {**plain["teacher"]["finetune"], "max_steps": 1}
    data["on_bad_row"] = "skip"
    skipping = build_experiment({**plain, "data": data, "teacher": {**plain["teacher"], "finetune": one_step}})
    said: list[str] = []
    raybrew.finetune(skipping, reporter=LineReporter(said.append))
    assert (
        said[0] == "7 of 10 labelled rows have a label that no part of them holds; they teach through the teacher alone"
    )
    assert rule in said[1]
    assert said[6] == "  and 2 more"

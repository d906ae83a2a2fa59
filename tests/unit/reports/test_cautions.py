"""Doubtful rows and teachers, from the commands that read them to the summary and the report, in this process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

import raybrew
from raybrew.config import Experiment
from raybrew.config.loading import build_experiment
from raybrew.data.model_cautions import RenamedOutputs
from raybrew.demo.tokenizer import build_tokenizer
from raybrew.pipeline.reporter import LineReporter
from raybrew.records.cautions import cautions_of
from raybrew.records.runs import load_run
from raybrew.records.summary import RunSummary
from raybrew.reports.compare import compare
from raybrew.reports.decision import decide
from raybrew.reports.words import serious_cautions
from raybrew.sweeps.prepare import prepare_teachers
from unit.reports_helpers import make_run

NAMES = ("bad", "good")
WORDS = {"good": ("fine", "great", "warm"), "bad": ("dull", "weak", "sad")}
FILLERS = ("ka", "mo", "ti", "re", "so", "lu", "ne")


def rows_of(count: int, seed: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    made = []
    for number in range(count):
        name = NAMES[number % 2]
        words = [*rng.choice(FILLERS, 4), rng.choice(WORDS[name]), f"n{seed % 10}", *map(str, f"{number:03d}")]
        made.append({"text": " ".join(words), "label": name})
    return made


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that knows the words; its outputs are bad, good."""
    folder = tmp_path_factory.mktemp("trained")
    words = [*WORDS["good"], *WORDS["bad"], *FILLERS, *map(str, range(10)), *(f"n{seed}" for seed in range(10))]
    tokenizer = build_tokenizer([" ".join(words)], folder, max_length=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=32, id2label=dict(enumerate(NAMES)), label2id={n: i for i, n in enumerate(NAMES)},
        )  # fmt: skip
        model = BertForSequenceClassification(config).eval()
    rows = rows_of(128, 9)
    batch = tokenizer([row["text"] for row in rows], return_tensors="pt", padding=True)
    labels = torch.tensor([NAMES.index(row["label"]) for row in rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(40):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1
    model.save_pretrained(folder)
    return folder


def renamed(source: Path, target: Path, names: tuple[str, ...] | None) -> Path:
    """The same weights under other names of outputs, or none."""
    if source != target:
        shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    names = names or ("LABEL_0", "LABEL_1")
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    (target / "config.json").write_text(json.dumps(config))
    return target


def experiment_of(folder: Path, model: Path, **more: Any) -> Experiment:
    values: dict[str, Any] = {
        "name": "x",
        "data": {
            "train": write(folder / "train.jsonl", rows_of(64, 1)),
            "eval": write(folder / "eval.jsonl", rows_of(60, 2)),
        },
        "teacher": {"model": str(model)},
        "student": {"shape": {"layers": 1}},
        "train": {"epochs": 1, "batch_size": 16, "threads": 1},
        "store": {"storage_path": str(folder / "runs"), "launcher": "local"},
    }
    for section, changes in more.items():
        values[section] = values.get(section, {}) | changes
    return build_experiment(values)


def distilled(experiment: Experiment) -> tuple[raybrew.RunResult, list[Any], list[str]]:
    """The run, its cautions, and the lines that were told."""
    lines: list[str] = []
    run = raybrew.distill(experiment, reporter=LineReporter(lines.append))
    return run, cautions_of(run.record.summary), lines


def test_a_sound_experiment_raises_no_doubt(trained: Path, tmp_path: Path) -> None:
    run, cautions, lines = distilled(experiment_of(tmp_path, trained))
    assert run.summary["teacher"]["metrics"]["accuracy"] > 0.9
    assert not cautions
    assert not [line for line in lines if "warning" in line]
    assert run.summary["cautions"] == []


def test_names_in_a_wrong_order(trained: Path, tmp_path: Path) -> None:
    teacher = renamed(trained, tmp_path / "teacher", ("good", "bad"))
    experiment = experiment_of(tmp_path, teacher)
    run, cautions, lines = distilled(experiment)
    kinds = {caution.kind: caution for caution in cautions}
    assert set(kinds) == {"better order", "weak model"}
    better = kinds["better order"]
    assert (tuple(better.names), tuple(better.better)) == (("good", "bad"), ("bad", "good"))
    assert better.better_value == pytest.approx(1 - run.summary["teacher"]["metrics"]["accuracy"])
    assert all(any(caution.text() in line for line in lines) for caution in cautions)
    # The same doubts from `evaluate`, and in the report.
    lines = []
    found = raybrew.evaluate(experiment, model="teacher", reporter=LineReporter(lines.append))
    assert {caution.kind for caution in found.cautions} == set(kinds)
    assert any(better.text() in line for line in lines)
    assert json.loads(json.dumps(found.plain()))["cautions"][0]["kind"] == "better order"
    shown = decide(compare([load_run(run.path)])).cautions
    assert all(any(caution.text()[3:] in line for line in shown) for caution in cautions)


@pytest.mark.parametrize("labels", [None, ["good", "bad"]])
def test_outputs_without_names(labels: list[str] | None, trained: Path, tmp_path: Path) -> None:
    """They are taken by position: by luck rightly, or wrongly."""
    teacher = renamed(trained, tmp_path / "teacher", None)
    run, cautions, lines = distilled(
        experiment_of(tmp_path, teacher, task={"kind": "classification", "labels": labels})
    )
    unnamed = next(caution for caution in cautions if caution.kind == "unnamed outputs")
    assert any(unnamed.text() in line for line in lines)
    if labels is None:
        assert (tuple(unnamed.names), unnamed.confirmed) == (NAMES, True)
        assert not serious_cautions([load_run(run.path)])
    else:
        assert (tuple(unnamed.names), unnamed.confirmed) == (("good", "bad"), False)
        assert "better order" in {caution.kind for caution in cautions}
        assert len(serious_cautions([load_run(run.path)])) == 3


def test_names_changed_after_the_capture(trained: Path, tmp_path: Path) -> None:
    teacher = renamed(trained, tmp_path / "teacher", NAMES)
    experiment = experiment_of(tmp_path, teacher, teacher={"source": "store"})
    store = raybrew.capture(experiment)
    assert store.manifest["labels"] == [list(NAMES)]
    _, cautions, _ = distilled(experiment)
    assert not cautions
    renamed(teacher, teacher, ("good", "bad"))
    changed = experiment_of(tmp_path, teacher, teacher={"source": "store"}, train={"seed": 1})
    _, cautions, lines = distilled(changed)
    found = next(caution for caution in cautions if caution.kind == "renamed outputs")
    assert (tuple(found.captured), tuple(found.names), found.confirmed) == (NAMES, ("good", "bad"), False)
    assert any(found.text() in line for line in lines)
    assert "better order" in {caution.kind for caution in cautions}
    # A capture that adds to the store tells of it and notes the new order as well.
    lines = []
    data = {"train": write(tmp_path / "more.jsonl", rows_of(80, 1))}
    grown = raybrew.capture(experiment_of(tmp_path, teacher, data=data), reporter=LineReporter(lines.append))
    assert grown.fingerprint == store.fingerprint
    assert grown.manifest["labels"] == [list(NAMES), ["good", "bad"]]
    told = RenamedOutputs("the teacher", ("good", "bad"), NAMES, False).text()
    assert any(told in line for line in lines)


def test_a_corrected_order_is_confirmed(trained: Path, tmp_path: Path) -> None:
    """Stored outputs are as good as before when only wrong names were put right."""
    teacher = renamed(trained, tmp_path / "teacher", ("good", "bad"))
    experiment = experiment_of(tmp_path, teacher)
    raybrew.capture(experiment)
    renamed(teacher, teacher, NAMES)
    run, cautions, _ = distilled(experiment)
    (found,) = cautions
    assert (found.kind, found.confirmed) == ("renamed outputs", True)
    assert run.summary["distill"]["source"] == "store"
    assert not serious_cautions([load_run(run.path)])


def test_a_store_without_names_is_no_doubt(trained: Path, tmp_path: Path) -> None:
    """Stores of versions that noted none."""
    experiment = experiment_of(tmp_path, trained)
    manifest = raybrew.capture(experiment).path / "manifest.json"
    values = json.loads(manifest.read_text())
    del values["labels"], values["xxh3"]
    manifest.write_text(json.dumps(values))
    assert raybrew.capture(experiment).num_rows == 64 + 60, "training and evaluation rows"
    assert not distilled(experiment)[1]


def test_one_of_several_teachers(trained: Path, tmp_path: Path) -> None:
    wrong = renamed(trained, tmp_path / "wrong", None)
    reverse = AutoModelForSequenceClassification.from_pretrained(wrong)
    with torch.no_grad():
        for tensor in (reverse.classifier.weight, reverse.classifier.bias):
            tensor.copy_(tensor.flip(0))
    reverse.save_pretrained(wrong)
    AutoTokenizer.from_pretrained(trained).save_pretrained(wrong)
    members = {"one": {"model": str(trained)}, "two": {"model": str(wrong)}}
    experiment = experiment_of(tmp_path, trained, teacher={"model": None, "members": members})
    run, cautions, _ = distilled(experiment)
    assert {caution.model for caution in cautions} == {"the teacher two"}
    assert {caution.kind for caution in cautions} == {"better order", "weak model", "unnamed outputs"}
    assert "cautions" not in run.summary["teacher"]["members"]["one"]
    told = raybrew.evaluate(experiment, model="teacher", teacher="two").cautions
    assert {caution.kind for caution in told} == {caution.kind for caution in cautions}


def test_rows_are_told_once_and_kept(trained: Path, tmp_path: Path) -> None:
    doubtful = [
        *rows_of(40, 1),
        *rows_of(40, 1)[:20],
        {"text": rows_of(1, 1)[0]["text"], "label": "good"},
        {"text": ""},
    ]
    data = {"train": write(tmp_path / "doubtful.jsonl", doubtful), "on_bad_row": "skip"}
    experiment = experiment_of(
        tmp_path,
        trained,
        data=data,
        teacher={"finetune": {"epochs": 1, "threads": 1}},
        student={"vocabulary": {"min_count": 1}},
    )
    lines: list[str] = []
    reporter = LineReporter(lines.append)
    kinds = ["skipped rows", "contradictory rows", "repeated rows"]

    def told() -> list[str]:
        found = [line for line in lines if "data.train" in line]
        lines.clear()
        return found

    finetuned = raybrew.finetune(experiment, reporter=reporter)
    assert [caution["kind"] for caution in finetuned.summary["cautions"]] == kinds
    first = told()
    assert len(first) == len(set(first)) == 3
    raybrew.capture(experiment, reporter=reporter)
    assert told() == first
    raybrew.plan(experiment, reporter=reporter)
    assert told() == first
    run = raybrew.distill(experiment, reporter=reporter)
    assert told() == first
    assert [caution["kind"] for caution in run.summary["cautions"]] == kinds


def test_rows_of_several_teachers_and_tasks(trained: Path, tmp_path: Path) -> None:
    """Told once for all teachers of a task, with the key of the task; a sweep tells them before its trials."""
    doubtful = write(tmp_path / "doubtful.jsonl", [*rows_of(30, 1), *rows_of(5, 1)])
    finetune = {"epochs": 1, "max_steps": 1, "threads": 1}
    members = {name: {"model": str(trained), "finetune": {**finetune, "seed": seed}} for seed, name in enumerate("ab")}
    lines: list[str] = []
    reporter = LineReporter(lines.append)
    experiment = experiment_of(tmp_path, trained, data={"train": doubtful}, teacher={"model": None, "members": members})
    assert len(raybrew.finetune_all(experiment, reporter=reporter)) == 2
    assert len([line for line in lines if "data.train:" in line]) == 1
    lines.clear()
    part = {"data": {"train": doubtful, "eval": str(experiment.data.eval)}, "teacher": {"model": str(trained)}}
    several = build_experiment(
        {
            "name": "several",
            "task": {"kind": "multi", "tasks": {"one": part, "two": part}},
            "student": {"shape": {"layers": 1}},
            "train": {"max_steps": 1, "batch_size": 16, "threads": 1},
            "store": {"storage_path": str(tmp_path / "runs"), "launcher": "local"},
            "sweep": {"space": {"distill.temperature": [1.0, 2.0], "train.batch_size": [8, 16]}},
        }
    )
    keys = ["task.tasks.one.data.train", "task.tasks.two.data.train"]
    _, cautions, _ = distilled(several)
    assert [caution.split for caution in cautions] == keys
    prepare_teachers(several, 4, reporter)
    assert [line.split(":")[1].strip() for line in lines if ".data.train:" in line] == keys


def test_evaluated_rows_that_were_trained_on(trained: Path, tmp_path: Path) -> None:
    experiment = experiment_of(tmp_path, trained)
    fresh = write(tmp_path / "fresh.jsonl", [*rows_of(30, 3), *rows_of(10, 1)])
    lines: list[str] = []
    found = raybrew.evaluate(experiment, model="teacher", data=fresh, reporter=LineReporter(lines.append))
    (shared,) = found.cautions
    assert (shared.kind, shared.rows, shared.of) == ("shared rows", 10, 40)  # type: ignore[attr-defined]
    assert [line for line in lines if shared.text() in line]
    assert raybrew.evaluate(experiment, model="teacher").cautions == ()
    Path(str(experiment.data.train)).unlink()
    assert raybrew.evaluate(experiment, model="teacher", data=fresh).cautions == ()


def test_test_rows_are_checked(trained: Path, tmp_path: Path) -> None:
    test = write(tmp_path / "test.jsonl", [*rows_of(30, 3), *rows_of(2, 2), {"text": " "}])
    run, cautions, lines = distilled(experiment_of(tmp_path, trained, data={"test": test, "on_bad_row": "skip"}))
    assert [(each.kind, each.split, each.rows) for each in cautions] == [
        ("skipped rows", "data.test", 1), ("shared rows", "data.test", 2)
    ]  # fmt: skip
    assert cautions[1].other == "data.eval"
    assert run.summary["test"]["rows"] == 32
    told = [sum(each.text() in line for line in lines) for each in cautions]
    assert told == [1, 1], "told when the rows are read, and not again when they are scored"
    # Bad rows of a file are counted once, though a share of it is the test split.
    data = {
        "train": write(tmp_path / "bad.jsonl", [*rows_of(64, 1), {"text": ""}]),
        "test": "30%",
        "on_bad_row": "skip",
    }
    _, cautions, _ = distilled(experiment_of(tmp_path, trained, data=data))
    assert [(each.kind, each.split, each.rows, each.of) for each in cautions] == [("skipped rows", "data.train", 1, 65)]


def test_evaluations_kept_by_other_versions_are_computed_again(trained: Path, tmp_path: Path) -> None:
    experiment = experiment_of(tmp_path, renamed(trained, tmp_path / "teacher", ("good", "bad")))
    _, cautions, _ = distilled(experiment)
    (kept,) = (tmp_path / "runs" / ".cache").glob("evaluation-*.json")
    values = json.loads(kept.read_text())
    assert values["agreement"]["rows"] == 60
    del values["agreement"]
    kept.write_text(json.dumps(values | {"accuracy": 1.0}))
    again = experiment.model_copy(update={"train": experiment.train.model_copy(update={"seed": 5})})
    assert [each.plain() for each in distilled(again)[1]] == [each.plain() for each in cautions]


def test_reports_of_old_damaged_and_newer_summaries(tmp_path: Path) -> None:
    old = load_run(make_run(tmp_path))
    before = decide(compare([old])).cautions
    assert not cautions_of(old.summary)
    repeated = {"kind": "repeated rows", "split": "data.train", "rows": 50, "of": 100}
    strange = [{"kind": "of a newer version"}, {"kind": "repeated rows"}, "text", None, {**repeated, "rows": "x"}, {}]
    values = {"cautions": [*strange, repeated, {**repeated, "rows": 1}, {**repeated, "new field": 1}]}
    run = load_run(make_run(tmp_path / "new", summary=values))
    shown = decide(compare([run])).cautions
    assert [line for line in shown if line not in before] == [
        "data.train: 50 of 100 rows (50.0 %) repeat the text of another row."
    ]
    assert not cautions_of(RunSummary.read({"cautions": {"kind": "x"}, "teacher": [1], "members": 3}))
    assert not cautions_of(None)

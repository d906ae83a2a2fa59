"""A student that is matched with the teacher's attention, from an experiment file to its folder, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_teacher import make_rows, make_teacher

import raybrew
from raybrew.config.loading import build_experiment
from raybrew.errors import ConfigError, LossError
from raybrew.verbs.reporter import LineReporter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    make_teacher(folder / "teacher")
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in make_rows(24).select(["text", "label"]).to_pylist():
            file.write(json.dumps(row) + "\n")
    return folder


def experiment(folder: Path, distill: dict[str, Any], **sections: dict[str, Any]) -> Any:
    values: dict[str, Any] = {
        "name": "attention",
        "data": {"train": str(folder / "rows.jsonl")},
        "teacher": {"model": str(folder / "teacher")},
        "student": {"shape": {"layers": 1, "hidden": 16, "heads": 2}},
        "distill": distill,
        "train": {"epochs": 2, "batch_size": 8, "log_steps": 3, "threads": 1, "launcher": "local", "device": "cpu"},
        "store": {"storage_path": str(folder / "runs"), "launcher": "local"},
    }
    for name, section in sections.items():
        values[name] = values[name] | section
    return build_experiment(values)


def test_auto_runs_the_teacher_live_and_says_so(folder: Path) -> None:
    said: list[str] = []
    wanted = experiment(folder, {"matches": ["L1_attention_mse", "L1_hidden_mse"], "kd_loss": {"kind": "js"}})
    result = raybrew.distill(wanted, report=False, reporter=LineReporter(said.append))
    assert [line for line in said if "live" in line] == [
        "the teacher runs live in every step: stores do not hold attention.02"
    ]
    assert result.summary["distill"]["source"] == "live"
    assert not (folder / "runs" / "store").exists()
    records = [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]
    terms = {"loss/kd", "loss/attention_mse.1-2", "loss/hidden_mse.0-0", "loss/hidden_mse.1-2"}
    trained = [record for record in records if record["kind"] == "train"]
    assert len(trained) == 2
    assert all(terms <= set(record) and record["loss/attention_mse.1-2"] > 0 for record in trained)
    # The same match, spelt out, is the same run.
    spelt = [{"loss": "attention_mse"}, {"loss": "hidden_mse", "layers": "even"}]
    same = raybrew.distill(experiment(folder, {"matches": spelt, "kd_loss": {"kind": "js"}}), report=False)
    assert same.already_done
    assert same.path == result.path


def test_without_attention_auto_still_captures(folder: Path) -> None:
    said: list[str] = []
    wanted = experiment(
        folder, {"probability_shift": True, "temperature_schedule": {"kind": "cwsm"}}, train={"epochs": 1}
    )
    result = raybrew.distill(wanted, report=False, reporter=LineReporter(said.append))
    assert result.summary["distill"]["source"] == "store"
    assert not any("live" in line for line in said)


def test_capture_says_that_attention_is_not_stored(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"distill.matches: attention.02 cannot be captured.*needs no capture"):
        raybrew.capture(experiment(folder, {"matches": [{"loss": "attention_ce"}]}))
    with pytest.raises(
        ConfigError, match=r"store.signals: attention.01 cannot be captured; allowed: logits, hidden.NN"
    ):
        raybrew.capture(experiment(folder, {}, store={"signals": ["attention.01"]}))


def test_heads_and_depths_that_do_not_fit_are_refused_before_training(folder: Path) -> None:
    heads = {"student": {"shape": {"layers": 1, "hidden": 16, "heads": 4}}}
    with pytest.raises(LossError, match=r"attention_mse.1-2: the student has 4 attention heads, the teacher 2"):
        raybrew.distill(experiment(folder, {"matches": ["L1_attention_mse"]}, **heads), report=False)
    with pytest.raises(ConfigError, match=r"given 'L3_attention_mse', which is for students of 3 layers, but .* has 1"):
        raybrew.distill(experiment(folder, {"matches": ["L3_attention_mse"]}), report=False)

"""What a run that cannot go on leaves behind, on the command line. No Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_project import cli, make_project

from raybrew.tracking.jsonl import read_metrics

pytestmark = pytest.mark.slow


def test_a_loss_that_is_no_number_is_told_with_its_texts(tmp_path: Path) -> None:
    experiment = make_project(tmp_path)
    wild = ("train.learning_rate=1e30", "train.max_grad_norm=null", "train.warmup=0", "teacher.finetune=null")
    arguments = ("distill", experiment, "teacher.source=live", *wild, "--run-id", "wild")
    _, err = cli(*arguments, code=1)
    assert "is no longer finite at step 2 (loss/kd" in err
    run = tmp_path / "runs" / "tiny" / "wild"
    told = json.loads((run / "divergence.json").read_text())
    assert told["step"] == 2
    assert set(told["terms"]) >= {"kd"}
    assert len(told["examples"]) == 16
    texts = [json.loads(line)["text"] for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    words = {word for text in texts for word in text.split()}
    for example in told["examples"]:
        assert example["id"] in err or len(example["id"]) == 32
        assert set(example["text"].replace("[CLS]", "").replace("[SEP]", "").split()) <= words
    events = [record for record in read_metrics(run / "metrics.jsonl") if record["kind"] == "event"]
    assert events[-1]["event"] == "failed"
    # Nothing was saved of it, so that the same command does not go on from weights that are no numbers.
    assert not list((run / "checkpoints").glob("*.pt"))
    assert not (run / "student").exists()
    cli(*arguments, code=1)


def test_early_stopping_ends_a_run_that_is_then_done(tmp_path: Path) -> None:
    experiment = make_project(tmp_path)
    stopping = "train.early_stopping={patience: 1, min_delta: 1.0}"
    arguments = ("distill", experiment, "teacher.source=live", "teacher.finetune=null", stopping, "--run-id", "short")
    cli(*arguments)
    summary = json.loads((tmp_path / "runs" / "tiny" / "short" / "summary.json").read_text())
    assert (summary["steps"], summary["epochs"], summary["ended_by"]) == (20, 2.0, "early_stopping")
    before = (tmp_path / "runs" / "tiny" / "short" / "metrics.jsonl").read_bytes()
    cli(*arguments)
    assert (tmp_path / "runs" / "tiny" / "short" / "metrics.jsonl").read_bytes() == before
    _, err = cli(*arguments, "data.eval=null", code=3)
    assert "train.early_stopping: given without data.eval" in err

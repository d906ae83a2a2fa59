"""The notebook of a cluster session, on a cluster that it starts on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from notebooks import execute, noise_of, outputs_of, texts_of
from tiny_project import make_model, make_rows

import raybrew

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]


def test_cluster_session(tmp_path: Path) -> None:
    make_rows(tmp_path / "train.jsonl", 64, seed=1)
    make_rows(tmp_path / "eval.jsonl", 32, seed=2)
    make_model(tmp_path / "base", layers=2)
    quick = {"train": {"epochs": 1, "batch_size": 32, "threads": 1}, "task": {"max_length": 32}}
    ran = execute("cluster_session", tmp_path, f"teacher = 'base'\noverrides = {quick}", timeout=240)
    assert "4 trainings, with a store" in texts_of(outputs_of(ran, "raybrew.plan("))
    assert "sending" in texts_of(outputs_of(ran, "raybrew.submit("), "text/plain")
    following = outputs_of(ran, "job.follow()")
    assert [output["data"]["text/plain"] for output in following if "data" in output] == ["0"]
    followed = texts_of(following, "text/plain")
    assert "best student" in followed
    sweep = raybrew.Sweep.load(tmp_path / "runs" / "session")
    assert len([trial for trial in sweep.trials if trial.status == "done"]) >= 4
    assert noise_of(ran) == []
    assert "best student" in texts_of(outputs_of(ran, "sweep.best()"))
    assert "runs compared" in texts_of(outputs_of(ran, "raybrew.Sweep.load("))
    assert "Plotly.newPlot" in texts_of(outputs_of(ran, "sweep.plots()"))

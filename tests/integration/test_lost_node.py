"""A node of the cluster dies under an elastic run: the run goes on with the worker that is left, and says so."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_project import cli, losses_of, make_project, start_cli

from raybrew.tracking.jsonl import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs and two nodes of one CPU each, as processes of this machine."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        yield cluster
    finally:
        cluster.shutdown()


def test_a_lost_node_costs_no_step(cluster: Any, tmp_path: Path) -> None:
    experiment = make_project(tmp_path)
    config = tmp_path / "base" / "config.json"
    # Dropout draws differ by worker, so that two workers only follow one if there is none.
    config.write_text(config.read_text().replace('dropout_prob": 0.1', 'dropout_prob": 0.0'))
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    common = ("distill", experiment, "teacher.finetune=null", "student.init=random", "teacher.source=live")
    steps = ("train.max_steps=400", "train.epochs=100", "train.eval_steps=100", "train.checkpoint_steps=5")
    runs = tmp_path / "runs" / "tiny"
    process = start_cli(*common, *steps, "train.workers=[1,2]", "--run-id", "elastic", RAY_ADDRESS=cluster.address)
    metrics = runs / "elastic" / "metrics.jsonl"
    while not (metrics.exists() and '"step": 40,' in metrics.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    cluster.remove_node(nodes[1], allow_graceful=False)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "Traceback" not in err

    events = [record["message"] for record in read_metrics(metrics) if record["kind"] == "event"]
    assert "with 2 workers" in events[0], events
    assert any("with 1 worker" in message and "with 1 workers" not in message for message in events[1:]), events
    assert "RAY_ADDRESS" not in os.environ
    cli(*common, *steps, "--run-id", "one")
    elastic, one = (load_file(runs / name / "student" / "model.safetensors") for name in ("elastic", "one"))
    assert max(float((elastic[name] - one[name]).abs().max()) for name in one) < 2e-4
    told = [(record["kind"], record["step"]) for record in losses_of(runs / "elastic")]
    assert told == [(record["kind"], record["step"]) for record in losses_of(runs / "one")]  # none twice, none missing

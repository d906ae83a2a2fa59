"""A node of the cluster dies under a run, a capture, a sweep: the work goes on with what is left, nothing is lost."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_project import cli, losses_of, make_project, make_rows, start_cli

from raybrew.records.sweeps import load_sweep
from raybrew.signals import LOGITS
from raybrew.store.reader import Store
from raybrew.tracking.jsonl import read_metrics

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs, as a process of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture
def nodes(cluster: Any) -> Iterator[list[Any]]:
    """Two further nodes of one CPU each."""
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    yield nodes
    for node in nodes:
        if node in cluster.worker_nodes:
            cluster.remove_node(node, allow_graceful=False)


def wait_until(done: Callable[[], Any], process: Any, seconds: float = 150) -> None:
    """While `process` runs, until `done()`."""
    deadline = time.monotonic() + seconds
    while not done():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_lost_node_costs_no_step(cluster: Any, nodes: list[Any], tmp_path: Path) -> None:
    experiment = make_project(tmp_path)
    config = tmp_path / "base" / "config.json"
    # Dropout draws differ by worker, so that two workers only follow one if there is none.
    config.write_text(config.read_text().replace('dropout_prob": 0.1', 'dropout_prob": 0.0'))
    common = ("distill", experiment, "teacher.finetune=null", "student.init=random", "teacher.source=live")
    steps = ("train.max_steps=400", "train.epochs=100", "train.eval_steps=100", "train.checkpoint_steps=5")
    runs = tmp_path / "runs" / "tiny"
    process = start_cli(*common, *steps, "train.workers=[1,2]", "--run-id", "elastic", RAY_ADDRESS=cluster.address)
    metrics = runs / "elastic" / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and '"step": 40,' in metrics.read_text(), process)
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


def test_doctor_asks_every_node(cluster: Any, nodes: list[Any], tmp_path: Path) -> None:
    experiment = make_project(tmp_path)
    out, _ = cli("doctor", experiment, "teacher.finetune=null", "--json", RAY_ADDRESS=cluster.address)
    found = {finding["topic"]: finding for finding in json.loads(out)}
    assert not [finding for finding in found.values() if finding["status"] == "problem"]
    assert "3 nodes, 2 CPUs" in found["Ray"]["message"]
    assert found["nodes"]["message"] == "the same versions on all of 3"
    assert "is written, renamed and read from each of 3 nodes" in found["storage"]["message"]
    assert found["clocks"]["status"] == "ok"
    assert not list((tmp_path / "runs").iterdir()), "nothing is left behind"


def test_a_capture_goes_on_without_a_lost_node(cluster: Any, nodes: list[Any], tmp_path: Path) -> None:
    experiment = make_project(tmp_path)
    make_rows(tmp_path / "train.jsonl", 1600, seed=3)
    common = ("capture", experiment, "teacher.finetune=null", "store.rows_per_shard=8")
    process = start_cli(*common, "store.launcher=ray", "store.actors=[1,2]", RAY_ADDRESS=cluster.address)
    store = tmp_path / "runs" / "store"
    wait_until(lambda: len(list(store.glob("*/shards/*.json"))) > 20, process)
    cluster.remove_node(nodes[1], allow_graceful=False)
    before = {mark: mark.read_bytes() for mark in store.glob("*/shards/*.json")}
    stamps = {mark: mark.stat().st_mtime_ns for mark in before}
    _, err = process.communicate(timeout=150)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert len(before) < 200, "the node was lost in the middle"
    assert all(mark.read_bytes() == content for mark, content in before.items())
    assert stamps == {mark: mark.stat().st_mtime_ns for mark in before}, "no finished shard was computed again"

    cli(*common, f"store.path={tmp_path / 'other'}")
    ((lost,), (whole,)) = store.iterdir(), (tmp_path / "other").iterdir()
    mine, theirs = Store.open(lost), Store.open(whole)
    assert mine.num_rows == theirs.num_rows == 1600 + 60
    rows = np.arange(mine.num_rows)
    assert torch.equal(mine.gather(LOGITS, rows), theirs.gather(LOGITS, theirs.locate(mine.ids)))


def test_a_sweep_goes_on_without_a_lost_node(cluster: Any, nodes: list[Any], tmp_path: Path) -> None:
    experiment = make_project(tmp_path)
    values = yaml.safe_load(experiment.read_text())
    values["teacher"] = {"model": str(tmp_path / "base")}
    values["train"] |= {"epochs": 120, "checkpoint_steps": 50}
    values["sweep"] = {"space": {"distill.temperature": [1, 4]}, "search": {"kind": "grid"}}
    experiment.write_text(yaml.safe_dump(values), encoding="utf-8")
    process = start_cli("sweep", experiment, RAY_ADDRESS=cluster.address)
    runs = tmp_path / "runs" / "tiny"

    def both_train() -> bool:
        return sum('"step": 100,' in path.read_text() for path in runs.glob("distill-*/metrics.jsonl")) >= 2

    wait_until(both_train, process)
    (folder,) = runs.glob("sweep-*")
    assert not load_sweep(folder).trials_of("done"), "it is lost in the middle"
    cluster.remove_node(nodes[0], allow_graceful=False)
    _, err = process.communicate(timeout=250)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert err.count("goes on from its last checkpoint") == 1
    record = load_sweep(folder)
    assert sum(trial.lost for trial in record.trials) == 1
    assert [trial.status for trial in record.trials] == ["done"] * 3
    assert sum(one.computed for one in record.teachers) == 160 + 60, "the teacher ran once"
    resumed = [path for path in runs.glob("distill-*/metrics.jsonl") if '"event": "resumed"' in path.read_text()]
    assert len(resumed) == 1, "the trial of the lost node went on from its checkpoint"
    steps = [json.loads(line)["step"] for line in resumed[0].read_text().splitlines() if '"train"' in line]
    assert steps == sorted(set(steps))

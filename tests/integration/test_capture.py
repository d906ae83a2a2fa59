"""Capture by Ray Data actors: the same bytes as in one process, and what becomes of workers that fail or die."""

from __future__ import annotations

import logging
import os
import random
import signal as signals
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tiny_teacher import make_rows, make_teacher, small_store, task_of, tree

from raybrew.errors import ClusterError, StoreError
from raybrew.models.loading import ModelSource
from raybrew.runtime import RayInfo, check_resources, ensure_ray, ray_gpus, ray_runtime, stop_ray
from raybrew.signals import LOGITS, Signal
from raybrew.store.capture import CaptureProgress, capture
from raybrew.store.reader import Store

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

REQUEST = (LOGITS, Signal("hidden", 1))


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayInfo]:
    """A local cluster of two CPUs, or the one that this process is connected to already."""
    info = ensure_ray("tests", num_cpus=2, address="local", dashboard=False)
    yield info
    stop_ray(info)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return make_rows(35)


def run(rows: pa.Table, teacher: ModelSource, root: Path, progress: Any = None, **store: Any) -> Store:
    settings = small_store(**{"launcher": "ray", "cpus_per_actor": 1, **store})
    return capture(rows, task_of(), teacher, REQUEST, settings, root, "auto", "fp32", progress)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, teacher: ModelSource, rows: pa.Table) -> Store:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    store = run(rows, teacher, tmp_path_factory.mktemp("local"), launcher="local")
    torch.set_num_threads(threads)
    return store


def test_actors_write_what_one_process_writes(
    cluster: RayInfo,
    tmp_path: Path,
    teacher: ModelSource,
    rows: pa.Table,
    expected: Store,
    capfd: pytest.CaptureFixture[str],
) -> None:
    seen: list[CaptureProgress] = []
    capfd.readouterr()
    store = run(rows, teacher, tmp_path, seen.append)
    assert tree(store.path) == tree(expected.path)
    assert [entry.done_shards for entry in seen] == [1, 2, 3, 4]
    assert (seen[-1].done_rows, seen[-1].tokens) == (35, int(store.lengths.sum()))
    printed = capfd.readouterr()
    assert "ray" not in (printed.out + printed.err).lower()


def test_killed_actors_cost_no_shard(
    cluster: RayInfo, tmp_path: Path, teacher: ModelSource, rows: pa.Table, expected: Store
) -> None:
    if not cluster.started or not Path("/proc/self/stat").is_file():
        pytest.skip("needs a cluster of its own and /proc, to find an actor")
    killed: list[int] = []
    rng, done = random.Random(0), threading.Event()

    def kill_two() -> None:
        # One after another, at random moments after shards were begun. (A third could end one shard three times.)
        while len(killed) < 2 and not done.wait(0.005):
            if list(tmp_path.glob("*/pending/*/*.attempts")):
                fresh = [pid for pid in _actor_processes() if pid not in killed]
                if fresh and not done.wait(rng.uniform(0.0, 0.05)):
                    killed.append(rng.choice(fresh))
                    os.kill(killed[-1], signals.SIGKILL)

    hunter = threading.Thread(target=kill_two)
    hunter.start()
    try:
        store = run(rows, teacher, tmp_path, rows_per_shard=10)
    finally:
        done.set()
        hunter.join()
    assert killed
    assert tree(store.path) == tree(expected.path)


def test_an_error_of_a_shard_arrives_as_it_is(
    cluster: RayInfo, tmp_path: Path, rows: pa.Table, capfd: pytest.CaptureFixture[str]
) -> None:
    loud = make_teacher(tmp_path / "loud", loud=1e5)
    capfd.readouterr()
    with pytest.raises(StoreError, match=r"hidden.00: \d+ of \d+ values overflow float16") as caught:
        capture(
            rows, task_of(), loud, [Signal("hidden", 0)], small_store(launcher="ray"), tmp_path / "store", "cpu", "fp32"
        )
    assert "\n" not in str(caught.value)
    printed = capfd.readouterr()
    assert "Traceback" not in printed.out + printed.err
    (root,) = (tmp_path / "store").iterdir()
    assert not (root / "pending").exists()
    assert not (root / "manifest.json").exists()


def test_more_actors_than_the_cluster_has_is_said_at_once(
    cluster: RayInfo, tmp_path: Path, teacher: ModelSource, rows: pa.Table
) -> None:
    start = time.monotonic()
    with pytest.raises(ClusterError, match=r"store\.actors.* too small: \d+ CPUs asked for, \d+ there"):
        run(rows, teacher, tmp_path, actors=(2, 4), cpus_per_actor=500)
    assert time.monotonic() - start < 30
    with pytest.raises(ClusterError, match="1000 GPUs asked for, 0 there"):
        check_resources(1, 1000)


def test_a_connection_is_shared(cluster: RayInfo) -> None:
    with ray_runtime("a second user") as info:
        assert not info.started
        assert info.cpus == cluster.cpus
    import ray

    assert ray.is_initialized()
    assert ray_gpus() == cluster.gpus
    assert logging.getLogger("ray.data").level == logging.ERROR


def _actor_processes() -> list[int]:
    """Teacher actors of the cluster that this process has started, and of no other."""
    names, parents = {}, {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal():
                names[int(entry.name)] = (entry / "cmdline").read_text()
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return [pid for pid, name in names.items() if "MapWorker" in name and os.getpid() in _ancestors(pid, parents)]


def _ancestors(pid: int, parents: dict[int, int]) -> set[int]:
    found: set[int] = set()
    while (pid := parents.get(pid, 0)) and pid not in found:
        found.add(pid)
    return found

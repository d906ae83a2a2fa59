"""An S3 store filled by Ray actors and read by a training run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import BUCKET, S3Server, s3_environment
from tiny_project import make_model, make_rows, write_experiment
from tiny_teacher import tree

import raybrew
from raybrew.runtime import ensure_ray, stop_ray
from raybrew.store.listing import list_stores
from raybrew.store.reader import Store

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A local S3 server, and a Ray cluster whose workers find it."""
    pytest.importorskip("moto", reason="needs moto's server (the dev extra)")
    server = S3Server()
    server.start()
    with s3_environment(server):
        info = ensure_ray("tests", num_cpus=2, address="local", dashboard=False)
        yield f"s3://{BUCKET}/stores"
        stop_ray(info)
    server.stop()


def test_capture_by_actors_then_distill(bucket: str, tmp_path: Path) -> None:
    make_rows(tmp_path / "train.jsonl", 160, seed=1)
    make_rows(tmp_path / "eval.jsonl", 20, seed=2)
    make_model(tmp_path / "base")
    path = write_experiment(tmp_path)
    settings = ["teacher.finetune=null", "train.epochs=1", "store.rows_per_shard=50"]
    remote = [*settings, f"store.path={bucket}", f"store.cache={tmp_path / 'cache'}", "store.launcher=ray"]

    local = raybrew.capture(raybrew.load_experiment(path, settings))
    store = raybrew.capture(raybrew.load_experiment(path, remote))
    assert store.location == f"{bucket}/{local.fingerprint}"
    there = {name for name in store.storage.files() if not name.startswith(".")}
    assert there == set(tree(local.path))
    assert {name: store.storage.hash_of(name) for name in there} == {
        name: local.storage.hash_of(name) for name in there
    }

    run = raybrew.distill(raybrew.load_experiment(path, remote))
    assert run.summary["distill"]["source"] == "store"
    expected = raybrew.distill(raybrew.load_experiment(path, [*settings, f"store.storage_path={tmp_path / 'other'}"]))
    assert run.metrics == expected.metrics
    staged = {found.parent.name for found in (tmp_path / "cache").rglob("*.arrow")}
    assert staged == {"examples", "index", "logits", "hidden.00", "hidden.02", "hidden.04"}
    (entry,) = list_stores(bucket, str(tmp_path / "cache"))
    assert isinstance(entry.store, Store)

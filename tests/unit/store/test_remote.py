"""Stores in S3, against a local server: what arrives whole, what is tried again, who may write, what is staged."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from s3_server import BUCKET, S3Server, s3_environment
from tiny_teacher import WIDTH, make_rows, make_teacher, small_store, task_of

from raybrew.data.arrow import ShardInfo, hash_file
from raybrew.data.rows import row_ids
from raybrew.errors import DataError, StoreError, StoreUnreachable
from raybrew.models.loading import ModelSource
from raybrew.signals import LOGITS, Signal
from raybrew.storage import lease, objects, staging
from raybrew.storage.objects import ObjectFolder
from raybrew.storage.open import open_storage
from raybrew.store.capture import CaptureProgress, capture
from raybrew.store.find import find_store
from raybrew.store.layout import committed_shards
from raybrew.store.listing import describe, list_stores
from raybrew.store.pending import locked_store
from raybrew.store.prune import PruneRules, plan_prune, prune_stores
from raybrew.store.reader import Store

HIDDEN, LAST = Signal("hidden", 1), Signal("hidden", 2)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    pytest.importorskip("moto", reason="needs moto's server (the dev extra)")
    server = S3Server()
    server.start()
    with s3_environment(server):
        yield server
    server.stop()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return make_rows(35)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "RETRY_PAUSES", (0.05, 0.1))
    monkeypatch.setattr(objects, "CLIENT_ATTEMPTS", 1)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.3)
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1.5)
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.05)


@pytest.fixture
def url(server: S3Server, request: pytest.FixtureRequest) -> str:
    """A prefix of its own for each test."""
    server.failures.clear()
    server.requests.clear()
    return f"s3://{BUCKET}/{request.node.name.partition('[')[0]}-{time.monotonic_ns()}"


def folder(url: str, tmp_path: Path) -> ObjectFolder:
    return ObjectFolder(url, str(tmp_path / "cache"))


def run(
    rows: pa.Table,
    teacher: ModelSource,
    url: str,
    tmp_path: Path,
    *request: Signal,
    progress: Any = None,
    verify: bool = False,
    waiting: Any = None,
) -> Store:
    settings = small_store(cache=str(tmp_path / "cache"))
    wanted = request or (LOGITS, HIDDEN)
    return capture(
        rows, task_of(), teacher, wanted, settings, url, "cpu", "fp32", progress, verify=verify, waiting=waiting
    )


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, teacher: ModelSource, rows: pa.Table) -> Store:
    """The same capture in a folder."""
    root = tmp_path_factory.mktemp("local")
    return capture(rows, task_of(), teacher, (LOGITS, HIDDEN), small_store(), root, "cpu", "fp32")


def contents(storage: Any) -> dict[str, bytes]:
    """All files of a store but locks and the date of its use."""
    return {
        name: storage.read(name)
        for name in storage.files()
        if not name.endswith((".lock", ".lease.json", ".readers", ".used"))
    }


def info_of(path: Path) -> ShardInfo:
    return ShardInfo(path.name, 1, path.stat().st_size, hash_file(path))


def test_the_same_bytes_as_in_a_folder(
    url: str, tmp_path: Path, teacher: ModelSource, rows: pa.Table, local: Store, server: S3Server
) -> None:
    store = run(rows, teacher, url, tmp_path)
    assert contents(store.storage) == contents(local.storage)
    assert store.location == f"{url}/{local.fingerprint}"
    every = np.arange(35)
    assert torch.equal(store.gather(HIDDEN, every), local.gather(HIDDEN, every))
    assert torch.equal(store.gather(LOGITS, every), local.gather(LOGITS, every))
    assert store.verify() == ()
    assert describe(store)["path"] == store.location
    (entry,) = list_stores(url, str(tmp_path / "cache"))
    assert entry.store is not None
    assert entry.location == store.location
    # Again: nothing is written, and a reader by the same teacher finds it.
    server.requests.clear()
    run(rows, teacher, url, tmp_path)
    assert not [request for request in server.requests if request[0] in ("PUT", "POST", "DELETE")]
    found = find_store(
        rows, task_of(), teacher, [LOGITS], small_store(cache=str(tmp_path / "cache")), url, "cpu", "fp32"
    )
    assert found.num_rows == 35


def test_more_rows_and_layers_complete_a_remote_store(
    url: str, tmp_path: Path, teacher: ModelSource, rows: pa.Table
) -> None:
    run(rows, teacher, url, tmp_path)
    more = pa.concat_tables([rows, make_rows(7, seed=1)])
    store = run(more, teacher, url, tmp_path, LOGITS, HIDDEN, LAST)
    assert store.num_rows == 42
    whole = run(more, teacher, f"{url}-other", tmp_path, LOGITS, HIDDEN, LAST)
    positions = store.locate(row_ids(more))
    torch.testing.assert_close(
        store.gather(LAST, positions), whole.gather(LAST, whole.locate(row_ids(more))), atol=2e-3, rtol=1e-3
    )


def test_large_files_go_in_parts(url: str, tmp_path: Path, server: S3Server) -> None:
    storage, data = folder(url, tmp_path), np.random.default_rng(0).bytes(23_000_000)
    path = tmp_path / "data-00000.arrow"
    path.write_bytes(data)
    info = info_of(path)
    storage.put(path, "signals/logits/data-00000.arrow")
    assert not path.exists()
    parts = [path for method, path in server.requests if method == "PUT" and "partNumber=" in path]
    assert len(parts) >= 2
    assert storage.sizes(["signals/logits/data-00000.arrow", "no"]) == {"signals/logits/data-00000.arrow": len(data)}
    assert storage.hash_of("signals/logits/data-00000.arrow") == info.xxh3
    where, names = storage.staged("signals/logits", [info])
    assert (where / names[0]).read_bytes() == data


def test_passing_errors_are_tried_again(
    url: str, tmp_path: Path, server: S3Server, caplog: pytest.LogCaptureFixture
) -> None:
    storage = folder(url, tmp_path)
    path = tmp_path / "data-00000.arrow"
    path.write_bytes(np.random.default_rng(0).bytes(12_000_000))
    info = info_of(path)
    # The client library's own second tries are off here.
    server.failures += [("POST", "?uploads"), ("PUT", "partNumber=2")]
    with caplog.at_level(logging.WARNING, "raybrew.store"):
        storage.put(path, "examples/data-00000.arrow")
    assert server.failures == []
    assert "trying again" in caplog.text
    assert storage.hash_of("examples/data-00000.arrow") == info.xxh3
    server.failures += [("GET", "data-00000"), ("HEAD", "data-00000")]
    where, names = storage.staged("examples", [info])
    assert hash_file(where / names[0]) == info.xxh3


def test_an_upload_that_fails_for_good_leaves_nothing_that_looks_whole(
    url: str, tmp_path: Path, server: S3Server
) -> None:
    storage = folder(url, tmp_path)
    path = tmp_path / "data-00000.arrow"
    path.write_bytes(np.random.default_rng(0).bytes(12_000_000))
    server.failures += [("PUT", "partNumber=2")] * 50
    with pytest.raises(StoreError, match=r"arrow: cannot be uploaded after 3 tries .*same command") as caught:
        storage.put(path, "examples/data-00000.arrow")
    assert "\n" not in str(caught.value)
    server.failures.clear()
    assert path.exists()
    assert storage.files() == {}


def test_an_outage_in_the_middle_ends_in_one_error_and_the_same_call_finishes(
    url: str, tmp_path: Path, teacher: ModelSource, rows: pa.Table, local: Store, server: S3Server
) -> None:
    def end(progress: CaptureProgress) -> None:
        if progress.done_shards == 1:
            server.stop()

    try:
        with pytest.raises(StoreError, match=r"s3://.* cannot be \w+ after 3 tries") as caught:
            run(rows, teacher, url, tmp_path, progress=end)
        assert "\n" not in str(caught.value)
        # What does not answer is not taken for what is not there.
        with pytest.raises(StoreUnreachable, match=r"cannot be read after 3 tries"):
            run(rows, teacher, url, tmp_path)
    finally:
        server.start()
    storage = open_storage(f"{url}/{local.fingerprint}", tmp_path / "cache")
    assert 1 <= len(committed_shards(storage)) < 4
    with pytest.raises(StoreError, match=r"not finished \(\d shards are committed\); the same command continues"):
        Store.open(storage)
    server.requests.clear()
    # The lease still lies there; its holder is this process, whose capture is over: it beats no more.
    store = run(rows, teacher, url, tmp_path)
    assert contents(store.storage) == contents(local.storage)
    uploaded = [path for method, path in server.requests if method == "PUT" and "/signals/logits/data-" in path]
    assert 0 < len(uploaded) < 4


def test_a_short_outage_is_not_noticed(
    url: str,
    tmp_path: Path,
    teacher: ModelSource,
    rows: pa.Table,
    local: Store,
    server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(objects, "RETRY_PAUSES", (0.2, 0.4, 0.8, 1.6, 3.2))

    def interrupt(progress: CaptureProgress) -> None:
        if progress.done_shards == 1 and outage.ident is None:  # once, however often that is told
            server.stop()
            outage.start()

    def resume() -> None:
        time.sleep(1.0)
        server.start()

    outage = threading.Thread(target=resume)
    store = run(rows, teacher, url, tmp_path, progress=interrupt)
    outage.join()
    assert contents(store.storage) == contents(local.storage)


def test_only_one_capture_writes_a_remote_store(
    url: str, tmp_path: Path, teacher: ModelSource, rows: pa.Table, local: Store
) -> None:
    storage = open_storage(f"{url}/{local.fingerprint}", tmp_path / "cache")
    with locked_store(storage) as pending:
        assert storage.holds(pending.token)
        with pytest.raises(StoreError, match=rf"process {os.getpid()} on \S+ \(since .*\) is capturing into this sto"):
            run(rows, teacher, url, tmp_path)
        # One that may wait tells on whom, once for each, and is next.
        told: list[str] = []
        store: list[Store] = []
        waiting = threading.Thread(target=lambda: store.append(run(rows, teacher, url, tmp_path, waiting=told.append)))
        waiting.start()
        while not told:
            time.sleep(0.05)
        time.sleep(2 * lease.LEASE_SECONDS)
        assert waiting.is_alive()
        assert storage.holds(pending.token)
    waiting.join()
    (line,) = told
    assert f"process {os.getpid()} on " in line
    assert "waiting for it to end" in line
    assert contents(store[0].storage) == contents(local.storage)


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_the_lease_of_a_killed_capture_is_taken_over(
    url: str, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = folder(url, tmp_path)
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0,))
    child.start()
    child.join()
    machine = lease._machine() if where == "here" else "another machine"
    dead = {"token": "t", "pid": child.pid, "host": "h", "machine": machine, "since": "s", "beat": 3}
    storage.write(".lease.json", json.dumps(dead).encode())
    storage.write("pending/t/data-00000.arrow", b"rows")
    start = time.monotonic()
    with locked_store(storage) as pending:
        waited = time.monotonic() - start
        assert "pending/t/data-00000.arrow" not in storage.files()
        assert storage.holds(pending.token)
    assert (waited < lease.LEASE_SECONDS) == (where == "here")


def test_a_capture_that_was_taken_over_commits_nothing_more(url: str, tmp_path: Path) -> None:
    from raybrew.errors import Interrupted

    storage = folder(url, tmp_path)
    with locked_store(storage) as pending:
        other = {"token": "other", "pid": 1, "host": "h", "machine": "m", "since": "s", "beat": 0}
        storage.write(".lease.json", json.dumps(other).encode())
        with pytest.raises(Interrupted, match="stopped"):
            pending.check()
        time.sleep(2 * lease.BEAT_SECONDS)
        # Its own beat has not taken the lease back, and its end does not remove what is another's.
        assert not storage.holds(pending.token)
    assert storage.holds("other")


def test_only_what_is_asked_for_is_staged_once(
    url: str, tmp_path: Path, teacher: ModelSource, rows: pa.Table, server: S3Server
) -> None:
    run(rows, teacher, url, tmp_path, LOGITS, HIDDEN, LAST)
    cache = str(tmp_path / "reader")
    (entry,) = list_stores(url, cache)
    assert entry.store is not None
    positions = entry.store.locate(row_ids(rows))
    entry.store.gather(HIDDEN, positions)
    staged = {path.parent.name for path in Path(cache).rglob("*.arrow")}
    assert staged == {"examples", "hidden.01", "index"}
    server.requests.clear()
    again = Store.open(entry.location, cache=cache)
    again.gather(HIDDEN, again.locate(row_ids(rows)))
    assert not [path for _, path in server.requests if "data-" in path]


def test_damage_on_the_way_or_in_the_store_is_found_and_repaired(
    url: str, tmp_path: Path, teacher: ModelSource, rows: pa.Table, local: Store
) -> None:
    store = run(rows, teacher, url, tmp_path)
    name = "signals/hidden.01/data-00002.arrow"
    content = bytearray(store.storage.read(name))
    content[len(content) // 2] ^= 0x10
    store.storage.write(name, bytes(content))
    assert store.verify() == (f"{name} holds other bytes than were written",)
    fresh = Store.open(store.location, cache=str(tmp_path / "reader"))
    with pytest.raises(StoreError, match=rf"damaged: {name} holds other bytes .*capture --verify"):
        fresh.gather(HIDDEN, np.arange(35))
    assert not list((tmp_path / "reader").rglob("hidden.01/*00002*"))
    assert contents(run(rows, teacher, url, tmp_path, verify=True).storage) == contents(local.storage)


def test_two_workers_of_a_node_stage_together(
    url: str, tmp_path: Path, teacher: ModelSource, rows: pa.Table, server: S3Server
) -> None:
    store = run(rows, teacher, url, tmp_path)
    code = """
import sys
from raybrew.signals import Signal
from raybrew.store.prune import PruneRules, plan_prune, prune_stores
from raybrew.store.reader import Store
store = Store.open(sys.argv[1], cache=sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
print(store.dim(Signal("hidden", 1)), "torch" in sys.modules)
"""
    command = [sys.executable, "-c", code, store.location, str(tmp_path / "shared")]
    root = Path(__file__).resolve().parents[3]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(2)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    server.requests.clear()
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    assert [worker.communicate(timeout=60)[0] for worker in workers] == [f"{WIDTH} False\n"] * 2
    read = [path for method, path in server.requests if method == "GET" and "hidden.01/data-" in path]
    assert len(read) == 4
    assert len(list((tmp_path / "shared").rglob("hidden.01/data-*.arrow"))) == 4


def test_a_full_disk_of_the_cache_is_said_before_it_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: _Usage(3 << 20))
    info = ShardInfo("data-00000.arrow", 1, 5 << 20, "0")
    with pytest.raises(StoreError, match=r"5 MiB are to be copied into .* where 3 MiB are free; .*store\.cache"):
        staging.stage(tmp_path, {"logits/data-00000.arrow": info}, lambda name, path: None, "s3://b/x")


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_what_a_dead_process_left_in_the_cache_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".data-00000-x.arrow.1.tmp").write_bytes(b"half")
    info = ShardInfo("data-00000.arrow", 1, 4, "0")
    with pytest.raises(DataError, match=r"data-00000\.arrow holds other bytes"):
        staging.stage(tmp_path, {"data-00000.arrow": info}, lambda name, path: _write(path, b"four"), "s3://b/x")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def test_what_no_second_try_mends_is_said_at_once(server: S3Server, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(StoreError, match=r"s3://no-such-bucket/x/manifest.json: cannot be written: .*NO_SUCH_BUCKET"):
        ObjectFolder("s3://no-such-bucket/x", str(tmp_path)).write("manifest.json", b"{}")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("url", ["http://x/y", "s3://", "s3://key:secret@bucket/x", "s3://bucket/x?region=y"])
def test_urls_that_cannot_be(url: str) -> None:
    with pytest.raises(StoreError, match="no URL of an object store"):
        ObjectFolder(url)


def test_remote_stores_are_listed_verified_and_pruned(
    url: str, tmp_path: Path, teacher: ModelSource, rows: pa.Table
) -> None:
    store = run(rows, teacher, url, tmp_path, LOGITS, HIDDEN, LAST)
    cache = str(tmp_path / "other")
    (entry,) = list_stores(url, cache)
    assert entry.used is not None
    assert entry.bytes == sum(store.storage.files().values())
    (removal,) = plan_prune(url, PruneRules(signals=("hidden.02",)), cache)
    assert removal.held is None
    assert prune_stores([removal]) == removal.bytes > 0
    assert not [name for name in store.storage.files() if name.startswith("signals/hidden.02/")]
    left = Store.open(store.location, cache=cache)
    assert left.verify() == ()
    assert set(left.signals) == {LOGITS, HIDDEN}
    with locked_store(store.storage):
        (held,) = plan_prune(url, PruneRules(stores=(store.fingerprint,)), cache)
        assert held.held is not None
        assert prune_stores([held]) == 0
    (removal,) = plan_prune(url, PruneRules(stores=(store.fingerprint,)), cache)
    assert removal.whole
    assert prune_stores([removal]) > 0
    assert store.storage.files() == {}
    assert list_stores(url, cache) == ()

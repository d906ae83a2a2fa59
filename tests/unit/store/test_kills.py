"""Captures that are killed, damaged or run out of disk at random moments end byte for byte like an unbroken one.

Children are forked from this process, which has everything imported: a kill costs milliseconds, not an import of torch.
Kills of Ray actors are in tests/integration/test_capture.py.
"""

from __future__ import annotations

import os
import random
import shutil
import signal as signals
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tiny_teacher import make_rows, make_teacher, small_store, task_of, tree

from raybrew.errors import StoreError
from raybrew.models.loading import ModelSource
from raybrew.signals import LOGITS, Signal
from raybrew.store import compute
from raybrew.store.capture import capture
from raybrew.store.reader import Store

REQUEST = (LOGITS, Signal("hidden", 0), Signal("hidden", 2))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return make_rows(60)


def run(rows: pa.Table, teacher: ModelSource, root: Path, verify: bool = False) -> Store:
    return capture(rows, task_of(), teacher, REQUEST, small_store(), root, "cpu", "fp32", verify=verify)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, teacher: ModelSource, rows: pa.Table) -> Store:
    return run(rows, teacher, tmp_path_factory.mktemp("whole"))


def in_child(work: Callable[[], Any]) -> int:
    """Process id of a child that does `work` and ends."""
    child = os.fork()
    if child:
        return child
    try:
        work()
        os._exit(0)
    except BaseException:
        os._exit(1)


@pytest.fixture(scope="module")
def span(tmp_path_factory: pytest.TempPathFactory, teacher: ModelSource, rows: pa.Table, whole: Store) -> float:
    """Seconds that a slowed capture takes in a child."""
    start = time.monotonic()
    child = in_child(lambda: slowly(rows, teacher, tmp_path_factory.mktemp("timed")))
    assert os.waitpid(child, 0)[1] == 0
    return time.monotonic() - start


def slowly(rows: pa.Table, teacher: ModelSource, root: Path) -> None:
    """A capture with a little sleep in each batch, so that a kill finds it in all of its states."""
    real = compute.forward

    def forward(*arguments: Any) -> Any:
        time.sleep(0.01)
        return real(*arguments)

    compute.forward = forward  # of this child alone
    run(rows, teacher, root)


def content(root: Path) -> dict[str, str]:
    """`tree` without what a capture keeps for itself while it runs."""
    parts = {name: name.split("/") for name in tree(root)}
    return {
        name: digest
        for name, digest in tree(root).items()
        if parts[name][0] != "pending" and not parts[name][0].startswith(".")
    }


def damage(root: Path, rng: random.Random, kind: str) -> str | None:
    """Truncate or flip a bit of one shard file, if there is one."""
    files = sorted(path for path in root.rglob("*.arrow") if {"pending", "index"}.isdisjoint(path.parts))
    if not files:
        return None
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    if kind == "truncated":
        path.write_bytes(content[: rng.randrange(len(content))])
    else:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    return str(path.relative_to(root))


@pytest.mark.parametrize("seed", range(12))
def test_a_driver_killed_at_any_moment(
    tmp_path: Path, teacher: ModelSource, rows: pa.Table, whole: Store, span: float, seed: int
) -> None:
    rng = random.Random(seed)
    child = in_child(lambda: slowly(rows, teacher, tmp_path))
    time.sleep(span * (seed + rng.random()) / 12)
    os.kill(child, signals.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0
    run(rows, teacher, tmp_path)
    assert content(tmp_path / whole.fingerprint) == tree(whole.path)
    # Killed while it tidied up, after the manifest: that is done by the next capture that has something to write.
    more = run(pa.concat_tables([rows, make_rows(1, seed=1)]), teacher, tmp_path)
    assert content(more.path) == tree(more.path)


@pytest.mark.parametrize("kind", ["truncated", "flipped"])
@pytest.mark.parametrize("seed", range(4))
def test_shards_damaged_after_a_kill(
    tmp_path: Path, teacher: ModelSource, rows: pa.Table, whole: Store, span: float, seed: int, kind: str
) -> None:
    rng = random.Random(100 + seed)
    if seed == 0:  # a finished store
        shutil.copytree(whole.path, tmp_path / whole.fingerprint)
    else:
        child = in_child(lambda: slowly(rows, teacher, tmp_path))
        time.sleep(span * rng.uniform(0.5, 1.0))
        os.kill(child, signals.SIGKILL)
        os.waitpid(child, 0)
    damaged = [damage(tmp_path, rng, kind) for _ in range(3)]
    for index in tmp_path.glob("*/index/*.arrow"):
        data = bytearray(index.read_bytes())
        data[rng.randrange(len(data))] ^= 1
        index.write_bytes(data)
        damaged.append(str(index.relative_to(tmp_path)))
    if seed == 0:
        assert all(damaged)
        if kind == "flipped":
            problems = Store.open(whole.path.parent / whole.fingerprint).verify()
            assert problems == ()
            found = Store.open(tmp_path / whole.fingerprint).verify()
            assert {line.split()[0] for line in found} == {
                name.partition("/")[2] for name in damaged if name is not None
            }
    store = run(rows, teacher, tmp_path, verify=True)
    assert store.verify() == ()
    assert content(store.path) == tree(whole.path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not sys.platform.startswith("linux") or _mount(disk, "size=64k") is not None:
        pytest.skip("needs the right to mount a tmpfs")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def _mount(disk: Path, options: str) -> str | None:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    return None if done.returncode == 0 else done.stderr


@pytest.mark.parametrize("seed", range(3))
def test_a_disk_that_fills_up(small_disk: Path, teacher: ModelSource, rows: pa.Table, whole: Store, seed: int) -> None:
    needed = sum(-(-path.stat().st_size // 4096) * 4 for path in whole.path.rglob("*") if path.is_file())
    size = random.Random(200 + seed).randrange(40, needed)
    assert _mount(small_disk, f"remount,size={size}k") is None
    with pytest.raises(StoreError, match=r"no space left .*the same command") as caught:
        run(rows, teacher, small_disk)
    assert "\n" not in str(caught.value)
    assert _mount(small_disk, "remount,size=50m") is None
    store = run(rows, teacher, small_disk)
    assert tree(store.path) == tree(whole.path)

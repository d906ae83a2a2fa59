"""One capture at a time: the lock on a store, the folder of what is pending, and tidying up after one that died."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import filelock

from raybrew.data.arrow import write_json
from raybrew.errors import StoreError
from raybrew.store.layout import Shard
from raybrew.store.worker import storage_errors

__all__ = ["locked_store", "remove_orphans"]

_PENDING = "pending"
_HOLDER = ".capture.json"
_LOCK = ".lock"


@contextlib.contextmanager
def locked_store(root: Path) -> Iterator[Path]:
    """Hold the store at `root`, made if need be; gives the folder of this capture's pending rows, removed at the end.

    StoreError says who holds it otherwise. The lock goes with its process, however that ends.
    """
    with storage_errors(root, "the store cannot be written"):
        root.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(root / _LOCK)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise StoreError(f"{root}: {_holder(root)} is capturing into this store; wait for it, or stop it") from None
        try:
            since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            write_json(root / _HOLDER, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
            _discard(root / _PENDING)
            pending = root / _PENDING / uuid.uuid4().hex
            pending.mkdir(parents=True)
            yield pending
        finally:
            _discard(root / _PENDING)
            (root / _HOLDER).unlink(missing_ok=True)
            lock.release()


def remove_orphans(root: Path, shards: Sequence[Shard]) -> None:
    """Remove files that no commit mark knows, left by a capture that died between two renames. Needs the lock."""
    known = {root / folder / shard.file for shard in shards for folder in shard.files}
    marks = {f"{shard.index:05d}.json" for shard in shards}
    for path in root.rglob("*"):
        temporary = path.name.startswith(".") and path.name.endswith(".tmp")
        data = path.suffix == ".arrow" and path not in known and _PENDING not in path.relative_to(root).parts
        mark = path.parent == root / "shards" and path.suffix == ".json" and path.name not in marks
        if temporary or data or mark:
            path.unlink(missing_ok=True)


def _discard(folder: Path) -> None:
    # Renamed first: from then on no worker that is still alive finds its way in, whatever it writes meanwhile.
    if folder.is_dir():
        dead = folder.with_name(f".dead-{uuid.uuid4().hex}")
        os.replace(folder, dead)
        shutil.rmtree(dead, ignore_errors=True)


def _holder(root: Path) -> str:
    try:
        holder = json.loads((root / _HOLDER).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} (since {holder['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"

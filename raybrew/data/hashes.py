"""Hashes of files, each computed once a node and remembered while size, times and inode of the file stay the same.

A store of many gigabytes is opened by every process of every run; reading all of it each time would cost more than the
damage that it is to notice. A change of a file's bytes also changes its times, unless the disk itself lies.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import filelock
import xxhash

from raybrew.data.arrow import hash_file
from raybrew.files import write_bytes

__all__ = ["changed_files", "git_hash_of", "is_settled", "known_hashes", "read_note", "write_note"]

_READERS = 4
#: Less than this is read again by each process.
_WORTH_BYTES = 1 << 24
#: Clocks of file systems tick this coarsely: a file that changed so recently may change again unnoticed.
_FRESH_SECONDS = 2.0

#: Size, times of change (ns) and inode of a file.
_Stamp = list[int]
_memory: dict[str, dict[str, tuple[_Stamp, str]]] = {}


def known_hashes(folder: Path, names: Collection[str], hash_of: Callable[[Path], str] | None = None) -> dict[str, str]:
    """xxh3_128 of those files of `folder` that exist, by name; or what else `hash_of` makes of a file's bytes."""
    place = os.path.realpath(folder)
    memory = place if hash_of is None else f"{place} {hash_of.__name__}"
    known = _memory.setdefault(memory, {})
    stamps = {name: stamp for name in names if (stamp := _stamp(Path(place, name))) is not None}
    if not _lacking(known, stamps):
        return {name: known[name][1] for name in stamps}
    large = sum(stamps[name][0] for name in _lacking(known, stamps)) >= _WORTH_BYTES
    with _shared(memory) if large else contextlib.nullcontext() as memo:
        if memo is not None:
            known |= _read(memo)
        lacking = _lacking(known, stamps)
        with ThreadPoolExecutor(_READERS, "hash") as pool:
            hashed = zip(lacking, pool.map(lambda name: _hash(Path(place, name), hash_of), lacking), strict=True)
            fresh = {name: found for name, found in hashed if found is not None}
        lasting = {name: each for name, each in fresh.items() if is_settled(each[0][1:3])}
        known |= lasting
        if memo is not None and lasting:
            content = {name: [*stamp, digest] for name, (stamp, digest) in known.items()}
            with contextlib.suppress(OSError):
                write_bytes(memo, json.dumps(content).encode())
    found = {name: known[name][1] for name in stamps if name in known and name not in fresh}
    return found | {name: digest for name, (_, digest) in fresh.items()}


def write_note(path: Path, value: Any) -> None:
    """Write `value` as JSON with its hash; the file appears whole or not at all."""
    write_bytes(path, json.dumps({"value": value, "xxh3": _digest(value)}).encode())


def read_note(path: Path) -> Any:
    """What `write_note` wrote; None where there is nothing, or other bytes than were written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["value"] if content["xxh3"] == _digest(content["value"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(value: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(value).encode())


def is_settled(times: Iterable[int]) -> bool:
    """Whether files of these times of change (ns) cannot change again without another time."""
    return time.time() - max(times, default=0) / 1e9 > _FRESH_SECONDS


def changed_files(folder: Path, wanted: Mapping[str, str]) -> tuple[str, ...]:
    """One line for each file of `folder` that is missing or whose hash is not that of `wanted`, by name."""
    found = known_hashes(folder, wanted)
    return tuple(
        f"{name} is missing" if name not in found else f"{name} holds other bytes than were written"
        for name, digest in wanted.items()
        if found.get(name) != digest
    )


def _stamp(path: Path) -> _Stamp | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _lacking(known: Mapping[str, tuple[_Stamp, str]], stamps: Mapping[str, _Stamp]) -> list[str]:
    return [name for name, stamp in stamps.items() if name not in known or known[name][0] != stamp]


def git_hash_of(path: Path) -> str:
    """What git, and so the hub, names a file of these bytes by."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _hash(path: Path, hash_of: Callable[[Path], str] | None) -> tuple[_Stamp, str] | None:
    before = _stamp(path)
    try:
        digest = (hash_of or hash_file)(path)
    except FileNotFoundError:
        return None
    after = _stamp(path)
    if before is None or before != after:
        # It is being written: whatever its hash is now, nothing is to be remembered.
        return [0, time.time_ns(), 0, 0], digest
    return before, digest


@contextlib.contextmanager
def _shared(place: str) -> Iterator[Path | None]:
    """The file of this node in which the hashes of a folder are remembered, held; None where it cannot be written."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "raybrew" / "hashes"
    memo = root / f"{xxhash.xxh3_128_hexdigest(f'{socket.gethostname()}:{place}'.encode())}.json"
    lock = filelock.FileLock(memo.with_suffix(".lock"))
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock.acquire()  # of several processes one reads, the others take its hashes
    except OSError:
        yield None
        return
    try:
        yield memo
    finally:
        lock.release()


def _read(memo: Path) -> dict[str, tuple[_Stamp, str]]:
    try:
        content = json.loads(memo.read_text(encoding="utf-8"))
        return {str(name): ([int(value) for value in stamp], str(digest)) for name, (*stamp, digest) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}

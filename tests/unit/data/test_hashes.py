"""Hashes of files are computed once a node and noticed to be out of date by size, times and inode."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

from raybrew.data import hashes
from raybrew.data.hashes import changed_files, known_hashes

NAMES = ("a.arrow", "b.arrow")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Names of the files that were read, in order; files count as settled at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "_FRESH_SECONDS", -1.0)
    monkeypatch.setattr(hashes, "_WORTH_BYTES", 0)
    monkeypatch.setattr(hashes, "_memory", {})
    seen: list[str] = []
    whole: Callable[..., str] = hashes.hash_file
    monkeypatch.setattr(hashes, "hash_file", lambda path, *more: (seen.append(path.name), whole(path, *more))[1])
    return seen


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for name in NAMES:
        (folder / name).write_bytes(name.encode() * 1000)
    return folder


def digest_of(name: str) -> str:
    return xxhash.xxh3_128_hexdigest(name.encode() * 1000)


def test_files_are_read_once_a_node(folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {name: digest_of(name) for name in NAMES}
    assert known_hashes(folder, [*NAMES, "gone"]) == wanted
    assert sorted(read) == sorted(NAMES)
    assert known_hashes(folder, NAMES) == wanted
    monkeypatch.setattr(hashes, "_memory", {})  # another process
    assert changed_files(folder, wanted) == ()
    assert sorted(read) == sorted(NAMES), "the second process takes what the first has noted"


@pytest.mark.parametrize("restore", [False, True], ids=["written", "time restored"])
def test_a_changed_byte_is_noticed(folder: Path, read: list[str], restore: bool) -> None:
    wanted = {name: digest_of(name) for name in NAMES}
    assert changed_files(folder, wanted) == ()
    path = folder / NAMES[1]
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"!")
    if restore:  # as rsync does; the time of the last change of the inode cannot be set
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert changed_files(folder, wanted) == ("b.arrow holds other bytes than were written",)
    path.unlink()
    assert changed_files(folder, wanted) == ("b.arrow is missing",)
    assert read.count("a.arrow") == 1


def test_files_that_just_changed_are_not_remembered(
    folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clocks of file systems are coarse: a second change might leave all times as they are."""
    monkeypatch.setattr(hashes, "_FRESH_SECONDS", 3600.0)
    for _ in range(2):
        assert known_hashes(folder, NAMES) == {name: digest_of(name) for name in NAMES}
    assert len(read) == 4


def test_a_memory_that_cannot_be_kept_costs_time_alone(
    folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wanted = {name: digest_of(name) for name in NAMES}
    (tmp_path / "file").touch()
    for cache in (tmp_path / "file", tmp_path / "cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        for _ in range(2):
            monkeypatch.setattr(hashes, "_memory", {})
            assert known_hashes(folder, NAMES) == wanted
            for memo in (tmp_path / "cache").rglob("*.json"):
                memo.write_bytes(b"\xff{")
    assert len(read) == 8

"""A store in a folder: local, or on a file system that nodes share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from raybrew.data.arrow import ArrowFolder, ShardInfo, hash_file
from raybrew.data.hashes import changed_files, known_hashes
from raybrew.errors import DataError
from raybrew.files import write_bytes
from raybrew.storage import lock
from raybrew.storage.lock import Reading, await_folder, folder_holder, locked_folder
from raybrew.storage.protocol import PENDING

__all__ = ["LocalFolder"]


class LocalFolder:
    """A store in a folder of this machine, or one that several machines share (NFS)."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def __reduce__(self) -> tuple[type[LocalFolder], tuple[Path]]:
        return LocalFolder, (self.path,)

    @property
    def location(self) -> str:
        return str(self.path)

    def exists(self) -> bool:
        return self.path.is_dir()

    def files(self, below: str = "") -> dict[str, int]:
        return dict(_files(str(self.path / below), f"{below}/" if below else ""))

    def sizes(self, names: Collection[str]) -> dict[str, int]:
        found = {}
        for name in names:
            with contextlib.suppress(OSError):
                found[name] = (self.path / name).stat().st_size
        return found

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        found = {}
        for name in names:
            with contextlib.suppress(OSError):
                found[name] = self.read(name)
        return found

    def write(self, name: str, data: bytes) -> None:
        path = self.path / name
        if not name.startswith(f"{PENDING}/"):
            # The folder of what is pending is made by its capture alone: a worker that outlives it must not revive it.
            path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data)

    def put(self, path: Path, name: str) -> None:
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)

    def delete(self, names: Collection[str]) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def hash_of(self, name: str) -> str:
        return hash_file(self.path / name)

    def known_hashes(self, folder: str, files: Collection[str]) -> dict[str, str] | None:
        return known_hashes(self.path / folder, files)

    def schema_of(self, name: str) -> pa.Schema:
        path = self.path / name
        return ArrowFolder.open(path.parent, [path.name]).schema

    def staged(self, folder: str, shards: Sequence[ShardInfo]) -> tuple[Path, tuple[str, ...]]:
        changed = changed_files(self.path / folder, {shard.file: shard.xxh3 for shard in shards})
        if changed:
            raise DataError("; ".join(f"{folder}/{line}" for line in changed))
        return self.path / folder, tuple(shard.file for shard in shards)

    def table_of(self, name: str) -> pa.Table:
        path = self.path / name
        return ArrowFolder.open(path.parent, [path.name]).table()

    def claim(
        self, waiting: Callable[[str], None] | None = None, writes: bool = True
    ) -> contextlib.AbstractContextManager[str]:
        return locked_folder(self.path, waiting, writes)

    def await_end(self, waiting: Callable[[str], None]) -> None:
        await_folder(self.path, waiting)

    def holder(self) -> str | None:
        return folder_holder(self.path)

    def reading(self) -> object:
        return Reading(self.path)

    def is_read(self) -> bool:
        return lock.is_read(self.path)

    def holds(self, token: str) -> bool:
        return (self.path / PENDING / token).is_dir()

    @contextlib.contextmanager
    def scratch(self, token: str) -> Iterator[Path]:
        # Below `pending`, so on the store's own disk: files are moved by a rename, and a worker that outlives its
        # capture finds its folder gone.
        yield self.path / PENDING / token


def _files(path: str, prefix: str) -> Iterator[tuple[str, int]]:
    try:
        entries = list(os.scandir(path))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise DataError(f"{path}: not a folder") from None
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):
            if entry.is_dir():  # or a link to one, such as to another disk
                yield from _files(entry.path, f"{prefix}{entry.name}/")
            else:
                yield f"{prefix}{entry.name}", entry.stat().st_size

"""Where the files of a store lie, behind one small protocol: a folder (local, NFS), or a prefix of an object store.

Names are relative to the store and use `/`: `manifest.json`, `signals/logits/data-00000.arrow`. What is read as memory
maps is `staged` first: for a folder that is the file itself, for an object store a verified copy on this node.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from raybrew.config import StoreConfig
from raybrew.data.arrow import ArrowFolder, ShardInfo, hash_file, write_bytes
from raybrew.data.hashes import changed_files, known_hashes
from raybrew.errors import DataError, StoreError, StoreNotWritable

__all__ = [
    "PENDING",
    "LocalFolder",
    "Storage",
    "is_remote",
    "open_storage",
    "storage_errors",
    "stores_at",
    "stores_below",
    "stores_root",
]

#: Folder of what a running capture still has to compute; below it one folder per capture, named by its token.
PENDING = "pending"


class Storage(Protocol):
    """The files of one store. Objects travel to other processes (they pickle) and open their connections there."""

    @property
    def location(self) -> str:
        """Path or URL, as a person writes it."""
        ...

    @property
    def path(self) -> Path:
        """Folder of this node where files are mapped from: the store itself, or its staged copies."""
        ...

    def exists(self) -> bool:
        """Whether there is anything."""
        ...

    def files(self, below: str = "") -> dict[str, int]:
        """Names and sizes of all files, or of those in or under the folder `below`."""
        ...

    def sizes(self, names: Collection[str]) -> dict[str, int]:
        """Sizes of those of `names` that exist."""
        ...

    def read(self, name: str) -> bytes:
        """Content of a small file; FileNotFoundError."""
        ...

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """Contents of those of `names` that exist."""
        ...

    def write(self, name: str, data: bytes) -> None:
        """A small file, whole or not at all."""
        ...

    def put(self, path: Path, name: str) -> None:
        """Move the finished local file `path` to `name`, whole or not at all; FileNotFoundError if it is gone."""
        ...

    def delete(self, names: Collection[str]) -> None:
        """Remove files; missing ones are none to remove."""
        ...

    def hash_of(self, name: str) -> str:
        """xxh3_128 of a file's bytes as they are now."""
        ...

    def known_hashes(self, folder: str, files: Collection[str]) -> dict[str, str] | None:
        """xxh3_128 of those files of `folder` that exist, each read once a node; None where they lie elsewhere."""
        ...

    def schema_of(self, name: str) -> pa.Schema:
        """Columns of an Arrow file, of which little more is read."""
        ...

    def staged(self, folder: str, shards: Sequence[ShardInfo]) -> tuple[Path, tuple[str, ...]]:
        """Folder and file names of these shards of `folder` on this node, to be mapped.

        DataError if a copy would not be what was committed; StoreError if it cannot be made.
        """
        ...

    def table_of(self, name: str) -> pa.Table:
        """A small Arrow file as a table; DataError if it cannot be read."""
        ...

    def claim(self, waiting: Callable[[str], None] | None = None) -> contextlib.AbstractContextManager[str]:
        """Hold the store as its one writer; gives a token.

        With `waiting`, which hears on whom, it waits for others; StoreError says who holds it otherwise.
        """
        ...

    def await_end(self, waiting: Callable[[str], None]) -> None:
        """Wait while anybody holds the store; `waiting` hears who."""
        ...

    def holder(self) -> str | None:
        """Who is capturing into the store, in words; None if nobody is known to."""
        ...

    def reading(self) -> object:
        """Something to keep while the files of the store are read, so that nobody removes them."""
        ...

    def is_read(self) -> bool:
        """Whether a run reads the store, as far as that is known."""
        ...

    def holds(self, token: str) -> bool:
        """Whether the capture of that token is still the one that may write."""
        ...

    def scratch(self, token: str) -> contextlib.AbstractContextManager[Path]:
        """Local folder for files that a worker of the capture `token` is about to `put`."""
        ...


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

    def claim(self, waiting: Callable[[str], None] | None = None) -> contextlib.AbstractContextManager[str]:
        from raybrew.store.lock import locked_folder

        return locked_folder(self.path, waiting)

    def await_end(self, waiting: Callable[[str], None]) -> None:
        from raybrew.store.lock import await_folder

        await_folder(self.path, waiting)

    def holder(self) -> str | None:
        from raybrew.store.lock import folder_holder

        return folder_holder(self.path)

    def reading(self) -> object:
        from raybrew.store.lock import Reading

        return Reading(self.path)

    def is_read(self) -> bool:
        from raybrew.store.lock import is_read

        return is_read(self.path)

    def holds(self, token: str) -> bool:
        return (self.path / PENDING / token).is_dir()

    @contextlib.contextmanager
    def scratch(self, token: str) -> Iterator[Path]:
        # Below `pending`, so on the store's own disk: files are moved by a rename, and a worker that outlives its
        # capture finds its folder gone.
        yield self.path / PENDING / token


def is_remote(location: str | Path) -> bool:
    """Whether `location` is a URL of an object store."""
    return "://" in str(location)


def open_storage(location: str | Path, cache: str | Path | None = None) -> Storage:
    """The storage at a path or URL; `cache` is the folder for copies of remote files (None: the user's cache folder).

    Nothing is opened or connected yet. StoreError for a URL that cannot be one.
    """
    if not is_remote(location):
        return LocalFolder(Path(location))
    from raybrew.store.objects import ObjectFolder

    return ObjectFolder(str(location), None if cache is None else str(cache))


def stores_at(location: str | Path, cache: str | Path | None = None) -> list[Storage]:
    """The storage of the store at a path or URL, or of all stores in a folder of stores."""
    storage = open_storage(location, cache)
    return [storage] if _is_store(storage) else stores_below(location, cache)


def stores_below(location: str | Path, cache: str | Path | None = None) -> list[Storage]:
    """Storages of all stores in a folder of stores, finished or not, by name."""
    if is_remote(location):
        from raybrew.store.objects import ObjectFolder

        names = ObjectFolder(str(location)).folders()
        found = [open_storage(f"{str(location).rstrip('/')}/{name}", cache) for name in names]
    else:
        root = Path(location)
        found = [LocalFolder(path) for path in sorted(root.iterdir()) if path.is_dir()] if root.is_dir() else []
    return [storage for storage in found if _is_store(storage)]


def _is_store(storage: Storage) -> bool:
    return bool(storage.sizes(["manifest.json"]) or storage.files("shards"))


def stores_root(config: StoreConfig) -> str:
    """Folder or URL of all stores of an experiment with this `store` section."""
    if config.path is not None and is_remote(config.path):
        return config.path.rstrip("/")
    return str(Path(config.path or Path(config.storage_path) / "store").absolute())


@contextlib.contextmanager
def storage_errors(storage: Storage, what: str) -> Iterator[None]:
    """A full disk or missing rights as a StoreNotWritable of one line; other errors pass."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        root = storage.path
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free / 2**20
            raise StoreNotWritable(
                f"{what}: no space left ({free:.0f} MiB free) in {root}; finished shards are kept: "
                "free some space or set store.path, and run the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreNotWritable(f"{what}: {root} cannot be written ({error.strerror}); set store.path") from error
        raise


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

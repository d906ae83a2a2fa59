"""The storage at a path or URL, and its errors."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from raybrew.config import StoreConfig
from raybrew.errors import FULL, StoreError, StoreNotWritable
from raybrew.storage.local import LocalFolder
from raybrew.storage.protocol import Storage

__all__ = ["is_remote", "open_storage", "storage_errors", "stores_at", "stores_below", "stores_root"]


def is_remote(location: str | Path) -> bool:
    """Whether `location` is a URL of an object store."""
    return "://" in str(location)


def open_storage(location: str | Path, cache: str | Path | None = None) -> Storage:
    """The storage at a path or URL; `cache` is the folder for copies of remote files (None: the user's cache folder).

    Nothing is opened or connected yet. StoreError for a URL that cannot be one.
    """
    if not is_remote(location):
        return LocalFolder(Path(location))
    from raybrew.storage.objects import ObjectFolder

    return ObjectFolder(str(location), None if cache is None else str(cache))


def stores_at(location: str | Path, cache: str | Path | None = None) -> list[Storage]:
    """The storage of the store at a path or URL, or of all stores in a folder of stores."""
    storage = open_storage(location, cache)
    return [storage] if _is_store(storage) else stores_below(location, cache)


def stores_below(location: str | Path, cache: str | Path | None = None) -> list[Storage]:
    """Storages of all stores in a folder of stores, finished or not, by name."""
    if is_remote(location):
        from raybrew.storage.objects import ObjectFolder

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
        if error.errno in FULL:
            free = shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free / 2**20
            raise StoreNotWritable(
                f"{what}: no space left ({free:.0f} MiB free) in {root}; finished shards are kept: "
                "free some space or set store.path, and run the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreNotWritable(f"{what}: {root} cannot be written ({error.strerror}); set store.path") from error
        raise

"""Which stores there are, and what they hold and came from, as plain values."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from raybrew.errors import StoreError
from raybrew.storage.open import stores_below
from raybrew.storage.protocol import Storage
from raybrew.store.index import index_file
from raybrew.store.layout import EXAMPLES, Shard
from raybrew.store.manifest import last_used
from raybrew.store.reader import Store

__all__ = ["StoreEntry", "describe", "entry_of", "list_stores"]


@dataclasses.dataclass(frozen=True)
class StoreEntry:
    """A folder among stores: an open store, or why it cannot be opened. `used` is an ISO date, if it is known."""

    location: str
    store: Store | None
    problem: str | None
    bytes: int
    used: str | None

    @property
    def path(self) -> Path:
        """Its folder (of a store that is not remote)."""
        return Path(self.location)


def list_stores(root: str | Path, cache: str | None = None) -> tuple[StoreEntry, ...]:
    """All stores below the folder or URL `root`, finished or not, by name."""
    return tuple(entry_of(storage) for storage in stores_below(root, cache))


def entry_of(storage: Storage) -> StoreEntry:
    """One store of `list_stores`."""
    used, size = last_used(storage), sum(storage.files().values())
    date = None if used is None else used.isoformat(timespec="seconds")
    try:
        return StoreEntry(storage.location, Store.open(storage), None, size, date)
    except StoreError as error:
        return StoreEntry(storage.location, None, str(error), size, date)


def describe(store: Store) -> dict[str, Any]:
    """What a store holds and from what it was computed, as plain values."""
    shards: list[Shard] = store.manifest["shards"]
    sizes: dict[str, int] = {}
    aside: dict[str, dict[str, str]] = {}
    for shard in shards:
        for folder, info in shard.files.items():
            sizes[folder] = sizes.get(folder, 0) + info.bytes
        for folder, rows in shard.set_aside.items():
            aside.setdefault(folder, {}).update(rows)
    index = index_file(store.manifest).bytes
    used = last_used(store.storage)
    return {
        "path": store.location,
        "fingerprint": store.fingerprint,
        "teacher": store.manifest["teacher"],
        "labels": store.manifest.get("labels", []),
        "parts": store.manifest["parts"],
        "rows": store.num_rows,
        "rows_fingerprint": store.manifest["rows_fingerprint"],
        "tokens": sum(shard.tokens for shard in shards),
        "shards": len(shards),
        "bytes": index + sum(sizes.values()),
        "examples_bytes": sizes[EXAMPLES],
        "index_bytes": index,
        "signals": {
            folder: {**entry, "bytes": sizes.get(folder, 0)} for folder, entry in store.manifest["signals"].items()
        },
        "set_aside": aside,
        "used": None if used is None else used.isoformat(timespec="seconds"),
        "raybrew": store.manifest["raybrew"],
    }

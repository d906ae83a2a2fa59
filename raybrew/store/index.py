"""Finding rows by their example ids: a file of sorted ids and their positions, which readers map into memory.

It is named by its content, so that a reader of an older manifest never meets the index of a newer one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from raybrew.data.arrow import ArrowFolder, ShardInfo, table_bytes
from raybrew.data.rows.row_set import id_keys
from raybrew.errors import StoreUnreachable
from raybrew.storage.protocol import Storage

__all__ = ["INDEX", "IdIndex", "index_file", "published_index", "raw_manifest", "write_index"]

_XXH3 = re.compile(r"[0-9a-f]+")
#: Folder of the file.
INDEX = "index"


class IdIndex:
    """Finds rows by their 16-byte example ids: sorted ids and their positions."""

    def __init__(self, keys: npt.NDArray[np.bytes_], positions: npt.NDArray[np.int64]) -> None:
        self._keys = keys
        self._positions = positions

    @classmethod
    def of(cls, ids: npt.NDArray[np.uint8]) -> IdIndex:
        """The index of rows with these ids (n, 16), in memory: 24 bytes a row."""
        keys = id_keys(ids)
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], order)

    @classmethod
    def mapped(cls, file: ArrowFolder) -> IdIndex:
        """The index in a file, which is read where it is looked at. DataError if it is none."""
        ids, positions = (file.flat(name).only_chunk() for name in ("id", "position"))
        return cls(id_keys(ids), positions)

    def table(self) -> pa.Table:
        """What `mapped` reads."""
        ids = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(self._keys), [None, pa.py_buffer(self._keys)])
        return pa.table({"id": ids, "position": pa.array(self._positions, pa.int64())})

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Position of each of `ids` (n, 16) uint8; -1 for an unknown one."""
        keys = id_keys(ids)
        if not len(self._keys):
            return np.full(len(keys), -1, np.int64)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[places] == keys, self._positions[places], -1)


def index_file(manifest: Mapping[str, Any]) -> ShardInfo:
    """The file that finds rows by their ids."""
    entry = manifest["index"]
    if _XXH3.fullmatch(str(entry["xxh3"])) is None:
        raise ValueError(f"{entry['xxh3']!r} names no index")
    return ShardInfo(f"{entry['xxh3']}.arrow", int(manifest["rows"]), int(entry["bytes"]), str(entry["xxh3"]))


def write_index(storage: Storage, index: IdIndex) -> ShardInfo:
    """Write the file of `index`, if it is not there; what a manifest says of it."""
    data = table_bytes(index.table())
    digest = xxhash.xxh3_128_hexdigest(data)
    info = ShardInfo(f"{digest}.arrow", len(index), len(data), digest)
    name = f"{INDEX}/{info.file}"
    if storage.sizes([name]).get(name) != info.bytes or storage.hash_of(name) != info.xxh3:
        storage.write(name, data)
    return info


def raw_manifest(storage: Storage) -> Any:
    """The manifest as it lies there, whatever it is; None where there is none, or no JSON."""
    try:
        return json.loads(storage.read("manifest.json"))
    except StoreUnreachable:
        raise
    except (OSError, ValueError, RecursionError):
        return None


def published_index(storage: Storage) -> str | None:
    """Name of the index that the manifest names; None where there is no readable one."""
    try:
        return index_file(raw_manifest(storage)).file
    except (ValueError, KeyError, TypeError):
        return None

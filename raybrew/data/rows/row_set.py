"""Source rows that can be used, as one table, and what is chosen among them by their ids."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from raybrew.data.readers.records import BadRow
from raybrew.tasks.base import Labels

__all__ = [
    "ID_BYTES",
    "RowSet",
    "id_keys",
    "in_share",
    "row_ids",
    "rows_beside",
    "rows_fingerprint",
    "rows_of_ids",
    "subset_indices",
]

ID_BYTES = 16


@dataclasses.dataclass(frozen=True)
class RowSet:
    """Rows that can be used: `table` has `id` (16 bytes) and the columns of the task's schema, `label` being the last.

    Duplicates are kept, with the same id. `skipped` lists what `data.on_bad_row=skip` left out.
    """

    table: pa.Table
    labels: Labels
    skipped: tuple[BadRow, ...]
    source: str
    set_aside: npt.NDArray[np.uint8] = dataclasses.field(default_factory=lambda: np.empty((0, ID_BYTES), np.uint8))
    """Ids of the rows of the source that belong to another split: of the training rows, those of `data.test`."""
    num_read: int = 0
    """Rows of the source, skipped ones and those outside of a subset included."""
    numbered: bool = False
    """Whether labels were numbers that were read as positions among names that the source does not give."""

    def __len__(self) -> int:
        return int(self.table.num_rows)


def row_ids(table: pa.Table) -> npt.NDArray[np.uint8]:
    """The ids of a table of rows, (rows, 16)."""
    parts = [np.empty((0, ID_BYTES), np.uint8)]
    for chunk in table.column("id").chunks:
        if len(chunk):
            ids = np.frombuffer(chunk.buffers()[1], np.uint8).reshape(-1, ID_BYTES)
            parts.append(ids[chunk.offset : chunk.offset + len(chunk)])
    return np.concatenate(parts)


def rows_beside(table: pa.Table, ids: npt.NDArray[np.uint8]) -> pa.Table:
    """The rows of `table` whose ids (rows, 16) are not among `ids`."""
    if not len(ids):
        return table
    known = np.unique(id_keys(ids))
    return table.filter(pa.array(~np.isin(id_keys(row_ids(table)), known)))


def rows_of_ids(ids: npt.NDArray[np.uint8], wanted: Collection[bytes]) -> npt.NDArray[np.int64]:
    """Places in `ids` (rows, 16) of those that are `wanted`."""
    known = np.array(sorted(wanted), f"S{ID_BYTES}")
    return np.flatnonzero(np.isin(id_keys(ids), known))


def id_keys(ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.bytes_]:
    """Ids (rows, 16) as one value each, (rows,), to be sorted and compared."""
    # Byte strings of one size sort and compare as memory does; numpy's void type sorts far slower.
    return np.ascontiguousarray(ids).view(f"S{ID_BYTES}").reshape(-1)


def rows_fingerprint(table: pa.Table) -> str:
    """32 hex digits that name the examples of `table`: the same for any order of rows and any labels."""
    halves = row_ids(table).view("<u8")
    ordered = halves[np.lexsort((halves[:, 1], halves[:, 0]))]
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(ordered).data)


def subset_indices(num_rows: int, size: int) -> npt.NDArray[np.int64]:
    """Rows of a subset, ascending: the first `size` of one fixed permutation, so smaller subsets lie in larger ones."""
    # Raw output of the bit generator, because numpy promises that it never changes; `permutation` may.
    keys = np.random.PCG64(0).random_raw(num_rows)
    return np.sort(np.argsort(keys, kind="stable")[:size])


def in_share(ids: npt.NDArray[np.uint8], share: float) -> npt.NDArray[np.bool_]:
    """Which of the ids (rows, 16) belong to a share of all texts; a smaller share lies within a larger one."""
    # Ids are hashes of content, so half of one is a number drawn evenly.
    return np.ascontiguousarray(ids[:, 8:]).view("<u8").ravel() < np.uint64(min(share * 2.0**64, 2.0**64 - 2048))

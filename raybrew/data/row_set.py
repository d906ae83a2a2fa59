"""Source rows that can be used, as one table."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raybrew.data.records import BadRow
from raybrew.tasks.base import Labels

__all__ = ["ID_BYTES", "RowSet", "id_keys", "row_ids"]

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


def id_keys(ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.bytes_]:
    """Ids (rows, 16) as one value each, (rows,), to be sorted and compared."""
    # Byte strings of one size sort and compare as memory does; numpy's void type sorts far slower.
    return np.ascontiguousarray(ids).view(f"S{ID_BYTES}").reshape(-1)

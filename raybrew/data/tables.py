"""Tables whose texts are longer together than one Arrow array can hold."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = ["CHUNK_BYTES", "merged", "taken"]

#: Of one chunk of a table in memory; Arrow's limit for one column of text is 2 GiB.
CHUNK_BYTES = 1 << 30


def merged(table: pa.Table, most_bytes: int = CHUNK_BYTES) -> pa.Table:
    """`table` in few chunks, each of at most about `most_bytes`: Arrow counts the characters of one in 32 bits."""
    parts: list[pa.Table] = []
    batches: list[pa.RecordBatch] = []
    size = 0
    for batch in table.to_batches():
        if batches and size + batch.nbytes > most_bytes:
            parts.append(pa.Table.from_batches(batches).combine_chunks())
            batches, size = [], 0
        batches.append(batch)
        size += batch.nbytes
    if batches:
        parts.append(pa.Table.from_batches(batches).combine_chunks())
    return pa.concat_tables(parts) if parts else table


def taken(table: pa.Table, places: npt.ArrayLike, most_bytes: int = CHUNK_BYTES) -> pa.Table:
    """The rows at `places`, in that order, in chunks of at most about `most_bytes`.

    `Table.take` joins all chunks of a column first, which fails beyond 2 GiB of text.
    """
    wanted = np.asarray(places, np.int64)
    order = np.argsort(wanted, kind="stable")
    ascending = wanted[order]
    parts, first = [], 0
    for batch in table.to_batches():
        start, end = np.searchsorted(ascending, (first, first + batch.num_rows))
        if end > start:
            parts.append(pa.Table.from_batches([batch]).take(pa.array(ascending[start:end] - first)))
        first += batch.num_rows
    if not parts:
        return table.slice(0, 0)
    found = pa.concat_tables(parts)
    if found.nbytes > most_bytes and len(wanted) > 1:
        half = len(wanted) // 2
        return pa.concat_tables([taken(table, wanted[:half], most_bytes), taken(table, wanted[half:], most_bytes)])
    places_back = np.empty(len(order), np.int64)
    places_back[order] = np.arange(len(order))
    return found.combine_chunks().take(pa.array(places_back))

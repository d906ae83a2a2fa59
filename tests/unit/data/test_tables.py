"""Tables with more text than one Arrow array holds, with a lower limit in place of 2 GiB."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from raybrew.data.tables import merged, taken


def chunked(rows: int = 50, size: int = 7) -> pa.Table:
    texts = [f"{number:03d}" + "x" * number for number in range(rows)]
    words = [[text[:3], text[3:]] for text in texts]
    tables = [
        pa.table({"text": texts[start : start + size], "words": words[start : start + size]})
        for start in range(0, rows, size)
    ]
    return pa.concat_tables(tables)


def test_rows_are_taken_in_order_from_any_chunks() -> None:
    table = chunked()
    for places in ([], [0], [49, 0, 7, 6, 49], np.random.default_rng(0).permutation(50)):
        expected = [table.column("text")[int(place)].as_py() for place in places]
        for most in (1, 100, 10_000):
            found = taken(table, places, most)
            assert found.column("text").to_pylist() == expected
            assert found.schema == table.schema
            assert all(batch.nbytes <= most or batch.num_rows == 1 for batch in found.to_batches())


def test_chunks_stay_below_the_limit() -> None:
    table = chunked()
    assert merged(table).column("words").num_chunks == 1
    few = merged(table, 1000)
    assert few.equals(table)
    assert 1 < few.column("words").num_chunks < table.column("words").num_chunks
    assert merged(table.slice(0, 0)).num_rows == 0


def test_chunks_are_never_joined(monkeypatch) -> None:
    """Joining them is what overflows beyond 2 GiB."""
    halves = [pa.array(["a" * 1000] * 10), pa.array(["b" * 1000] * 10)]
    table = pa.table({"text": pa.chunked_array(halves)})
    assert [len(chunk) for chunk in merged(table, 12_000).column("text").chunks] == [10, 10]

"""Stored outputs against those of the teacher as it is now, next to how much that differs from itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from raybrew.data.columns import FlatColumn, RaggedColumn
from raybrew.data.tables import taken
from raybrew.errors import StoreError
from raybrew.signals import PAIR_KINDS, Signal, sorted_signals
from raybrew.store.compute import Teacher
from raybrew.store.elements import element_type_of, relative_rounding
from raybrew.store.layout import signal_of
from raybrew.store.reader import Store

__all__ = ["LiveCheck", "compare_live"]

#: How many times its difference from itself a teacher may differ from what is stored, beyond the rounding of the type.
_TIMES_ITSELF = 8.0
#: Share of the largest value by which another machine or another version of torch may differ in float32.
_OTHER_MACHINE = 1e-5


@dataclasses.dataclass(frozen=True)
class LiveCheck:
    """One signal: largest differences over the rows that were computed again.

    `stored`: between store and teacher; `rounding`: what the element type explains of it at most; `itself`: between two
    passes of the same teacher over the same rows in other batches; `largest`: the largest value of the teacher.
    """

    signal: str
    element_type: str
    rows: int
    stored: float
    rounding: float
    itself: float
    largest: float
    agrees: bool


def compare_live(
    store: Store, teacher: Teacher, rows: int, signals: Iterable[Signal] | None = None, seed: int = 0
) -> tuple[LiveCheck, ...]:
    """Computes `rows` rows again, drawn by `seed`, and compares each signal with what is stored, in each of its types.

    `teacher` must keep float32. All signals that the store has for some of the rows by default; rows that were set
    aside are left out. StoreError if nothing can be compared.
    """
    wanted = sorted_signals(store.signals if signals is None else signals)
    readers = [
        Store(store.storage, store.manifest, name)
        for name in sorted({entry["element_type"] for entry in store.manifest["signals"].values()})
    ]
    aside = store.set_aside(wanted)
    examples = store.examples
    order = np.random.default_rng(seed).permutation(store.num_rows)[: rows + len(aside)]
    ids = examples.flat("id").gather(order)
    drawn = [place for place, row in zip(order.tolist(), ids, strict=True) if row.tobytes().hex() not in aside][:rows]
    places = np.sort(np.array(drawn, np.int64))
    if not len(places) or not wanted:
        raise StoreError(f"{store.location}: there is nothing to compare with the teacher")
    checks = []
    for group in _by_rows(store, wanted, places):
        here, request = group
        table = taken(examples.table(), here)
        first = teacher.compute(table, request)
        second = dataclasses.replace(teacher, batch_tokens=1, notes=[]).compute(table, request)
        for signal in request:
            heads = store.dim(signal) if signal.kind in PAIR_KINDS else None
            live, again = (_padded(tables[signal], signal, heads) for tables in (first, second))
            for reader in readers:
                if element_type_of(signal, reader.element_type or "") == reader.element_type:
                    has = reader.has_each(signal, here)
                    if has.any():
                        kept = torch.from_numpy(has)
                        checks.append(_compared(reader, signal, here[has], live[kept], again[kept]))
    return tuple(sorted(checks, key=lambda check: (check.signal, check.element_type)))


def _by_rows(
    store: Store, wanted: tuple[Signal, ...], places: npt.NDArray[np.int64]
) -> list[tuple[npt.NDArray[np.int64], tuple[Signal, ...]]]:
    """Signals with those of `places` that have them: a signal may lack rows it was never asked for."""
    groups: dict[bytes, list[Signal]] = {}
    for signal in wanted:
        has = store.has_each(signal, places)
        if has.any():
            groups.setdefault(places[has].tobytes(), []).append(signal)
    return [(np.frombuffer(key, np.int64), tuple(signals)) for key, signals in groups.items()]


def _padded(table: pa.Table, signal: Signal, heads: int | None) -> Tensor:
    """What `Store.gather` gives, of a table that the teacher has just made."""
    kind, chunks = table.schema.field(signal.kind).type, table.column(signal.kind).chunks
    rows = np.arange(table.num_rows)
    if pa.types.is_fixed_size_list(kind):
        return torch.from_numpy(FlatColumn(kind, chunks).gather(rows))
    column = RaggedColumn(kind, chunks)
    return torch.from_numpy(column.gather_padded(rows) if heads is None else column.gather_squares(rows, heads))


def _compared(store: Store, signal: Signal, places: npt.NDArray[np.int64], live: Tensor, again: Tensor) -> LiveCheck:
    kept = store.gather(signal, places).float()
    found = signal_of(store.folder_of(signal))
    assert found is not None  # a folder of the manifest
    share = relative_rounding(found[1])
    size = live.abs()
    if found[1] == "int8":
        dims = (1, 3) if signal.kind in PAIR_KINDS else (-1,)
        size = size.amax(dim=dims, keepdim=True).expand_as(live)
    rounding, largest = share * size, float(live.abs().max())
    itself = float((live - again).abs().max())
    difference = (kept - live).abs()
    allowed = rounding * (1 + 1e-3) + _TIMES_ITSELF * itself + _OTHER_MACHINE * largest
    # Numbers too small for float16 lose more than their share.
    allowed = allowed + (2.0**-25 if found[1] == "float16" else 0.0)
    return LiveCheck(
        signal.name,
        found[1],
        len(places),
        float(difference.max()),
        float(rounding.max()),
        itself,
        largest,
        bool((difference <= allowed).all()),
    )

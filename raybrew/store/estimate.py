"""How many bytes a store will take, by arithmetic: widths of signals, counts of rows, tokens, items, pairs of tokens.

Data files only (examples, signals, the index of ids); marks and manifest add about a kilobyte per shard.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raybrew.data.arrow import table_bytes
from raybrew.signals import LOGITS, Signal
from raybrew.store.forms.base import Form, Forms
from raybrew.store.forms.columns import parts_of
from raybrew.store.index import INDEX
from raybrew.store.layout import EXAMPLES

__all__ = ["Amounts", "Widths", "estimate_bytes"]

_ID_BYTES = 16
#: Of one row in the index: its id and its position.
_INDEX_BYTES = _ID_BYTES + 8


@dataclasses.dataclass(frozen=True)
class Amounts:
    """What rows there are. `pairs` is the sum of the squared lengths; `columns` are token columns beside the ids."""

    rows: int
    tokens: int
    pairs: int
    items: int | None = None
    columns: tuple[str, ...] = ("input_ids",)

    @classmethod
    def of(
        cls,
        lengths: npt.NDArray[np.int32],
        items: npt.NDArray[np.int32] | None = None,
        columns: Sequence[str] = ("input_ids",),
        rows: int | None = None,
    ) -> Amounts:
        """Amounts of rows of these lengths; of `rows` rows like them, where these are a sample."""
        scale = 1.0 if rows is None or not len(lengths) else rows / len(lengths)
        wide = lengths.astype(np.float64)
        return cls(
            len(lengths) if rows is None else rows,
            round(scale * wide.sum()),
            round(scale * (wide**2).sum()),
            None if items is None else round(scale * float(items.sum())),
            tuple(columns),
        )


@dataclasses.dataclass(frozen=True)
class Widths:
    """Sizes of a teacher: numbers of logits (of a row or an item), of a hidden state, and heads."""

    logits: int
    hidden: int
    heads: int


def estimate_bytes(
    amounts: Amounts, widths: Widths, request: Iterable[Signal], forms: Forms, rows_per_shard: int
) -> dict[str, int]:
    """Bytes of `examples`, of each signal by name, and of `index`."""
    shards = max(1, math.ceil(amounts.rows / rows_per_shard))
    found = {EXAMPLES: _examples(amounts, shards)}
    for signal in request:
        found[signal.name] = _signal(amounts, widths, signal, forms.of(signal), shards)
    found[INDEX] = amounts.rows * _INDEX_BYTES + _overhead(
        {"id": pa.binary(_ID_BYTES), "position": pa.int64()}, _INDEX_BYTES
    )
    return found


def _examples(amounts: Amounts, shards: int) -> int:
    types = {"id": pa.binary(_ID_BYTES)}
    size, offsets = amounts.rows * _ID_BYTES, 4 * (amounts.rows + shards)
    for name in amounts.columns:
        kind = pa.int8() if name == "token_type_ids" else pa.int32()
        count = (amounts.items or 0) if name == "items" else amounts.tokens
        types[name] = pa.list_(kind)
        size += count * _width(kind) + offsets
    return size + shards * _overhead(types, _ID_BYTES + 8 * len(amounts.columns))


def _signal(amounts: Amounts, widths: Widths, signal: Signal, form: Form, shards: int) -> int:
    parts = parts_of(signal, amounts.items is not None)
    counts = {"items": amounts.items or 0, "tokens": amounts.tokens, "pairs": amounts.tokens, None: amounts.rows}
    dim = widths.logits if signal.kind == LOGITS.kind else widths.heads if parts == "pairs" else widths.hidden
    types: dict[str, pa.DataType] = {}
    size = row = 0
    for name, column in form.columns(dim).items():
        numbers = amounts.pairs * dim if column.pairs else counts[parts] * (column.width or 1)
        kind = column.type if column.width is None else pa.list_(column.type, column.width)
        size += numbers * _width(column.type)
        if parts is None:
            row += (column.width or 1) * _width(column.type)
        else:
            kind, size, row = pa.large_list(kind), size + 8 * (amounts.rows + shards), row + 16
        types[name] = kind
    return size + shards * _overhead(types, row)


def _overhead(types: dict[str, pa.DataType], row_bytes: int) -> int:
    """Bytes of a file of these columns beyond its data: measured on one row, whose data are `row_bytes`."""
    empty = {
        name: pa.array([[] if pa.types.is_list(kind) or pa.types.is_large_list(kind) else _zero(kind)], kind)
        for name, kind in types.items()
    }
    return len(table_bytes(pa.table(empty))) - row_bytes


def _width(kind: pa.DataType) -> int:
    """Bytes of one number."""
    return int(kind.bit_width) // 8


def _zero(kind: pa.DataType) -> object:
    if pa.types.is_fixed_size_list(kind):
        return [0] * kind.list_size
    return bytes(kind.byte_width) if pa.types.is_fixed_size_binary(kind) else 0

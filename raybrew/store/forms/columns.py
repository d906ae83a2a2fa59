"""Columns of one signal, of any form: taken from padded batches, put in their places, written, sized and gathered."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raybrew.catalog.forms import DENSE
from raybrew.data.arrow import ArrowFolder
from raybrew.data.columns import FlatColumn, item_shape
from raybrew.signals import LOGITS, PAIR_KINDS, Signal
from raybrew.store.forms.base import Column, Form, Forms

if TYPE_CHECKING:
    from torch import Tensor

    from raybrew.data.loader import Payload

__all__ = ["Collected", "Encoded", "Problem", "StoredColumns", "dim_of", "encoded", "parts_of"]

#: Keys of a file's metadata: the number of heads of attention; the width of outputs that its columns do not tell.
_HEADS, _DIM = b"heads", b"dim"

Indices = npt.NDArray[np.int64]


def parts_of(signal: Signal, has_items: bool) -> str | None:
    """What of a row `signal` has numbers for: each of its `tokens`, `items` or `pairs`; None: the row as a whole."""
    if signal.kind in PAIR_KINDS:
        return "pairs"
    if signal.layer is not None:
        return "tokens"
    return "items" if signal.kind == LOGITS.kind and has_items else None


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One signal of one batch in its form, perhaps still on its way from the device; outputs had `dim` numbers.

    `extremes` are smallest and largest of what is checked and of what the teacher gave: they show every NaN and
    infinity, at a tenth of the cost of counting these.
    """

    columns: Mapping[str, Tensor]
    dim: int
    extremes: Tensor


def encoded(form: Form, output: Tensor, parts: str | None, flat: Tensor | None, pairs: Tensor | None) -> Encoded:
    """`output` of a batch as it will be stored, on the host, without padding but for pairs.

    `flat`: places of the real tokens or items in (batch * length); `pairs` (batch, 1, length, length): real pairs.
    """
    import torch

    if parts == "pairs":
        assert pairs is not None
        output = output.masked_fill(~pairs, 0.0)
    elif flat is not None:
        output = output.flatten(0, 1).index_select(0, flat)
    columns = form.encode(output)
    extremes = torch.stack([bound.float() for bound in (*columns[form.checked].aminmax(), *output.aminmax())])
    on_host = {name: values.to("cpu", non_blocking=True) for name, values in columns.items()}
    return Encoded(on_host, output.shape[1 if parts == "pairs" else -1], extremes)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Values of one signal that cannot be stored: what to say of all of them, and the reason for each row."""

    text: str
    reasons: dict[int, str]


class _Rows:
    """One column of a shard. `bounds` say where the values of each row begin and end; zeros until they come."""

    def __init__(self, column: Column, bounds: Indices, item: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.column = column
        self.bounds = bounds
        self.values: npt.NDArray[Any] = np.zeros((int(bounds[-1]), *item), dtype)

    def of(self, row: int) -> npt.NDArray[Any]:
        """The values of one row, to be written to."""
        return self.values[self.bounds[row] : self.bounds[row + 1]]

    def array(self, lists: bool) -> pa.Array:
        """As Arrow has it, one list a row where `lists`."""
        values = pa.array(self.values.reshape(-1), self.column.type)
        if self.values.ndim > 1:
            values = pa.FixedSizeListArray.from_arrays(values, self.values.shape[-1])
        return pa.LargeListArray.from_arrays(pa.array(self.bounds, pa.int64()), values) if lists else values


class Collected:
    """Outputs of a shard, put in their places batch by batch.

    `lengths`: for each list column of the examples (`input_ids`, perhaps `items`) its length in every row.
    """

    def __init__(self, lengths: Mapping[str, npt.NDArray[np.int32]], request: tuple[Signal, ...], forms: Forms) -> None:
        self._tokens = lengths["input_ids"].astype(np.int64)
        self._bounds: dict[str | None, Indices] = {
            None: np.arange(len(self._tokens) + 1, dtype=np.int64),
            "tokens": _bounds(self._tokens),
        }
        if "items" in lengths:
            self._bounds["items"] = _bounds(lengths["items"].astype(np.int64))
        self._forms = {signal: forms.of(signal) for signal in request}
        self._stored = {signal: forms.stored_as(signal) for signal in request}
        self._parts = {signal: parts_of(signal, "items" in lengths) for signal in request}
        self._columns: dict[Signal, dict[str, _Rows]] = {}
        self._dims: dict[Signal, int] = {}
        self._extremes: dict[Signal, list[tuple[Indices, Tensor]]] = {signal: [] for signal in request}

    def add(self, rows: Indices, real: Mapping[str, npt.NDArray[np.bool_]], batch: Mapping[Signal, Encoded]) -> None:
        """Outputs of `rows`; `real` masks what is no padding, (rows, longest), of tokens and items."""
        places: dict[str | None, Indices] = {None: rows}
        for name, mask in real.items():
            places[name] = (self._bounds[name][rows][:, None] + np.arange(mask.shape[1]))[mask]
        for signal, outputs in batch.items():
            parts = self._parts[signal]
            for name, column in self._columns_of(signal, outputs).items():
                values = _array(outputs.columns[name])
                if parts == "pairs":
                    self._add_squares(column, rows, values)
                else:
                    column.values[places[parts]] = values
            self._extremes[signal].append((rows, outputs.extremes))

    def _add_squares(self, column: _Rows, rows: Indices, values: npt.NDArray[Any]) -> None:
        for place, row in enumerate(rows.tolist()):
            size, target = int(self._tokens[row]), column.of(row)
            if column.column.pairs:
                target.reshape(values.shape[1], size, size)[...] = values[place, :, :size, :size]
            else:
                target[...] = values[place, :size]

    def _columns_of(self, signal: Signal, outputs: Encoded) -> dict[str, _Rows]:
        """The columns of a signal, made at its first batch, which shows how wide it is."""
        if signal not in self._columns:
            parts, described = self._parts[signal], self._forms[signal].columns(outputs.dim)
            self._dims[signal] = outputs.dim
            self._columns[signal] = {}
            for name, values in outputs.columns.items():
                column, dtype = described[name], _array(values).dtype
                bounds = self._bounds["tokens" if parts == "pairs" else parts]
                if column.pairs:
                    bounds = _bounds(outputs.dim * self._tokens**2)
                item = () if column.width is None else (column.width,)
                self._columns[signal][name] = _Rows(column, bounds, item, dtype)
        return self._columns[signal]

    def lacks_all(self) -> bool:
        """Whether not a single row has come, so that not even the width of the signals is known."""
        return not self._columns

    def shape_like(self, batch: Mapping[Signal, Encoded]) -> None:
        """Take the widths of these outputs, and nothing else: all rows become zeros."""
        for signal, outputs in batch.items():
            self._columns_of(signal, outputs)

    def problems(self) -> dict[Signal, Problem]:
        """Values that are NaN or infinite, or became so in their form. Their rows are zero afterwards."""
        import torch

        problems = {}
        for signal, batches in self._extremes.items():
            if not batches:
                continue
            finite = torch.isfinite(torch.stack([extremes for _, extremes in batches]))
            if bool(finite.all()):
                continue
            overflown = [rows for (rows, _), batch in zip(batches, finite, strict=True) if bool(batch[2:].all())]
            rows = set(np.concatenate(overflown).tolist()) if overflown else set()
            problems[signal] = self._problem(signal, bool(finite[:, 2:].all()), rows)
        return problems

    def _problem(self, signal: Signal, teacher_is_finite: bool, overflown: set[int]) -> Problem:
        form, columns = self._forms[signal], self._columns[signal]
        checked, kept = columns[form.checked], self._stored[signal].element_type
        bad, nan = _not_finite(checked.values)
        nan_rows, reasons = set(_rows_with(checked, nan)), {}
        for row in _rows_with(checked, bad):
            if row in nan_rows:
                reasons[row] = f"{signal}: the teacher gives NaN"
            elif row in overflown:
                reasons[row] = f"{signal}: overflows {kept}"
            else:
                # Another row of its batch may be the one for which the teacher itself is not finite.
                reasons[row] = f"{signal}: overflows {kept}, or the teacher gives infinity"
            for column in columns.values():
                column.of(row)[...] = 0
        single = checked.column.width is None and not checked.column.pairs
        count = f"{int(bad.sum())} of {bad.size} {'vectors' if single else 'values'}"
        if teacher_is_finite:
            return Problem(f"{signal}: {count} overflow {kept}; {form.remedy()}", reasons)
        return Problem(f"{signal}: the teacher gives {count} that are NaN or infinite", reasons)

    def tables(self) -> dict[Signal, pa.Table]:
        """The table of each signal."""
        tables = {}
        for signal in self._columns:
            lists = self._parts[signal] is not None
            table = pa.table({name: column.array(lists) for name, column in self._columns[signal].items()})
            if self._parts[signal] == "pairs":
                table = table.replace_schema_metadata({_HEADS: str(self._dims[signal])})
            elif self._stored[signal].form != DENSE:
                table = table.replace_schema_metadata({_DIM: str(self._dims[signal])})
            tables[signal] = table
        return tables


def dim_of(schema: pa.Schema) -> int:
    """Numbers of an output per row, token or item; of attention the number of heads."""
    told = schema.metadata or {}
    found = told.get(_HEADS, told.get(_DIM))
    return int(item_shape(schema.field(0).type)[0]) if found is None else int(found)


class StoredColumns:
    """The columns of one signal in the shards of `data`, of outputs of `dim` numbers."""

    def __init__(self, form: Form, data: ArrowFolder, dim: int) -> None:
        described = form.columns(dim)
        self._form, self._dim = form, dim
        self._columns = [(name, data.column(name), described[name].pairs) for name in data.schema.names]

    def gather(self, rows: Indices, length: int | None) -> Payload:
        """What losses get of these rows, with zeros behind the tokens or items of each.

        `length`: tokens of each row; None: as many as the longest has.
        """
        found: dict[str, npt.NDArray[Any]] = {}
        for name, column, pairs in self._columns:
            if isinstance(column, FlatColumn):
                found[name] = column.gather(rows)
            elif pairs:
                found[name] = column.gather_squares(rows, self._dim, length)
            else:
                found[name] = column.gather_padded(rows, 0, length)
        return self._form.decode(found, self._dim)


def _not_finite(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Which values are NaN or infinite, and which are NaN; bfloat16 is there as its bits."""
    if values.dtype == np.uint16:
        return (values & 0x7F80) == 0x7F80, (values & 0x7FFF) > 0x7F80
    return ~np.isfinite(values), np.isnan(values)


def _rows_with(column: _Rows, chosen: npt.NDArray[np.bool_]) -> list[int]:
    """Rows that have a chosen value."""
    places = np.flatnonzero(chosen.reshape(len(chosen), -1).any(axis=1))
    rows: list[int] = np.unique(np.searchsorted(column.bounds, places, side="right") - 1).tolist()
    return rows


def _bounds(sizes: Indices) -> Indices:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()

"""Outputs of the rows of one shard: taken from padded batches, put in their places, and made into Arrow columns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from raybrew.signals import LOGITS, PAIR_KINDS, Signal
from raybrew.store.elements import ELEMENT_TYPES, SCALE, element_type_of, to_int8, torch_dtype
from raybrew.store.layout import HEADS

__all__ = ["Collected", "Kept", "Problem", "keep", "parts_of"]

Indices = npt.NDArray[np.int64]


def parts_of(signal: Signal, has_items: bool) -> str | None:
    """What of a row `signal` has numbers for: each of its `tokens`, `items` or `pairs`; None: the row as a whole."""
    if signal.kind in PAIR_KINDS:
        return "pairs"
    if signal.layer is not None:
        return "tokens"
    return "items" if signal == LOGITS and has_items else None


@dataclasses.dataclass(frozen=True)
class Kept:
    """One signal of one batch in its element type, perhaps still on its way from the device.

    `extremes` are smallest and largest of what is kept and of what the teacher gave: they show every NaN and infinity,
    at a tenth of the cost of counting these.
    """

    values: Tensor
    scales: Tensor | None
    extremes: Tensor


def keep(output: Tensor, parts: str | None, flat: Tensor | None, pairs: Tensor | None, element_type: str) -> Kept:
    """`output` of a batch as it will be stored, on the host, without padding but for pairs.

    `flat`: places of the real tokens or items in (batch * length); `pairs` (batch, 1, length, length): real pairs.
    """
    if parts == "pairs":
        assert pairs is not None
        output = output.masked_fill(~pairs, 0.0)
        shared: tuple[int, ...] = (1, 3)
    else:
        if flat is not None:
            output = output.flatten(0, 1).index_select(0, flat)
        shared = (1,)
    scales = None
    if element_type == "int8":
        values, scales = to_int8(output, shared)
        kept_bounds = scales.aminmax()
    else:
        values = output.to(torch_dtype(element_type))
        kept_bounds = values.aminmax()
    extremes = torch.stack([bound.float() for bound in (*kept_bounds, *output.aminmax())])
    return Kept(
        values.to("cpu", non_blocking=True),
        None if scales is None else scales.to("cpu", non_blocking=True),
        extremes,
    )


@dataclasses.dataclass(frozen=True)
class Problem:
    """Values of one signal that cannot be stored: what to say of all of them, and the reason for each row."""

    text: str
    reasons: dict[int, str]


class _Column:
    """The values of one signal of a shard. `bounds` say where those of each row begin and end."""

    def __init__(self, bounds: Indices, scale_bounds: Indices, element_type: str) -> None:
        self.bounds = bounds
        self.scale_bounds = scale_bounds
        self.element_type = element_type
        self.values: npt.NDArray[Any] | None = None
        self.scales: npt.NDArray[np.float32] | None = None

    def room(self, item: tuple[int, ...], dtype: np.dtype[Any], scaled: bool) -> None:
        """Allocate all rows at the first batch. Zeros, for rows that never come."""
        if self.values is None:
            self.values = np.zeros((int(self.bounds[-1]), *item), dtype)
            if scaled:
                self.scales = np.zeros(int(self.scale_bounds[-1]), np.float32)

    def clear(self, row: int) -> None:
        """Zeros for a row that cannot be stored."""
        if self.values is not None:
            self.values[self.bounds[row] : self.bounds[row + 1]] = 0
        if self.scales is not None:
            self.scales[self.scale_bounds[row] : self.scale_bounds[row + 1]] = 0.0


class Collected:
    """Outputs of a shard, put in their places batch by batch.

    `lengths`: for each list column of the examples (`input_ids`, perhaps `items`) its length in every row.
    """

    def __init__(
        self, lengths: Mapping[str, npt.NDArray[np.int32]], request: tuple[Signal, ...], element_type: str
    ) -> None:
        self._tokens = lengths["input_ids"].astype(np.int64)
        self._bounds: dict[str | None, Indices] = {
            None: np.arange(len(self._tokens) + 1, dtype=np.int64),
            "tokens": _bounds(self._tokens),
        }
        if "items" in lengths:
            self._bounds["items"] = _bounds(lengths["items"].astype(np.int64))
        self._request = request
        self._element_type = element_type
        self._columns: dict[Signal, _Column] = {}
        self._heads: dict[Signal, int] = {}
        self._extremes: dict[Signal, list[tuple[Indices, Tensor]]] = {signal: [] for signal in request}

    def add(self, rows: Indices, real: Mapping[str, npt.NDArray[np.bool_]], kept: Mapping[Signal, Kept]) -> None:
        """Outputs of `rows`; `real` masks what is no padding, (rows, longest), of tokens and items."""
        places = {
            name: (self._bounds[name][rows][:, None] + np.arange(mask.shape[1]))[mask] for name, mask in real.items()
        }
        for signal, part in kept.items():
            values = _array(part.values)
            parts = parts_of(signal, "items" in self._bounds)
            column = self._column(signal, parts, values)
            assert column.values is not None
            if parts == "pairs":
                self._add_pairs(column, rows, values, part.scales)
            else:
                here = rows if parts is None else places[parts]
                column.values[here] = values
                if column.scales is not None and part.scales is not None:
                    column.scales[here] = part.scales.numpy()
            self._extremes[signal].append((rows, part.extremes))

    def _add_pairs(self, column: _Column, rows: Indices, values: npt.NDArray[Any], scales: Tensor | None) -> None:
        assert column.values is not None
        for place, row in enumerate(rows.tolist()):
            size = int(self._tokens[row])
            target = column.values[column.bounds[row] : column.bounds[row + 1]]
            target.reshape(values.shape[1], size, size)[...] = values[place, :, :size, :size]
            if column.scales is not None and scales is not None:
                column.scales[column.scale_bounds[row] : column.scale_bounds[row + 1]] = scales[place, :size].numpy()

    def _column(self, signal: Signal, parts: str | None, values: npt.NDArray[Any]) -> _Column:
        if signal not in self._columns:
            element_type = element_type_of(signal, self._element_type)
            if parts == "pairs":
                self._heads[signal] = values.shape[1]
                bounds, scale_bounds = _bounds(values.shape[1] * self._tokens**2), self._bounds["tokens"]
            else:
                bounds = scale_bounds = self._bounds[parts]
            self._columns[signal] = _Column(bounds, scale_bounds, element_type)
            item = () if parts == "pairs" else (values.shape[-1],)
            self._columns[signal].room(item, values.dtype, element_type == "int8")
        return self._columns[signal]

    def lacks_all(self) -> bool:
        """Whether not a single row has come, so that not even the width of the signals is known."""
        return not self._columns

    def shape_like(self, kept: Mapping[Signal, Kept]) -> None:
        """Take the widths of these outputs, and nothing else: all rows become zeros."""
        for signal, part in kept.items():
            self._column(signal, parts_of(signal, "items" in self._bounds), _array(part.values))

    def problems(self) -> dict[Signal, Problem]:
        """Values that are NaN or infinite, or became so in their element type. They are zero afterwards."""
        problems = {}
        for signal in self._request:
            bounds = [extremes for _, extremes in self._extremes[signal]]
            if not bounds:
                continue
            finite = torch.isfinite(torch.stack(bounds))
            if not bool(finite.all()):
                teacher_is_finite = bool(finite[:, 2:].all())
                overflown = [
                    rows
                    for (rows, _), batch in zip(self._extremes[signal], finite, strict=True)
                    if bool(batch[2:].all())
                ]
                rows = np.concatenate(overflown) if overflown else np.empty(0, np.int64)
                problems[signal] = _problem(signal, self._columns[signal], teacher_is_finite, set(rows.tolist()))
        return problems

    def tables(self) -> dict[Signal, pa.Table]:
        """One table of one column (and that of the scales) for each signal."""
        tables = {}
        for signal in self._request:
            column, parts = self._columns[signal], parts_of(signal, "items" in self._bounds)
            assert column.values is not None
            kind = ELEMENT_TYPES[column.element_type]
            values = pa.array(column.values.reshape(-1), kind)
            if parts != "pairs":
                values = pa.FixedSizeListArray.from_arrays(values, column.values.shape[-1])
            if parts is not None:
                values = pa.LargeListArray.from_arrays(pa.array(column.bounds, pa.int64()), values)
            arrays = {signal.kind: values}
            if column.scales is not None:
                scales = pa.array(column.scales, pa.float32())
                if parts is not None:
                    scales = pa.LargeListArray.from_arrays(pa.array(column.scale_bounds, pa.int64()), scales)
                arrays[SCALE] = scales
            table = pa.table(arrays)
            if parts == "pairs":
                table = table.replace_schema_metadata({HEADS: str(self._heads[signal])})
            tables[signal] = table
        return tables


def _problem(signal: Signal, column: _Column, teacher_is_finite: bool, overflown: set[int]) -> Problem:
    assert column.values is not None
    kept = column.element_type
    if column.scales is not None:
        bad, total, bounds = ~np.isfinite(column.scales), column.scales.size, column.scale_bounds
        nan = np.isnan(column.scales)
        what = "vectors"
    else:
        values = column.values
        if values.dtype == np.uint16:
            bad, nan = (values & 0x7F80) == 0x7F80, (values & 0x7FFF) > 0x7F80
        else:
            bad, nan = ~np.isfinite(values), np.isnan(values)
        total, bounds, what = values.size, column.bounds, "values"
    count = int(bad.sum())
    items = bad.reshape(len(bad), -1)
    places = np.flatnonzero(items.any(axis=1))
    nan_places = np.flatnonzero(nan.reshape(len(nan), -1).any(axis=1))
    rows = np.unique(np.searchsorted(bounds, places, side="right") - 1).tolist()
    nan_rows = set((np.searchsorted(bounds, nan_places, side="right") - 1).tolist())
    reasons = {}
    for row in rows:
        if row in nan_rows:
            reasons[row] = f"{signal}: the teacher gives NaN"
        elif row in overflown:
            reasons[row] = f"{signal}: overflows {kept}"
        else:
            # Another row of its batch may be the one for which the teacher itself is not finite.
            reasons[row] = f"{signal}: overflows {kept}, or the teacher gives infinity"
        column.clear(row)
    if teacher_is_finite:
        wider = "float32" if kept == "bfloat16" else "bfloat16 or float32"
        text = f"{signal}: {count} of {total} {what} overflow {kept}; set store.element_type={wider}"
    else:
        text = f"{signal}: the teacher gives {count} of {total} {what} that are NaN or infinite"
    return Problem(text, reasons)


def _bounds(sizes: Indices) -> Indices:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()

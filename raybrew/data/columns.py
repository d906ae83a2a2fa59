"""Columns of memory-mapped Arrow tables, whose rows are gathered by numpy views.

`datasets` formatters are 20 to 70 times slower and widen float16.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raybrew.errors import DataError

__all__ = ["FlatColumn", "RaggedColumn", "item_shape"]


def item_shape(kind: pa.DataType) -> tuple[int, ...]:
    """Shape of one item of a column: of one token where rows are lists, else of one row."""
    ragged = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return _empty(kind.value_type if ragged else kind).shape[1:]


class RaggedColumn:
    """Rows of different lengths: list<T> or large_list<fixed_size_list<T>[dim]>; an item has shape () or (dim,)."""

    def __init__(self, kind: pa.DataType, chunks: Sequence[pa.Array]) -> None:
        self._offsets = [chunk.offsets.to_numpy(zero_copy_only=True) for chunk in chunks]
        self._values = [_view(chunk.values) for chunk in chunks]
        self._starts = _row_starts(chunks)
        empty = _empty(kind.value_type)
        self.dtype: np.dtype[Any] = empty.dtype
        self.item_shape: tuple[int, ...] = empty.shape[1:]

    def __len__(self) -> int:
        return int(self._starts[-1])

    @functools.cached_property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Items of every row, (rows,); made once, 4 bytes a row."""
        parts = [np.diff(offsets).astype(np.int32) for offsets in self._offsets]
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    def gather(self, indices: npt.ArrayLike) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32]]:
        """The items of the rows, one after the other: (sum of lengths, *item), and the lengths (n,)."""
        rows = list(self._rows(indices))
        lengths = np.fromiter((len(row) for row in rows), np.int32, len(rows))
        if not rows:
            return np.empty((0, *self.item_shape), self.dtype), lengths
        return np.concatenate(rows), lengths

    def gather_padded(
        self, indices: npt.ArrayLike, pad_value: float = 0, length: int | None = None
    ) -> npt.NDArray[Any]:
        """The rows side by side, (n, length, *item), filled up with `pad_value`; `length` defaults to the longest row.

        ValueError if a row is longer than `length`.
        """
        rows = list(self._rows(indices))
        longest = max((len(row) for row in rows), default=0)
        if length is None:
            length = longest
        elif longest > length:
            raise ValueError(f"a row has {longest} items, more than length={length}")
        out = np.empty((len(rows), length, *self.item_shape), self.dtype)
        for place, row in zip(out, rows, strict=True):
            place[: len(row)] = row
            place[len(row) :] = pad_value
        return out

    def gather_squares(self, indices: npt.ArrayLike, heads: int, length: int | None = None) -> npt.NDArray[Any]:
        """Rows of heads * n * n numbers as (rows, heads, length, length), zeros behind each n.

        `length` defaults to the largest n. ValueError if a row is no such square, or larger than `length`.
        """
        rows = list(self._rows(indices))
        sizes = [math.isqrt(len(row) // heads) for row in rows]
        if any(heads * size * size != len(row) for size, row in zip(sizes, rows, strict=True)):
            raise ValueError(f"a row does not consist of {heads} squares")
        longest = max(sizes, default=0)
        if length is None:
            length = longest
        elif longest > length:
            raise ValueError(f"a row is of {longest} items squared, more than length={length}")
        out = np.zeros((len(rows), heads, length, length), self.dtype)
        for place, row, size in zip(out, rows, sizes, strict=True):
            place[:, :size, :size] = row.reshape(heads, size, size)
        return out

    def _rows(self, indices: npt.ArrayLike) -> Iterator[npt.NDArray[Any]]:
        """Views of the mapped files; a copy per row is as fast as index arithmetic and reads each page once."""
        chunks, locals_ = _locate(self._starts, indices)
        offsets, values = self._offsets, self._values
        for chunk, local in zip(chunks.tolist(), locals_.tolist(), strict=True):
            bounds = offsets[chunk]
            yield values[chunk][bounds[local] : bounds[local + 1]]


class FlatColumn:
    """Rows of one size: numbers (shape ()), fixed_size_binary(n) (n bytes), fixed_size_list<T>[n] (n numbers)."""

    def __init__(self, kind: pa.DataType, chunks: Sequence[pa.Array]) -> None:
        self._values = [_view(chunk) for chunk in chunks]
        self._starts = _row_starts(chunks)
        empty = _empty(kind)
        self.dtype: np.dtype[Any] = empty.dtype
        self.item_shape: tuple[int, ...] = empty.shape[1:]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def gather(self, indices: npt.ArrayLike) -> npt.NDArray[Any]:
        """Values of the rows, (n, *item)."""
        chunks, locals_ = _locate(self._starts, indices)
        out = np.empty((len(chunks), *self.item_shape), self.dtype)
        for chunk in np.unique(chunks).tolist():
            here = chunks == chunk
            out[here] = self._values[chunk][locals_[here]]
        return out

    def only_chunk(self) -> npt.NDArray[Any]:
        """All rows as a view, (rows, *item), of a column in one piece; DataError otherwise."""
        if len(self._values) > 1:
            raise DataError(f"an Arrow column in {len(self._values)} pieces was to be in one")
        return self._values[0] if self._values else np.empty((0, *self.item_shape), self.dtype)

    def read(self) -> npt.NDArray[Any]:
        """A copy of all rows, (rows, *item)."""
        if not self._values:
            return np.empty((0, *self.item_shape), self.dtype)
        return np.concatenate(self._values)


def _view(array: pa.Array) -> npt.NDArray[Any]:
    """Zero-copy numpy view of an Arrow array without nulls, (rows, *item)."""
    if array.null_count:
        raise DataError(f"an Arrow column of type {array.type} holds nulls")
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        inner = array.values.slice(array.offset * size, len(array) * size)
        return np.asarray(inner.to_numpy(zero_copy_only=True)).reshape(-1, size)
    if pa.types.is_fixed_size_binary(array.type):
        size = array.type.byte_width
        raw = np.frombuffer(array.buffers()[1], np.uint8).reshape(-1, size)
        return raw[array.offset : array.offset + len(array)]
    if pa.types.is_primitive(array.type) and not pa.types.is_boolean(array.type):
        return np.asarray(array.to_numpy(zero_copy_only=True))
    raise DataError(f"an Arrow column of type {array.type} cannot be gathered")


def _empty(kind: pa.DataType) -> npt.NDArray[Any]:
    if pa.types.is_fixed_size_list(kind):
        return np.empty((0, kind.list_size), kind.value_type.to_pandas_dtype())
    if pa.types.is_fixed_size_binary(kind):
        return np.empty((0, kind.byte_width), np.uint8)
    if pa.types.is_primitive(kind) and not pa.types.is_boolean(kind):
        return np.empty(0, kind.to_pandas_dtype())
    raise DataError(f"an Arrow column of type {kind} cannot be gathered")


def _row_starts(chunks: Sequence[pa.Array]) -> npt.NDArray[np.int64]:
    return np.cumsum([0, *(len(chunk) for chunk in chunks)], dtype=np.int64)


def _locate(
    starts: npt.NDArray[np.int64], indices: npt.ArrayLike
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Chunk and row in the chunk for each index; IndexError beyond either end (negative ones too)."""
    wanted = np.asarray(indices, dtype=np.int64)
    if wanted.size and (wanted.min() < 0 or wanted.max() >= starts[-1]):
        raise IndexError(f"row {int(wanted.min())}..{int(wanted.max())} of {int(starts[-1])}")
    chunks = np.searchsorted(starts, wanted, side="right") - 1
    return chunks, wanted - starts[chunks]

"""Arrow shard files: written atomically with a hash, opened by `datasets.load_from_disk`, gathered from memory maps.

A folder of shards is `data-00000.arrow`, ... in the IPC stream format, `state.json` and `dataset_info.json`. Rows are
gathered by numpy views of the mapped files: `datasets` formatters are 20 to 70 times slower and widen float16.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from raybrew.data.tables import merged
from raybrew.errors import DataError
from raybrew.files import replacing, write_json

__all__ = [
    "ArrowFolder",
    "FlatColumn",
    "RaggedColumn",
    "ShardInfo",
    "folder_state",
    "hash_file",
    "item_shape",
    "shard_name",
    "table_bytes",
    "write_folder_state",
    "write_shard",
]

_COPY_BYTES = 1 << 22


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """A written shard: file name, rows, size in bytes and xxh3_128 of the file."""

    file: str
    rows: int
    bytes: int
    xxh3: str


def shard_name(index: int) -> str:
    """File name of shard `index`: data-00007.arrow."""
    return f"data-{index:05d}.arrow"


def hash_file(path: Path, algorithm: Callable[[], Any] = xxhash.xxh3_128) -> str:
    """Hash of the bytes of a file, in hex; `algorithm` makes an object such as those of hashlib."""
    digest = algorithm()
    with path.open("rb") as file:
        while block := file.read(_COPY_BYTES):
            digest.update(block)
    found: str = digest.hexdigest()
    return found


def write_shard(path: Path, table: pa.Table) -> ShardInfo:
    """Write `table` to `path` as one Arrow IPC stream, one record batch up to 1 GiB; the file appears whole or not.

    OSError (such as a full disk) leaves nothing behind.
    """
    table = merged(table)
    with replacing(path) as new, new.open("wb") as file:
        sink = _HashingSink(file)
        with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), table.schema) as writer:
            writer.write_table(table)
    return ShardInfo(path.name, table.num_rows, sink.bytes, sink.digest.hexdigest())


def table_bytes(table: pa.Table) -> bytes:
    """The content of a shard file of `table`, for small ones."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return bytes(sink.getvalue())


def write_folder_state(folder: Path, files: Sequence[str], fingerprint: str | None = None) -> None:
    """Write the two JSON files by which `datasets.load_from_disk` opens `folder`; `state.json` comes last.

    `fingerprint` names the content in caches of `datasets`; without one it is made of names, sizes and times of change.
    """
    if fingerprint is None:
        stats = [(name, (folder / name).stat()) for name in files]
        text = json.dumps([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])
        fingerprint = xxhash.xxh3_128_hexdigest(text.encode())
    for name, value in folder_state(files, fingerprint).items():
        write_json(folder / name, value)


def folder_state(files: Sequence[str], fingerprint: str) -> dict[str, dict[str, Any]]:
    """Names and values of the JSON files by which `datasets` opens a folder, in the order in which to write them.

    `fingerprint` names the content in caches of `datasets`.
    """
    state: dict[str, Any] = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    return {"dataset_info.json": {}, "state.json": state}


class ArrowFolder:
    """Shards of one folder as one table, memory-mapped; rows count through the shards in the order of the file list."""

    def __init__(self, folder: Path, files: tuple[str, ...], tables: tuple[pa.Table, ...]) -> None:
        self.folder = folder
        self.files = files
        self._tables = tables
        self._columns: dict[str, RaggedColumn | FlatColumn] = {}

    @classmethod
    def open(cls, folder: Path, files: Sequence[str] | None = None) -> ArrowFolder:
        """Map the shards in `files`, or those that `state.json` lists; DataError names a file that cannot be read."""
        names = tuple(_listed_files(folder) if files is None else files)
        if not names:
            raise DataError(f"{folder}: no shards are listed")
        tables = tuple(_map(folder / name) for name in names)
        for name, table in zip(names, tables, strict=True):
            if table.schema != tables[0].schema:
                raise DataError(f"{folder / name}: columns differ from those of {names[0]}")
        return cls(folder, names, tables)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return ArrowFolder.open, (self.folder, self.files)

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema, the same for all shards."""
        return self._tables[0].schema

    @property
    def num_rows(self) -> int:
        """Rows of all shards together."""
        return sum(table.num_rows for table in self._tables)

    def table(self) -> pa.Table:
        """All shards as one Arrow table of views."""
        return pa.concat_tables(self._tables)

    def column(self, name: str) -> RaggedColumn | FlatColumn:
        """Column `name`; DataError if there is none or its type is not one that can be gathered."""
        if name not in self._columns:
            if name not in self.schema.names:
                raise DataError(f"{self.folder}: no column {name!r}; columns: {', '.join(self.schema.names)}")
            chunks = [chunk for table in self._tables for chunk in table.column(name).chunks if len(chunk)]
            kind = self.schema.field(name).type
            if pa.types.is_list(kind) or pa.types.is_large_list(kind):
                self._columns[name] = RaggedColumn(kind, chunks)
            else:
                self._columns[name] = FlatColumn(kind, chunks)
        return self._columns[name]

    def ragged(self, name: str) -> RaggedColumn:
        """Column `name` of lists; DataError if it is of another kind."""
        column = self.column(name)
        if not isinstance(column, RaggedColumn):
            raise DataError(f"{self.folder}: column {name!r} holds no lists")
        return column

    def flat(self, name: str) -> FlatColumn:
        """Column `name` of values of one size; DataError if it is of another kind."""
        column = self.column(name)
        if not isinstance(column, FlatColumn):
            raise DataError(f"{self.folder}: column {name!r} holds lists")
        return column


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


class _HashingSink:
    """The few methods that Arrow asks of a Python file, hashing what passes through."""

    def __init__(self, file: IO[bytes]) -> None:
        self.digest = xxhash.xxh3_128()
        self.bytes = 0
        self.closed = False
        self._file = file

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._file.write(view)
        self.digest.update(view)
        self.bytes += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        # The caller closes the real file.
        self.closed = True


def _listed_files(folder: Path) -> list[str]:
    path = folder / "state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except FileNotFoundError:
        raise DataError(f"{path}: missing, so {folder} holds no finished Arrow shards") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not the state file of Arrow shards ({error})") from error
    for name in names:
        if Path(name).name != name:
            raise DataError(f"{path}: {name!r} leads out of the folder")
    return names


def _map(path: Path) -> pa.Table:
    try:
        # Closing the file frees its descriptor; the mapping lives as long as the table.
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
            return stream.read_all()
    except FileNotFoundError:
        raise DataError(f"{path}: missing") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: no readable Arrow stream ({error})") from error


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

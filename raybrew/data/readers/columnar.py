"""Rows of Parquet and Arrow files and of datasets of the `datasets` library, read by column in batches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raybrew.config.rows import class_names
from raybrew.data.readers.records import BadRow, Record, first_line, not_utf8, require_columns
from raybrew.errors import DataError

__all__ = ["ArrowFile", "DatasetRows", "ParquetFile"]

_BATCH_ROWS = 8192
_ARROW_FILE_MARK = b"ARROW1"
#: Types of text -> the types of bytes that are laid out alike.
_TEXT_TYPES: tuple[tuple[Callable[[pa.DataType], bool], pa.DataType], ...] = (
    (pa.types.is_string, pa.binary()),
    (pa.types.is_large_string, pa.large_binary()),
    (pa.types.is_string_view, pa.binary_view()),
)


class ParquetFile:
    """A Parquet file; only the wanted columns are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)

    def label_names(self, column: str) -> tuple[str, ...] | None:
        """Class names that `datasets` left in the file's metadata."""
        return class_names(_guarded(self.name, lambda: pq.read_schema(self.path)), column)

    def rows(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Record]:
        """See `raybrew.data.readers.records.RowReader`."""
        file = _guarded(self.name, lambda: pq.ParquetFile(self.path))
        names = _guarded(self.name, lambda: file.schema_arrow.names)
        require_columns(self.name, names, columns)
        columns = _with_optional(columns, optional, names)
        with file:
            yield from _records(self.name, file.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns)), columns)


class ArrowFile:
    """An Arrow IPC file or stream, memory-mapped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)

    def label_names(self, column: str) -> tuple[str, ...] | None:
        """Class names that `datasets` left in the file's metadata."""
        with _guarded(self.name, self._open) as reader:
            return class_names(reader.schema, column)

    def rows(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Record]:
        """See `raybrew.data.readers.records.RowReader`."""
        with _guarded(self.name, self._open) as reader:
            names = _guarded(self.name, lambda: reader.schema.names)
            require_columns(self.name, names, columns)
            columns = _with_optional(columns, optional, names)
            if isinstance(reader, pa.RecordBatchFileReader):
                batches: Iterable[Any] = map(reader.get_batch, range(reader.num_record_batches))
            else:
                batches = reader
            yield from _records(self.name, (batch.select(list(columns)) for batch in batches), columns)

    def _open(self) -> Any:
        source = pa.memory_map(str(self.path))
        mark = source.read(len(_ARROW_FILE_MARK))
        source.seek(0)
        return pa.ipc.open_file(source) if mark == _ARROW_FILE_MARK else pa.ipc.open_stream(source)


class DatasetRows:
    """A `datasets.Dataset`, loaded on first use."""

    def __init__(self, name: str, load: Callable[[], Any]) -> None:
        self.name = name
        self._load = load

    @functools.cached_property
    def dataset(self) -> Any:
        """The dataset itself."""
        return self._load()

    def label_names(self, column: str) -> tuple[str, ...] | None:
        """Names of the ClassLabel feature `column`, or of the list of them that it is."""
        import datasets

        feature = self.dataset.features.get(column)
        feature = getattr(feature, "feature", feature)
        return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None

    def rows(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Record]:
        """See `raybrew.data.readers.records.RowReader`."""
        require_columns(self.name, self.dataset.column_names, columns)
        columns = _with_optional(columns, optional, self.dataset.column_names)
        tables = self.dataset.select_columns(list(columns)).with_format("arrow").iter(batch_size=_BATCH_ROWS)
        yield from _records(self.name, tables, columns)


def _with_optional(columns: Sequence[str], optional: Sequence[str], has: Sequence[str]) -> list[str]:
    return [*columns, *(column for column in optional if column in has and column not in columns)]


def _records(name: str, tables: Iterable[pa.Table | pa.RecordBatch], columns: Sequence[str]) -> Iterator[Record]:
    row = 0
    tables = iter(tables)
    while (table := _guarded(name, lambda: next(tables, None))) is not None:
        for column in columns:
            _guarded(name, functools.partial(_check_layout, table.column(column)))
        # A batch with one undecodable value is read again leniently, and that row is reported.
        values, is_utf8 = _guarded(name, functools.partial(_python_values, table, columns))
        for cells in zip(*values, strict=True):
            row += 1
            raw = dict(zip(columns, cells, strict=True))
            bad, reason = (None, "") if is_utf8 else not_utf8(raw)
            yield row, None, raw if bad is None else BadRow(name, row, bad, reason)
    if not row:
        raise DataError(f"{name}: no rows")


def _check_layout(column: pa.Array | pa.ChunkedArray) -> None:
    """ArrowInvalid if offsets or indices lead out of the values: Arrow reads where they point, without a look."""
    for array in column.chunks if isinstance(column, pa.ChunkedArray) else (column,):
        try:
            array.validate(full=True)
        except pa.ArrowInvalid:
            # Text that is not UTF-8 is a bad row rather than a damaged file.
            _bytes_of(array).validate(full=True)


def _bytes_of(array: pa.Array) -> pa.Array:
    """A view of `array` whose texts are bytes."""
    if pa.types.is_dictionary(array.type):
        return pa.DictionaryArray.from_arrays(array.indices, _bytes_of(array.dictionary), safe=False)
    return array.view(_bytes_type(array.type))


def _bytes_type(kind: pa.DataType) -> pa.DataType:
    for is_kind, replaced in _TEXT_TYPES:
        if is_kind(kind):
            return replaced
    if pa.types.is_list(kind):
        return pa.list_(_bytes_type(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_bytes_type(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_bytes_type(kind.value_type), kind.list_size)
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _bytes_type(field.type), field.nullable) for field in kind])
    return kind


def _python_values(table: pa.Table | pa.RecordBatch, columns: Sequence[str]) -> tuple[list[list[Any]], bool]:
    try:
        values = [table.column(column).to_pylist() for column in columns]
        if not any(_is_binary(table.schema.field(column).type) for column in columns):
            return values, True
    except UnicodeDecodeError:
        pass
    return [[_text(value) for value in _lenient(table.column(column))] for column in columns], False


def _lenient(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else (column,)
    return [value for chunk in chunks for value in _bytes_of(chunk).to_pylist()]


def _is_binary(kind: pa.DataType) -> bool:
    """Some writers of Parquet leave out that their bytes are text."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _text(value: Any) -> Any:
    """Bytes as text, those that are none as U+DC80..U+DCFF, in lists and mappings too."""
    if isinstance(value, dict):
        return {name: _text(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_text(item) for item in value]
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value


def _guarded(name: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # names of columns may be undecodable
        raise DataError(f"{name}: damaged or of another format ({first_line(error)})") from error

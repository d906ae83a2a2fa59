"""Rows given in Python: written once to an Arrow file whose name is a hash of what they hold.

The same rows have the same name whatever holds them, and in whatever order their columns are: integers are hashed as
int64, numbers as float64, text as UTF-8, categories as their values. Names of classes (`datasets.ClassLabel`) count.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from raybrew.config.problems import shown
from raybrew.errors import DataError, EnvironmentProblem, first_line
from raybrew.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Rows", "class_names", "table_name"]

_NAME = re.compile(r"table-[0-9a-f]{32}\.arrow")
_BATCH_ROWS = 8192
_CONTAINERS = ("datasets.Dataset", "pandas.DataFrame", "pyarrow.Table")


def table_name(text: Any) -> str | None:
    """The name of the file of rows that were given in Python, if `text` is the path of one."""
    name = PurePath(text).name if isinstance(text, str) else ""
    return name if _NAME.fullmatch(name) else None


def class_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """Names of the classes of `column`, or of the lists in it, that `datasets` left in the metadata."""
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]
        feature = feature.get("feature", feature)
        if feature["_type"] == "ClassLabel":
            return tuple(str(name) for name in feature["names"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):
        pass
    return None


class Rows:
    """Rows that lie in no file yet."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rows) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)

    def __repr__(self) -> str:
        return f"<{len(self.value)} rows in a {type(self.value).__name__}>"

    @classmethod
    def of(cls, value: Any) -> Any:
        """`value` as rows if it holds such, else as it is."""
        is_list = isinstance(value, list) and all(isinstance(row, dict) for row in value)
        return cls(value) if is_list or _container(value) is not None else value

    def write(self, folder: Path, key: str) -> Path:
        """The file of these rows in `folder`, written unless it is there.

        DataError, which names `key`, if there are none or a column holds values of several types; EnvironmentProblem
        if the file cannot be written.
        """
        import pyarrow as pa

        batches = _Batches(self.value, key)
        path = folder / f"table-{batches.content_hash()}.arrow"
        if path.is_file():
            return path
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as new, pa.ipc.new_stream(str(new), batches.schema) as stream:
                for batch in batches:
                    stream.write_table(batch)
        except OSError as error:
            raise EnvironmentProblem(
                f"cannot write the rows of {key} to {folder.absolute()}: {first_line(error)}; data.cache names another "
                "folder"
            ) from error
        return path


class _Batches:
    """Rows of any container as tables of equal schema and number of rows; a dataset is never in memory as a whole."""

    def __init__(self, value: Any, key: str) -> None:
        import pyarrow as pa

        self._key = key
        self._num_rows = len(value)
        if not self._num_rows:
            raise DataError(f"{key}: no rows")
        is_ready = isinstance(value, pa.Table) or _container(value) == "datasets.Dataset"
        self._source = value if is_ready else _table(value, key)
        schema = self._source.schema if isinstance(self._source, pa.Table) else value.features.arrow_schema
        self._names = {name: names for name in sorted(schema.names) if (names := class_names(schema, name)) is not None}
        self._order = sorted(range(len(schema)), key=lambda index: schema.names[index])
        fields = [pa.field(schema.names[index], _plain_type(schema.types[index])) for index in self._order]
        named = {name: {"_type": "ClassLabel", "names": names} for name, names in self._names.items()}
        kept = {"huggingface": json.dumps({"info": {"features": named}})} if named else None
        self.schema = pa.schema(fields, metadata=kept)

    def __iter__(self) -> Iterator[pa.Table]:
        import pyarrow as pa

        for part in self._parts():
            columns = []
            for index, field in zip(self._order, self.schema, strict=True):
                try:
                    columns.append(part.column(index).combine_chunks().cast(field.type))
                except pa.ArrowException as error:
                    raise DataError(f"{self._key}: column {field.name!r}: {first_line(error)}") from error
            yield pa.table(columns, schema=self.schema)

    def _parts(self) -> Iterator[pa.Table]:
        if _container(self._source) == "datasets.Dataset":
            found: Iterator[pa.Table] = self._source.with_format("arrow").iter(batch_size=_BATCH_ROWS)
            return found
        return (self._source.slice(start, _BATCH_ROWS) for start in range(0, self._num_rows, _BATCH_ROWS))

    def content_hash(self) -> str:
        """32 hex digits of names, types and values."""
        import pyarrow as pa
        import xxhash

        columns = [xxhash.xxh3_128() for _ in self.schema]
        given = [False for _ in self.schema]
        for batch in self:
            for index, column in enumerate(batch.columns):
                array = column.combine_chunks()
                for chunk in array.chunks if isinstance(array, pa.ChunkedArray) else [array]:
                    given[index] |= chunk.null_count < len(chunk)
                    _feed(columns[index], chunk)
        # What is null throughout has another type in each container.
        described = [
            [field.name, *([_type_text(field.type), digest.hexdigest()] if has else [])]
            for field, has, digest in zip(self.schema, given, columns, strict=True)
        ]
        return xxhash.xxh3_128_hexdigest(json.dumps([self._num_rows, described, self._names], sort_keys=True).encode())


def _container(value: Any) -> str | None:
    """Which of the known containers `value` is, without importing any of their packages."""
    names = [f"{base.__module__.partition('.')[0]}.{base.__name__}" for base in type(value).__mro__]
    return next((name for name in names if name in _CONTAINERS), None)


def _table(value: Any, key: str) -> pa.Table:
    """A list of dicts or a pandas table as an Arrow table; a key that a dict lacks is null."""
    import pyarrow as pa

    if isinstance(value, list):
        names: list[Any] = list(dict.fromkeys(name for row in value for name in row))
        columns: Any = ([row.get(name) for row in value] for name in names)
    else:
        names, columns = list(value.columns), (value.iloc[:, index] for index in range(value.shape[1]))
    arrays = [_array(column, key, name) for name, column in zip(names, columns, strict=True)]
    return pa.table(arrays, [str(name) for name in names])


def _array(values: Any, key: str, name: Any) -> Any:
    import pyarrow as pa

    refused = (pa.ArrowException, TypeError, ValueError, OverflowError)
    try:
        return pa.array(values, from_pandas=True)
    except refused as error:
        first: Any = None
        for number, value in enumerate(values, start=1):
            try:
                pa.array([first, value], from_pandas=True)
            except refused:
                before = "" if first is None else f", where rows before hold such as {shown(first)}"
                raise DataError(f"{key}, row {number}, column {name!r}: given {shown(value)}{before}") from error
            is_blank = isinstance(value, float) and math.isnan(value)
            first = value if first is None and not is_blank else first
        raise DataError(f"{key}: column {name!r}: {first_line(error)}") from error


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The one type that stands for all which hold the same values."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if types.is_integer(kind):
        return pa.int64()
    if types.is_floating(kind):
        return pa.float64()
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    if types.is_struct(kind):
        return pa.struct([pa.field(field.name, _plain_type(field.type)) for field in kind])
    return kind


def _type_text(kind: pa.DataType) -> str:
    import pyarrow as pa

    if pa.types.is_list(kind):
        return f"list<{_type_text(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return f"struct<{sorted((field.name, _type_text(field.type)) for field in kind)}>"
    return str(kind)


def _feed(digest: Any, array: pa.Array) -> None:
    """Hash the values of an array, whatever lies in memory where it is null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind, types = array.type, pa.types
    digest.update(array.is_valid().to_numpy(zero_copy_only=False).tobytes())
    if types.is_list(kind):
        digest.update(pc.fill_null(pc.list_value_length(array), 0).to_numpy().tobytes())
        _feed(digest, array.flatten())
    elif types.is_struct(kind):
        for name in sorted(field.name for field in kind):
            _feed(digest, pc.struct_field(array, name))
    elif types.is_string(kind) or types.is_binary(kind):
        digest.update(pc.fill_null(pc.binary_length(array), 0).to_numpy().tobytes())
        digest.update(b"".join(array.view(pa.binary()).drop_null().to_pylist()))
    elif types.is_int64(kind) or types.is_float64(kind) or types.is_boolean(kind):
        digest.update(
            pc.fill_null(array, False if types.is_boolean(kind) else 0).to_numpy(zero_copy_only=False).tobytes()
        )
    elif not types.is_null(kind):
        digest.update(json.dumps(array.to_pylist(), default=str).encode())

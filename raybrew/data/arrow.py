"""Arrow shard files: written atomically with a hash, opened by `datasets.load_from_disk`, gathered from memory maps.

A folder of shards is `data-00000.arrow`, ... in the IPC stream format, `state.json` and `dataset_info.json`.
Their columns are those of `raybrew.data.columns`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import xxhash

from raybrew.data.columns import FlatColumn, RaggedColumn
from raybrew.data.tables import merged
from raybrew.errors import DataError
from raybrew.files import replacing, write_json

__all__ = [
    "ArrowFolder",
    "ShardInfo",
    "folder_state",
    "hash_file",
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

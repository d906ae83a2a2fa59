"""Units as token ids in a folder of Arrow shards: written once for a tokenizer and its settings, then memory-mapped.

What a unit is says the task (`raybrew.tasks.base`); for most it is a row, and the word row is used for both here.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from raybrew.data.arrow import ArrowFolder, ShardInfo, shard_name, write_folder_state, write_shard
from raybrew.data.columns import FlatColumn
from raybrew.data.hashes import changed_files
from raybrew.data.readers.records import first_line
from raybrew.data.rows import RowSet, row_ids, rows_fingerprint
from raybrew.data.tokenizers import gives_types, hash_of, piece_fingerprint, tokenizer_fingerprint, with_types
from raybrew.errors import DataError, EnvironmentProblem
from raybrew.files import write_json
from raybrew.tasks.base import Task

__all__ = ["TEACHER_TYPES", "EncodedRows", "encode_rows", "open_encoded", "piece_fingerprint", "tokenizer_fingerprint"]

_MARKER = "encoded.json"
_FORMAT = 3
_BATCH_ROWS = 1024
_SHARD_ROWS = 1 << 16
_SHARD_TOKENS = 1 << 23
#: The source rows, for tasks whose metrics need them.
_SOURCE = "rows.arrow"
#: Column and batch entry of token types that teachers read and the student does not.
TEACHER_TYPES = "teacher_token_type_ids"
#: Arrow type of each token column. The last is for teachers of a model that has no token types itself.
_TOKEN_TYPES = {
    "input_ids": pa.list_(pa.int32()),
    "token_type_ids": pa.list_(pa.int8()),
    TEACHER_TYPES: pa.list_(pa.int8()),
}
#: Arrow type of what else `encode` of a task may give. `spans`: characters (from, to) of each item;
#: `begins`: 1 where a token begins a word.
_OTHER_TYPES = {
    "items": pa.list_(pa.int32()),
    "spans": pa.list_(pa.list_(pa.int32(), 2)),
    "begins": pa.list_(pa.int8()),
}
#: What stands in a batch where a row has fewer numbers than another.
_PADDING = {"items": 0, "label": -1}


class EncodedRows:
    """Encoded rows of one folder, in the order they were given. Shards are mapped on first use.

    Small to pickle; the process that gets them checks its folder as `open_encoded` does.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self.key = key

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return open_encoded, (self.folder,)

    def __len__(self) -> int:
        return self.num_rows

    @functools.cached_property
    def arrow(self) -> ArrowFolder:
        """The shards as one table."""
        return ArrowFolder.open(self.folder)

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self.arrow.num_rows

    @property
    def num_source_rows(self) -> int:
        """Number of source rows, of which some may have several units."""
        if "row" not in self.arrow.schema.names:
            return self.num_rows
        return int(self.arrow.flat("row").gather([self.num_rows - 1])[0]) + 1

    @functools.cached_property
    def token_columns(self) -> tuple[str, ...]:
        """`input_ids`, and `token_type_ids` if the model has them, or else those of its teachers if these have them."""
        return tuple(name for name in _TOKEN_TYPES if name in self.arrow.schema.names)

    @property
    def ids(self) -> npt.NDArray[np.uint8]:
        """Example ids, (rows, 16); a copy."""
        return self.arrow.flat("id").read()

    def names(self, rows: npt.ArrayLike) -> list[str]:
        """Ids of the examples of these rows, in hex."""
        return [each.tobytes().hex() for each in self.arrow.flat("id").gather(rows)]

    @functools.cached_property
    def rows(self) -> pa.Table | None:
        """The source rows, where the task's metrics need them."""
        path = self.folder / _SOURCE
        return ArrowFolder.open(self.folder, [_SOURCE]).table() if path.is_file() else None

    @functools.cached_property
    def labels(self) -> Any:
        """Labels as `values("label")` gives them; made once."""
        return self.values("label")

    def values(self, name: str) -> Any:
        """A copy of column `name`: (rows, ...), or a list of one array per row where lengths differ."""
        column = self.arrow.column(name)
        if isinstance(column, FlatColumn):
            return column.read()
        flat, lengths = column.gather(np.arange(len(column)))
        return np.split(flat, np.cumsum(lengths)[:-1])

    def spans(self, indices: npt.ArrayLike) -> list[npt.NDArray[np.int64]]:
        """Characters (items, 2) of the items of each row, for tasks that have such."""
        flat, lengths = self.arrow.ragged("spans").gather(np.asarray(indices, dtype=np.int64))
        return np.split(flat.reshape(-1, 2).astype(np.int64), np.cumsum(lengths)[:-1])

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each row, (rows,)."""
        return self.arrow.ragged("input_ids").lengths

    def gather(self, indices: npt.ArrayLike) -> dict[str, tuple[npt.NDArray[Any], npt.NDArray[np.int32]]]:
        """Token columns of the rows without padding: name -> (flat values, lengths)."""
        return {name: self.arrow.ragged(name).gather(indices) for name in self.token_columns}

    def gather_padded(
        self, indices: npt.ArrayLike, pad_token_id: int, length: int | None = None
    ) -> dict[str, npt.NDArray[np.int64]]:
        """Token columns and `attention_mask` of the rows, (rows, length) int64, padded on the right.

        `length` defaults to that of the longest row.
        """
        rows = np.asarray(indices, dtype=np.int64)
        batch: dict[str, npt.NDArray[np.int64]] = {}
        for name in self.token_columns:
            padded = self.arrow.ragged(name).gather_padded(rows, pad_token_id if name == "input_ids" else 0, length)
            batch[name] = padded.astype(np.int64)
        width = batch["input_ids"].shape[1]
        batch["attention_mask"] = (np.arange(width) < self.lengths[rows, None]).astype(np.int64)
        return batch

    def targets(self, indices: npt.ArrayLike) -> dict[str, npt.NDArray[Any]]:
        """What losses need of the rows: `labels` (int64 or float32), and `items` with `item_mask` if there are items.

        Labels have the shape (rows,), (rows, numbers) or, one per item, (rows, most items) filled up with -1. `items`
        (rows, most items) int64 are positions of tokens, `item_mask` (float32) is 0 where a row has fewer.
        """
        rows = np.asarray(indices, dtype=np.int64)
        labels = self._padded("label", rows)
        batch = {"labels": labels.astype(np.int64) if np.issubdtype(labels.dtype, np.integer) else labels}
        if self._has_items:
            items = self._padded("items", rows)
            lengths = self.arrow.ragged("items").lengths[rows, None]
            batch["items"] = items.astype(np.int64)
            batch["item_mask"] = (np.arange(items.shape[1]) < lengths).astype(np.float32)
        return batch

    @functools.cached_property
    def _has_items(self) -> bool:
        return "items" in self.arrow.schema.names

    def _padded(self, name: str, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        column = self.arrow.column(name)
        return column.gather(rows) if isinstance(column, FlatColumn) else column.gather_padded(rows, _PADDING[name])


def encode_rows(
    rows: RowSet | pa.Table,
    task: Task,
    tokenizer: Any,
    folder: Path,
    progress: Callable[[int, int], None] | None = None,
    others: Sequence[Any] = (),
    alike: Sequence[Any] = (),
) -> EncodedRows:
    """The units of source rows in tokens, from `folder/<key>` if they are there, else computed and written there.

    Units are short enough for `tokenizer` and `others`. Where tokenizers of the same pieces (`alike`) give token types
    and `tokenizer` does not, these are kept for teachers. The key covers units, order, labels, tokenizer and the task's
    encode settings. Of several processes one computes, the others wait. `progress` is called with (rows done, rows).
    DataError for a row without tokens; EnvironmentProblem when the folder cannot be written.
    """
    source = rows.table if isinstance(rows, RowSet) else rows
    table = task.units(source, (tokenizer, *others))
    kept = source if task.keeps_rows else None
    inputs = _inputs(table, task, tokenizer, kept)
    if any(map(gives_types, alike)) and not gives_types(tokenizer):
        inputs[TEACHER_TYPES] = True
        tokenizer = with_types(tokenizer)
    key = hash_of(inputs)
    target = folder / key
    if _is_whole(target, key):
        return EncodedRows(target, key)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f"{key}.lock"):
            if not _is_whole(target, key):
                _write(table, kept, task, tokenizer, target, {"key": key, "inputs": inputs}, progress)
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write encoded rows to {target.absolute()}: {first_line(error)}; data.cache names another folder"
        ) from error
    return EncodedRows(target, key)


def open_encoded(folder: Path) -> EncodedRows:
    """Encoded rows that `encode_rows` wrote; DataError if the folder is not whole."""
    if not _is_whole(folder, folder.name):
        raise DataError(f"{folder.absolute()}: no complete folder of encoded rows")
    return EncodedRows(folder, folder.name)


def _inputs(table: pa.Table, task: Task, tokenizer: Any, source: pa.Table | None) -> dict[str, Any]:
    beside = [name for name in table.column_names if name != "id" and name not in task.content_columns]
    return {
        "format": _FORMAT,
        "rows": rows_fingerprint(table),
        "order": xxhash.xxh3_128_hexdigest(np.ascontiguousarray(row_ids(table)).data),
        "labels": {name: _hash_column(table.column(name)) for name in beside},
        "source": None if source is None else {name: _hash_column(source.column(name)) for name in source.column_names},
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "encode": {"task": task.kind, **task.encode_settings()},
    }


def _hash_column(column: pa.ChunkedArray) -> str:
    """A hash of the values of a column, however they are cut into chunks."""
    digest = xxhash.xxh3_128(str(column.type).encode())
    for chunk in column.chunks:
        for start in range(0, len(chunk), _BATCH_ROWS):
            digest.update(repr(chunk.slice(start, _BATCH_ROWS).to_pylist())[1:-1].encode() + b", ")
    return digest.hexdigest()


def _is_whole(folder: Path, key: str) -> bool:
    """Whether the marker is there and every shard holds the bytes it names."""
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        wanted = {str(shard["file"]): str(shard["xxh3"]) for shard in marker["shards"]}
        return marker["key"] == key and not changed_files(folder, wanted)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _write(
    table: pa.Table,
    source: pa.Table | None,
    task: Task,
    tokenizer: Any,
    target: Path,
    marker: dict[str, Any],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Fill a folder under another name, marker last, and rename it. Called with the lock held."""
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        names = {"token_type_ids": TEACHER_TYPES} if TEACHER_TYPES in marker["inputs"] else {}
        shards = _write_shards(table, task, tokenizer, names, partial, progress)
        write_folder_state(partial, [shard.file for shard in shards], marker["key"])
        described = [dataclasses.asdict(shard) for shard in shards]
        if source is not None:
            described.append(dataclasses.asdict(write_shard(partial / _SOURCE, source)))
        write_json(partial / _MARKER, {**marker, "rows": table.num_rows, "shards": described})
        # What lies at the target was not whole. Without its marker first, a half-deleted folder could look so.
        (target / _MARKER).unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_shards(
    table: pa.Table,
    task: Task,
    tokenizer: Any,
    names: Mapping[str, str],
    folder: Path,
    progress: Callable[[int, int], None] | None,
) -> list[ShardInfo]:
    shards: list[ShardInfo] = []
    batches: list[pa.Table] = []
    tokens = rows = 0
    for start in range(0, table.num_rows, _BATCH_ROWS):
        batch = _encoded(table.slice(start, _BATCH_ROWS), task, tokenizer, names, start)
        batches.append(batch)
        rows += batch.num_rows
        tokens += len(batch.column("input_ids").combine_chunks().values)
        done = start + batch.num_rows
        if rows >= _SHARD_ROWS or tokens >= _SHARD_TOKENS or done == table.num_rows:
            shards.append(write_shard(folder / shard_name(len(shards)), pa.concat_tables(batches)))
            batches, tokens, rows = [], 0, 0
        if progress is not None:
            progress(done, table.num_rows)
    if not shards:
        raise DataError("there are no rows to encode")
    return shards


def _encoded(rows: pa.Table, task: Task, tokenizer: Any, names: Mapping[str, str], start: int) -> pa.Table:
    """Columns of units; those of `names` are kept under another name."""
    given = {name: rows.column(name).to_pylist() for name in rows.column_names if name != "id"}
    columns = {names.get(name, name): values for name, values in task.encode(tokenizer, given).items()}
    for index, tokens in enumerate(columns["input_ids"]):
        if not tokens:
            text = given[task.content_columns[0]][index]
            raise DataError(f"row {start + index + 1} of those in use has no tokens: {text[:80]!r}")
    arrays = {
        name: pa.array(columns[name], kind)
        for name, kind in {**_TOKEN_TYPES, **_OTHER_TYPES}.items()
        if name in columns
    }
    carried = {name: rows.column(name) for name in rows.column_names if name not in ("id", *task.content_columns)}
    if "label" in columns:
        carried["label"] = pa.array(columns["label"], rows.schema.field("label").type)
    return pa.table({"id": rows.column("id"), **arrays, **carried})

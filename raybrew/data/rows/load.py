"""Labelled and unlabelled rows of a source as one Arrow table, checked, with an id for each example."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raybrew.config.data import DataConfig
from raybrew.config.rows import table_name
from raybrew.data.readers.records import BadRow, MissingColumnsError
from raybrew.data.readers.sources import Source, open_source
from raybrew.data.rows.cache import kept_rows
from raybrew.data.rows.labels import Labeller, NoLabel
from raybrew.data.rows.places import Split, resolved_source, source_of
from raybrew.data.rows.row_set import ID_BYTES, RowSet, in_share, row_ids, subset_indices
from raybrew.data.tables import merged, taken
from raybrew.errors import ConfigError, DataError
from raybrew.tasks.base import BadValue, Labels, Task
from raybrew.tasks.values import example_id

__all__ = ["load_rows"]


_CHUNK_ROWS = 8192
_SHOWN_BAD_ROWS = 5


def load_rows(
    data: DataConfig,
    split: Split,
    task: Task,
    labels: Labels | None = None,
    *,
    learns_labels: bool = True,
    name: str | None = None,
    cache: Path | None = None,
) -> RowSet:
    """The rows of `data.train`, `data.eval`, `data.test` or `data.unlabeled`.

    With a share of `data.train` as `data.test` the rows of that share are those of `test`, and none of `train`.

    Label names are those of `task.labels`, else `labels` (a teacher's, or those of the training rows), else the
    source's own class names, else the distinct labels of the training rows, sorted (numbers by value). Unlabelled rows
    have what the task puts where there is no label. With `learns_labels` training rows must have labels that something
    can be learnt from. Messages call the source `name`, if that is given, instead of by its path. Rows of large local
    files are kept in the folder `cache` for other processes.
    DataError names file, row, line and column of the first bad rows, or says why the source as a whole cannot be used.
    """
    text = source_of(data, split)
    if text is None:
        raise ConfigError(f"data.{split} is not set; it names a file, a folder or a hub dataset")
    fixed = task.fixed_labels
    known = fixed if fixed is not None else labels or None
    if known is None and split in ("eval", "test") and data.train is not None:
        known = load_rows(data, "train", task, learns_labels=False, cache=cache).labels
    try:
        found = _read(data, split, task, known, name, cache)
        untrainable = task.untrainable(found.table, found.labels) if split == "train" and learns_labels else None
        if untrainable is not None:
            raise DataError(f"{found.source}: {untrainable}")
        return found
    except DataError as error:
        no_column = isinstance(error, MissingColumnsError) and error.missing == (task.label_column,)
        advice = _WITHOUT_LABELS[split] if no_column or isinstance(error, _NoLabelsError) else ""
        between = "" if not advice else "\n" if "\n" in str(error) else ". "
        where = "" if table_name(text) is not None else f"data.{split}: "  # which is what such rows are called
        raise DataError(f"{where}{error}{between}{advice}") from error.__cause__


class _NoLabelsError(DataError):
    """No row of a source has a label."""


#: What to do about a source without labels.
_WITHOUT_LABELS: Mapping[str, str] = MappingProxyType(
    {
        "train": "Rows without labels belong under data.unlabeled, which is enough without data.train",
        "eval": "Rows that choose need labels; leave data.eval out where there are none",
        "test": "Rows that score need labels; leave data.test out where there are none",
        "unlabeled": "",
    }
)


def _read(
    data: DataConfig,
    split: Split,
    task: Task,
    known: Labels | None,
    name: str | None,
    cache: Path | None,
) -> RowSet:
    source = resolved_source(data, split)
    share = data.test_share if split in ("train", "test") else None
    kind = "unlabeled" if split == "unlabeled" else split if share is not None else "labelled"
    settings = [kind, share, getattr(data, f"{split}_rows"), data.on_bad_row, data.separator, data.header]
    settings += [] if data.encoding is None else [data.encoding]
    asked = [source.name, name, repr(task), None if known is None else [known.names, known.named], *settings]
    return kept_rows(cache, source.files, asked, lambda: _parsed(data, split, source, task, known, name))


def _parsed(
    data: DataConfig, split: Split, source: Source, task: Task, known: Labels | None, name: str | None
) -> RowSet:
    label_column = task.label_column if split != "unlabeled" else None
    columns = task.columns if label_column is None else (*task.columns, label_column)
    shown = name or source.name
    skip = data.on_bad_row == "skip"
    rows = _Rows(task)
    labeller = Labeller(task, known) if label_column is not None else None
    bad: list[BadRow] = []
    num_rows = num_bad = num_unlabelled = 0
    for reader in open_source(source, data.separator, data.header, data.encoding):
        reader.name = name or reader.name
        if labeller is not None and label_column is not None:
            labeller.use_names(reader.label_names(label_column))
        for row, line, raw in reader.rows(columns, task.optional_columns):
            num_rows += 1
            if isinstance(raw, BadRow):
                problem = raw
            else:
                try:
                    parsed = task.parse(raw)
                    rows.add(parsed, task.no_label(parsed) if labeller is None else labeller.code(raw))
                    continue
                except BadValue as error:
                    num_unlabelled += isinstance(error, NoLabel)
                    problem = BadRow(reader.name, row, error.column, error.reason, line)
            num_bad += 1
            if skip or num_bad <= _SHOWN_BAD_ROWS:
                bad.append(problem)
    if num_bad and not (skip and len(rows)):
        failed = _NoLabelsError if num_unlabelled == num_rows else DataError
        raise failed(_bad_rows(shown, bad, num_bad, num_rows, skip))
    labels = known or Labels(())
    table = rows.table()
    if labeller is not None:
        labels, place = labeller.finish(shown, len(rows))
        if task.names_labels:
            label = _renumbered(table.column("label").combine_chunks(), place)
            table = table.set_column(table.schema.get_field_index("label"), table.schema.field("label"), label)
    set_aside = np.empty((0, ID_BYTES), np.uint8)
    if data.test_share is not None and split in ("train", "test"):
        ids = row_ids(table)
        held = in_share(ids, data.test_share)
        table = table.filter(pa.array(held if split == "test" else ~held))
        set_aside = set_aside if split == "test" else ids[held]
        if not table.num_rows:
            raise DataError(
                f"{shown}: data.test={data.test} leaves no rows for data.{split}: {int(held.sum())} of "
                f"{len(ids)} rows are in that share; choose another share, or name a file of test rows"
            )
    size = getattr(data, f"{split}_rows")
    if size is not None and size < table.num_rows:
        table = taken(table, subset_indices(table.num_rows, size))
    numbered = labeller is not None and labeller.numbered
    return RowSet(table, labels, tuple(bad), shown, set_aside, num_rows, numbered)


class _Rows:
    """Parsed rows, moved from Python lists into Arrow every few thousand."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._schema = pa.schema([pa.field("id", pa.binary(ID_BYTES)), *task.schema()])
        self._chunks: list[pa.RecordBatch] = []
        self._columns: dict[str, list[Any]] = {name: [] for name in self._schema.names}

    def __len__(self) -> int:
        return sum(len(chunk) for chunk in self._chunks) + len(self._columns["id"])

    def add(self, parsed: Mapping[str, Any], label: Any) -> None:
        identity = example_id(self._task.content(parsed))
        columns = self._columns
        for name, value in parsed.items():
            columns[name].append(value)
        columns["id"].append(identity)
        columns["label"].append(label)
        if len(columns["id"]) >= _CHUNK_ROWS:
            self._flush()

    def table(self) -> pa.Table:
        self._flush()
        return merged(pa.Table.from_batches(self._chunks, self._schema))

    def _flush(self) -> None:
        arrays = [pa.array(self._columns[field.name], field.type) for field in self._schema]
        self._chunks.append(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
        for values in self._columns.values():
            values.clear()


def _bad_rows(source: str, bad: list[BadRow], num_bad: int, num_rows: int, skip: bool) -> str:
    lines = [str(problem) for problem in bad[:_SHOWN_BAD_ROWS]]
    if num_bad > len(lines):
        lines.append(f"and {num_bad - len(lines)} more")
    if num_bad == num_rows:
        head = f"none of the {num_rows} rows of {source} can be used"
    else:
        head = f"{num_bad} of the {num_rows} rows of {source} cannot be used"
    if not skip:
        head += "; correct them, or leave them out with data.on_bad_row=skip"
    return "\n  ".join([f"{head}:", *lines])


def _renumbered(codes: pa.Array, place: npt.NDArray[np.int32]) -> pa.Array:
    """Final label numbers for codes, one per row or a list per row."""
    if pa.types.is_list(codes.type):
        return pa.ListArray.from_arrays(codes.offsets, _renumbered(codes.values, place))
    return pa.array(place[codes.to_numpy(zero_copy_only=False)], pa.int32())

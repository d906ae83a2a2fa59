"""Labelled and unlabelled rows of a source as one Arrow table, checked, with an id for each example."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from raybrew.config.data import DataConfig
from raybrew.data.labels import Labeller, NoLabel
from raybrew.data.records import BadRow, MissingColumnsError, RawRow
from raybrew.data.row_cache import kept_rows
from raybrew.data.row_set import ID_BYTES, RowSet, row_ids
from raybrew.data.sources import Source, open_source, resolve_source
from raybrew.data.tables import merged, taken
from raybrew.errors import ConfigError, DataError
from raybrew.tasks.base import BadValue, Labels, Task
from raybrew.tasks.values import example_id

__all__ = [
    "BadRow",
    "RowSet",
    "Split",
    "contradicting_places",
    "example_id",
    "in_share",
    "load_rows",
    "places_of",
    "row_ids",
    "rows_beside",
    "rows_fingerprint",
    "rows_of_ids",
    "source_of",
    "subset_indices",
]

Split = Literal["train", "eval", "test", "unlabeled"]

_CHUNK_ROWS = 8192
_SHOWN_BAD_ROWS = 5


def rows_beside(table: pa.Table, ids: npt.NDArray[np.uint8]) -> pa.Table:
    """The rows of `table` whose ids (rows, 16) are not among `ids`."""
    if not len(ids):
        return table
    known = np.unique(_as_keys(ids))
    return table.filter(pa.array(~np.isin(_as_keys(row_ids(table)), known)))


def rows_of_ids(ids: npt.NDArray[np.uint8], wanted: Collection[bytes]) -> npt.NDArray[np.int64]:
    """Places in `ids` (rows, 16) of those that are `wanted`."""
    known = np.array(sorted(wanted), f"V{ID_BYTES}")
    return np.flatnonzero(np.isin(_as_keys(ids), known))


def _as_keys(ids: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(ids).view(f"V{ID_BYTES}").ravel()


def rows_fingerprint(table: pa.Table) -> str:
    """32 hex digits that name the examples of `table`: the same for any order of rows and any labels."""
    halves = row_ids(table).view("<u8")
    ordered = halves[np.lexsort((halves[:, 1], halves[:, 0]))]
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(ordered).data)


def subset_indices(num_rows: int, size: int) -> npt.NDArray[np.int64]:
    """Rows of a subset, ascending: the first `size` of one fixed permutation, so smaller subsets lie in larger ones."""
    # Raw output of the bit generator, because numpy promises that it never changes; `permutation` may.
    keys = np.random.PCG64(0).random_raw(num_rows)
    return np.sort(np.argsort(keys, kind="stable")[:size])


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
        found = _read(data, split, text, task, known, name, cache)
        untrainable = task.untrainable(found.table, found.labels) if split == "train" and learns_labels else None
        if untrainable is not None:
            raise DataError(f"{found.source}: {untrainable}")
        return found
    except DataError as error:
        no_column = isinstance(error, MissingColumnsError) and error.missing == (task.label_column,)
        advice = _WITHOUT_LABELS[split] if no_column or isinstance(error, _NoLabelsError) else ""
        between = "" if not advice else "\n" if "\n" in str(error) else ". "
        raise DataError(f"data.{split}: {error}{between}{advice}") from error.__cause__


def source_of(data: DataConfig, split: Split) -> str | None:
    """What names the rows of a split: that of `data.train` where `data.test` is a share of it."""
    return data.train if split == "test" and data.test_share is not None else getattr(data, split)


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

#: File, row and line (of text files), counted from 1.
Place = tuple[str, int, int | None]


def places_of(data: DataConfig, split: Split, task: Task, ids: Collection[bytes]) -> dict[bytes, Place]:
    """Where the examples of these ids first stand, by reading the source again."""
    found: dict[bytes, Place] = {}
    for identity, place, _ in _placed(data, split, task, task.optional_columns, task.columns):
        if identity in ids:
            found.setdefault(identity, place)
            if len(found) == len(ids):
                break
    return found


def contradicting_places(
    data: DataConfig, split: Split, task: Task, ids: Sequence[bytes], names: Sequence[str]
) -> list[tuple[Place, Place]]:
    """For each of these ids two rows of its example with different labels; fewer where the source has none."""
    columns = (*task.columns, str(task.label_column)) if task.label_column not in task.columns else task.columns
    first: dict[bytes, tuple[Place, str]] = {}
    both: dict[bytes, tuple[Place, Place]] = {}
    for identity, place, raw in _placed(data, split, task, task.optional_columns, columns):
        if identity not in ids or identity in both:
            continue
        try:
            value = task.raw_label(raw, names)
        except BadValue:
            continue
        label = repr(sorted(map(str, value))) if isinstance(value, tuple) and len(value) > 1 else str(value)
        before, known = first.setdefault(identity, (place, label))
        if known != label:
            both[identity] = (before, place)
            if len(both) == len(set(ids)):
                break
    return [both[identity] for identity in ids if identity in both]


def _placed(
    data: DataConfig, split: Split, task: Task, optional: Sequence[str], columns: Sequence[str]
) -> Iterator[tuple[bytes, Place, RawRow]]:
    """Id, place and content of each row of a source that can be read."""
    text = str(source_of(data, split))
    source = resolve_source(text, data.format, _named_by(data, split))
    for reader in open_source(source, data.separator, data.header):
        for row, line, raw in reader.rows(columns, optional):
            if isinstance(raw, BadRow):
                continue
            try:
                yield example_id(task.content(task.parse(raw))), (reader.name, row, line), raw
            except BadValue:
                continue


def _read(
    data: DataConfig,
    split: Split,
    text: str,
    task: Task,
    known: Labels | None,
    name: str | None,
    cache: Path | None,
) -> RowSet:
    source = resolve_source(text, data.format, _named_by(data, split))
    share = data.test_share if split in ("train", "test") else None
    kind = "unlabeled" if split == "unlabeled" else split if share is not None else "labelled"
    settings = [kind, share, getattr(data, f"{split}_rows"), data.on_bad_row, data.separator, data.header]
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
    for reader in open_source(source, data.separator, data.header):
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


def in_share(ids: npt.NDArray[np.uint8], share: float) -> npt.NDArray[np.bool_]:
    """Which of the ids (rows, 16) belong to a share of all texts; a smaller share lies within a larger one."""
    # Ids are hashes of content, so half of one is a number drawn evenly.
    return np.ascontiguousarray(ids[:, 8:]).view("<u8").ravel() < np.uint64(min(share * 2.0**64, 2.0**64 - 2048))


def _named_by(data: DataConfig, split: Split) -> Split:
    return "train" if split == "test" and data.test_share is not None else split


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

"""Cautions about the rows of an experiment: contradictory labels, repeats, rows that several splits share, and so on.

Rows are the same example if their ids are equal, which are hashes of their content (`raybrew.tasks.values`).
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from raybrew.config.data import DataConfig
from raybrew.data.cautions import Caution
from raybrew.data.row_cautions import (
    AlikeLabels,
    ContradictoryRows,
    MajorityLabel,
    NumberedLabels,
    RepeatedRows,
    SharedRows,
    SkippedRows,
)
from raybrew.data.rows import RowSet, Split, contradicting_places, places_of, row_ids
from raybrew.tasks.base import Task

__all__ = ["row_cautions"]

#: Splits that models are judged by.
_JUDGING: tuple[Split, ...] = ("eval", "test")
_SHOWN_EXAMPLES = 3
_SHOWN_GROUPS = 5
#: From this share on a label makes accuracy say little.
_MAJORITY_SHARE = 0.8
_NO_LABEL = -1
_SEPARATORS = re.compile(r"[\s_-]+")

Places = npt.NDArray[np.int64]


def row_cautions(
    splits: Mapping[Split, RowSet],
    data: DataConfig,
    task: Task,
    metric: str,
    key: str = "data",
    about: Collection[Split] | None = None,
) -> tuple[Caution, ...]:
    """What is doubtful about the rows of `splits` (train, eval, ...), as `load_rows` read them from `data`.

    `key` is the dotted key of `data`; `metric` is what models are judged by. Only cautions `about` some of the splits
    are wanted, default: about all.
    """
    checked = _Splits(splits, data, task, key)
    chosen = {split: rows for split, rows in splits.items() if about is None or split in about}
    found: list[Caution] = []
    for split in chosen:
        found += checked.skipped(split)
    found += _numbered(chosen, task, key)
    found += _alike(chosen, task, key)
    for split in chosen:
        found += [*checked.contradictory(split), *checked.repeated(split)]
    for split in chosen:
        if split in _JUDGING:
            found += checked.shared(split)
            found += _majority(splits[split], f"{key}.{split}", metric)
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class _Numbered:
    """The rows of one split: number of the example and of the label of each, (rows,)."""

    examples: Places
    labels: Places


class _Splits:
    """All splits, their examples numbered together."""

    def __init__(self, splits: Mapping[Split, RowSet], data: DataConfig, task: Task, key: str) -> None:
        self._splits, self._data, self._task, self._key = splits, data, task, key
        self._ids = {name: row_ids(rows.table) for name, rows in splits.items()}
        numbers = _numbers_of(np.concatenate([*self._ids.values(), np.empty((0, 16), np.uint8)]))
        borders = np.cumsum([len(ids) for ids in self._ids.values()])[:-1]
        names = next((rows.labels.names for name, rows in splits.items() if name != "unlabeled"), ())
        # Labels of a text are a set; tags of words and borders of answers stand in an order.
        ordered = "tokens" in task.schema().names or not task.names_labels
        self.rows = {
            name: _Numbered(
                part,
                _label_numbers(rows.table.column("label"), ordered)
                if task.label_column is not None and name != "unlabeled" and rows.labels.names == names
                else np.full(len(part), _NO_LABEL, np.int64),
            )
            for (name, rows), part in zip(splits.items(), np.split(numbers, borders), strict=True)
        }

    def skipped(self, split: Split) -> Iterator[Caution]:
        rows = self._splits[split]
        # A share of the training rows lies in their file.
        told = split == "test" and self._data.test_share is not None and "train" in self._splits
        if rows.skipped and not told:
            columns = collections.Counter(bad.column for bad in rows.skipped)
            column, count = columns.most_common(1)[0]
            column = column if 2 * count > len(rows.skipped) else None
            name = None if column is None else str(column)
            yield SkippedRows(self._named(split), rows.source, len(rows.skipped), rows.num_read, name)

    def contradictory(self, split: Split) -> Iterator[Caution]:
        rows = self.rows[split]
        labelled = np.flatnonzero(rows.labels != _NO_LABEL)
        if not len(labelled):
            return
        examples, kinds, in_all, most = _labels_per_example(rows.examples[labelled], rows.labels[labelled])
        doubtful = examples[kinds > 1]
        if not len(doubtful):
            return
        affected, lost = int(in_all[kinds > 1].sum()), int((in_all - most)[kinds > 1].sum())
        # Of examples that are complete early, so that few rows of a large file are read again.
        last = {int(rows.examples[place]): place for place in labelled[np.isin(rows.examples[labelled], doubtful)]}
        shown = sorted(last, key=last.__getitem__)[:_SHOWN_EXAMPLES]
        ids = [bytes(self._ids[split][last[example]]) for example in shown]
        names = self._splits[split].labels.names
        places = contradicting_places(self._data, split, self._task, ids, names)
        shown_places = [[_place(place) for place in both] for both in places]
        lost = lost if self._task.names_labels else 0
        yield ContradictoryRows(self._named(split), len(doubtful), affected, lost, len(rows.examples), shown_places)

    def repeated(self, split: Split) -> Iterator[Caution]:
        examples = self.rows[split].examples
        rows = len(examples) - len(np.unique(examples))
        if rows:
            yield RepeatedRows(self._named(split), rows, len(examples))

    def shared(self, split: Split) -> Iterator[Caution]:
        """Rows of `split` that training reads too, or another judging split that stands before it."""
        here = self.rows[split]
        judging = [name for name in self.rows if name in _JUDGING]
        others = [name for name in self.rows if name not in _JUDGING] + judging[: judging.index(split)]
        for name in others:
            there = self.rows[name]
            shared = np.isin(here.examples, there.examples)
            if not shared.any():
                continue
            relabelled = self._relabelled(here, there, shared)
            places = self._shared_places(split, name, shared)
            yield SharedRows(
                self._named(split), self._named(name), int(shared.sum()), relabelled, len(here.examples), places
            )

    def _relabelled(self, here: _Numbered, there: _Numbered, shared: npt.NDArray[np.bool_]) -> int:
        """Rows `shared` of `here` whose example has labels `there`, all of them other ones."""
        labels: dict[int, set[int]] = {}
        known = np.isin(there.examples, here.examples[shared]) & (there.labels != _NO_LABEL)
        for example, label in _pairs(there, known):
            labels.setdefault(example, set()).add(label)
        mine = _pairs(here, shared & (here.labels != _NO_LABEL))
        return sum(example in labels and label not in labels[example] for example, label in mine)

    def _shared_places(self, split: Split, other: Split, shared: npt.NDArray[np.bool_]) -> list[list[str]]:
        there = self.rows[other].examples
        first = np.flatnonzero(np.isin(there, self.rows[split].examples[shared]))
        ids = list(dict.fromkeys(bytes(self._ids[other][place]) for place in first[: 4 * _SHOWN_EXAMPLES]))
        ids = ids[:_SHOWN_EXAMPLES]
        both = [places_of(self._data, name, self._task, set(ids)) for name in (split, other)]
        return [[_place(places[identity]) for places in both] for identity in ids if all(identity in p for p in both)]

    def _named(self, split: Split) -> str:
        return f"{self._key}.{split}"


def _numbers_of(ids: npt.NDArray[np.uint8]) -> Places:
    """(rows,): equal ids (rows, 16) have equal numbers."""
    halves = np.ascontiguousarray(ids).view("<u8")
    order = np.lexsort((halves[:, 1], halves[:, 0]))
    ordered = halves[order]
    new = np.ones(len(ordered), np.int64)
    new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    numbers = np.empty(len(ordered), np.int64)
    numbers[order] = np.cumsum(new) - 1
    return numbers


def _pairs(rows: _Numbered, chosen: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    return list(zip(rows.examples[chosen].tolist(), rows.labels[chosen].tolist(), strict=True))


def _labels_per_example(examples: Places, labels: Places) -> tuple[Places, Places, Places, Places]:
    """Examples in order, and of each how many labels and rows it has, and rows with its most frequent label."""
    order = np.lexsort((labels, examples))
    examples, labels = examples[order], labels[order]
    new_example = np.append(True, examples[1:] != examples[:-1])
    first_of_pair = np.flatnonzero(new_example | np.append(True, labels[1:] != labels[:-1]))
    rows_of_pair = np.diff(first_of_pair, append=len(examples))
    first = np.flatnonzero(new_example[first_of_pair])  # the first pair of each example
    kinds = np.diff(first, append=len(first_of_pair))
    in_all, most = np.add.reduceat(rows_of_pair, first), np.maximum.reduceat(rows_of_pair, first)
    return examples[first_of_pair][first], kinds, in_all, most


def _label_numbers(column: pa.ChunkedArray, ordered: bool) -> Places:
    """A number for each label, equal for equal ones; -1 for rows without."""
    if pa.types.is_list(column.type):
        rows = column.to_pylist()
        return np.array([_hash(row if ordered else sorted(row)) for row in rows], np.int64)
    values = column.to_numpy()
    if np.issubdtype(values.dtype, np.floating):
        bits = np.ascontiguousarray(values + 0.0).view(f"<i{values.dtype.itemsize}").astype(np.int64)
        bits[bits == _NO_LABEL] = _NO_LABEL - 1
        return np.where(np.isnan(values), _NO_LABEL, bits)
    return np.where(values < 0, _NO_LABEL, values.astype(np.int64))


def _hash(row: Sequence[int]) -> int:
    if row and min(row) < 0 and len(set(row)) == 1:
        return _NO_LABEL  # how tasks mark rows without labels
    return xxhash.xxh3_64_intdigest(np.asarray(row, np.int32).tobytes()) >> 1


def _counts(rows: RowSet) -> dict[str, int]:
    """Label -> how often it occurs; empty where labels are no names."""
    column = rows.table.column("label").combine_chunks()
    values = column.flatten() if pa.types.is_list(column.type) else column
    if not pa.types.is_integer(values.type):
        return {}
    numbers = values.to_numpy(zero_copy_only=False)
    counts = np.bincount(numbers[numbers >= 0], minlength=len(rows.labels))
    return dict(zip(rows.labels.names, counts.tolist(), strict=True)) if len(counts) == len(rows.labels) else {}


def _alike(splits: Mapping[Split, RowSet], task: Task, key: str) -> Iterator[Caution]:
    rows = splits.get("train")
    if rows is None or not task.names_labels or task.fixed_labels is not None:
        return
    forms: dict[str, list[tuple[str, int]]] = {}
    for name, count in _counts(rows).items():
        if count:
            forms.setdefault(_form(name), []).append((name, count))
    groups = [group for group in forms.values() if len(group) > 1]
    if groups:
        yield AlikeLabels(f"{key}.train", groups[:_SHOWN_GROUPS])


def _form(name: str) -> str:
    """A label without what is only its form: 1 and 1.0, true and True, not_entailment and "not entailment"."""
    text = unicodedata.normalize("NFKC", name).strip()
    try:
        number = float(text)
        if math.isfinite(number) and "_" not in text:
            return repr(number)
    except ValueError:
        pass
    return _SEPARATORS.sub(" ", text).casefold()


def _majority(rows: RowSet, split: str, metric: str) -> Iterator[Caution]:
    if metric != "accuracy" or not pa.types.is_integer(rows.table.schema.field("label").type):
        return
    counts = _counts(rows)
    label = max(counts, key=counts.__getitem__, default=None)
    if label is not None and counts[label] >= _MAJORITY_SHARE * len(rows):
        yield MajorityLabel(split, label, counts[label], len(rows))


def _numbered(splits: Mapping[Split, RowSet], task: Task, key: str) -> Iterator[Caution]:
    """Where `task.labels` gives the names, their order is what the user says that numbers mean."""
    numbered = [name for name, rows in splits.items() if rows.numbered]
    if numbered and task.fixed_labels is None:
        yield NumberedLabels(", ".join(f"{key}.{name}" for name in numbered), splits[numbered[0]].labels.names)


def _place(place: tuple[str, int, int | None]) -> str:
    return f"{Path(place[0]).name} row {place[1]}"

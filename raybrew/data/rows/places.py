"""Where examples stand in their source, by reading it again; and what names the source of a split."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Literal

from raybrew.config.data import DataConfig
from raybrew.data.readers.records import BadRow, RawRow
from raybrew.data.readers.sources import Source, open_source, resolve_source
from raybrew.tasks.base import BadValue, Task
from raybrew.tasks.values import example_id

__all__ = ["Place", "Split", "contradicting_places", "places_of", "resolved_source", "source_of"]

Split = Literal["train", "eval", "test", "unlabeled"]

#: File, row and line (of text files), counted from 1.
Place = tuple[str, int, int | None]


def source_of(data: DataConfig, split: Split) -> str | None:
    """What names the rows of a split: that of `data.train` where `data.test` is a share of it."""
    return data.train if split == "test" and data.test_share is not None else getattr(data, split)


def resolved_source(data: DataConfig, split: Split) -> Source:
    """What names the rows of a split, found: that of `data.train` where `data.test` is a share of it."""
    named_by = "train" if split == "test" and data.test_share is not None else split
    return resolve_source(str(source_of(data, split)), data.format, named_by)


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
    for reader in open_source(resolved_source(data, split), data.separator, data.header, data.encoding):
        for row, line, raw in reader.rows(columns, optional):
            if isinstance(raw, BadRow):
                continue
            try:
                yield example_id(task.content(task.parse(raw))), (reader.name, row, line), raw
            except BadValue:
                continue

"""Label names and numbers of the rows of a source, whether the names are known before or come from the rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from raybrew.errors import DataError
from raybrew.tasks.base import BadValue, Labels, Task
from raybrew.tasks.values import is_position

__all__ = ["Labeller", "NoLabel", "sorted_names"]

#: Beyond this many different labels in every second row, the label column is taken for something else.
_MANY_LABELS = 1000


class NoLabel(BadValue):
    """A row that is to have a label has none."""

    def __init__(self, column: str) -> None:
        super().__init__(column, "no label")


class Labeller:
    """Label numbers of rows: final ones where names are known, else in order of appearance until `finish`."""

    def __init__(self, task: Task, known: Labels | None) -> None:
        self._task = task
        self._known = known
        self._names_of_source: tuple[str, ...] | None = None
        self._codes: dict[str | int | None, int] = {}
        self._names: dict[str, int] = {}
        #: Whether a number was read as a position among names that the source does not give.
        self.numbered = False

    def use_names(self, names: tuple[str, ...] | None) -> None:
        """Start of a file whose class names are `names`."""
        if self._known is None and names is not None and not self._names:
            self._known = Labels(names)
        self._names_of_source = names
        self._codes.clear()

    def code(self, raw: Mapping[str, Any]) -> Any:
        """Number of the row's label, or a list of numbers, or the label itself where labels are no names."""
        known = self._known.names if self._known is not None else None
        value = self._task.raw_label(raw, self._names_of_source or known)
        if not self._task.names_labels:
            if value is None:
                raise NoLabel(str(self._task.label_column))
            return value
        if isinstance(value, tuple):
            if known and value and self._names_of_source is None:
                # Tasks may have read numbers as positions already, in all rows or in none.
                first = raw[self._task.label_column][0]  # type: ignore[index]
                self.numbered |= isinstance(first, int) and value[0] == known[first % len(known)] != str(first)
            return [self._code(name) for name in value]
        return self._code(value)

    def _code(self, value: str | int | None) -> int:
        code = self._codes.get(value)
        if code is None:
            code = self._new_code(value)
            if code < 0:
                raise NoLabel(str(self._task.label_column))
            self._codes[value] = code
        return code

    def _new_code(self, value: str | int | None) -> int:
        if self._known is not None:
            code = self._task.label_id(value, self._known, self._names_of_source)
            if code >= 0 and self._names_of_source is None:
                self.numbered |= is_position(value, self._known.names[code])
            return code
        return -1 if value is None else self._names.setdefault(str(value), len(self._names))

    def finish(self, source: str, num_rows: int) -> tuple[Labels, npt.NDArray[np.int32]]:
        """The labels, and the final number of each code."""
        if self._known is not None:
            return self._known, np.arange(len(self._known), dtype=np.int32)
        assert self._task.names_labels  # a task without label names prescribes its labels
        if len(self._names) > _MANY_LABELS and len(self._names) > num_rows / 2:
            raise DataError(
                f"{source}: column {self._task.label_column!r} has {len(self._names)} different values in {num_rows} "
                "rows; is it the label? Set data.columns.label"
            )
        names = self._task.complete_labels(sorted_names(self._names))
        place = np.empty(len(self._names), np.int32)
        for name, code in self._names.items():
            place[code] = names.index(name)
        return Labels(names), place


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """By value if all are numbers, else by spelling."""
    try:
        values = {name: float(name) for name in names}
    except ValueError:
        return tuple(sorted(names))
    if any(math.isnan(value) for value in values.values()):
        return tuple(sorted(names))
    return tuple(sorted(names, key=lambda name: (values[name], name)))

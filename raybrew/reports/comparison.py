"""`Comparison`: rows that were related to one another, and what a reader must know to compare them."""

from __future__ import annotations

import dataclasses
import functools
from typing import TypeVar

from raybrew.records.runs import RunRecord
from raybrew.reports.rows import Row
from raybrew.reports.statistics.evidence import Split

__all__ = ["Comparison"]

_Self = TypeVar("_Self", bound="Comparison")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All rows in the order of `ordered`."""

    rows: tuple[Row, ...]
    metric: str
    """The metric of most rows, which `best` goes by."""
    best: Row | None
    """The finished student of the best mean; without students the best control, else the best teacher. None where
    students are judged by losses that do not compare."""
    notes: tuple[str, ...]
    """What a reader must know to compare these rows."""
    candidates: tuple[Row, ...] = ()
    """The configurations among which `best` was chosen in the end."""
    tried: int = 0
    """How many configurations were compared on the evaluation rows, those included that were stopped early."""
    cost: str = ""
    """What finding the best took, in a few words."""
    rule: str = ""
    """How `best` was chosen, as a sentence."""
    shipped: RunRecord | None = None
    """Of a sweep: the run whose student is exported, one of the seeds of `best`."""

    left_out: int = 0
    """Rows that are not among `rows`, see `first`."""

    def first(self: _Self, most: int) -> _Self:
        """The `most` first rows, and of the others the best one and the controls that the first are compared with."""
        if len(self.rows) <= most:
            return self
        # Rows are copied as they are related, so a control is known by its runs.
        runs = {run.folder for row in self.rows[:most] if row.control for run in row.control.runs}
        kept = [
            row
            for place, row in enumerate(self.rows)
            if place < most or row is self.best or any(run.folder in runs for run in row.runs)
        ]
        return dataclasses.replace(self, rows=tuple(kept), left_out=len(self.rows) - len(kept))

    @property
    def split(self) -> Split:
        """The rows that the values shown first come from: of the best if there is one."""
        return self.best.split if self.best is not None else "eval"

    @property
    def teacher(self) -> Row | None:
        """The teacher's row if there is exactly one."""
        teachers = [row for row in self.rows if row.role == "teacher"]
        return teachers[0] if len(teachers) == 1 else None

    def place_of(self, row: Row) -> int:
        """Where `row`, one of these rows, stands."""
        return self._places[id(row)]

    @functools.cached_property
    def _places(self) -> dict[int, int]:
        return {id(row): place for place, row in enumerate(self.rows)}

    @functools.cached_property
    def eval_rows(self) -> int | None:
        return max((row.eval_rows for row in self.rows if row.eval_rows is not None), default=None)

"""Kinds of cautions about rows: `raybrew.data.row_checks` finds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from raybrew.data.cautions import Caution, order_text, share_text

__all__ = [
    "AlikeLabels",
    "ContradictoryRows",
    "MajorityLabel",
    "NumberedLabels",
    "RepeatedRows",
    "SharedRows",
    "SkippedRows",
]

#: Row places named in one sentence.
_SHOWN_PLACES = 2
#: Shares of rows from which a caution is worth a line in a report.
_CONTRADICTORY_SHARE = 0.01
_REPEATED_SHARE = 0.1
_SHARED_SHARE = 0.005
_SKIPPED_SHARE = 0.1
_MOST = 0.5


@dataclasses.dataclass(frozen=True)
class ContradictoryRows(Caution):
    """Examples that a split holds with more than one label."""

    kind = "contradictory rows"
    split: str
    examples: int
    rows: int
    """Rows of these examples."""
    lost: int
    """Rows on which every model errs that gives one answer to one text; 0 where labels are no names."""
    of: int
    places: Sequence[Sequence[str]] = ()

    @property
    def serious(self) -> bool:
        return self.rows >= _CONTRADICTORY_SHARE * self.of

    def text(self) -> str:
        what = "1 example has" if self.examples == 1 else f"{self.examples:,} examples have"
        text = f"{self.split}: {what} more than one label, in {share_text(self.rows, self.of)}"
        if self.lost and not self.split.endswith("train"):
            text += f"; no model can be right on more than {100 * (1 - self.lost / self.of):.1f} % of the rows"
        return text + _such_as(self.places)


@dataclasses.dataclass(frozen=True)
class RepeatedRows(Caution):
    """Rows whose example a split already has."""

    kind = "repeated rows"
    split: str
    rows: int
    of: int

    @property
    def serious(self) -> bool:
        return self.rows >= _REPEATED_SHARE * self.of

    def text(self) -> str:
        return f"{self.split}: {share_text(self.rows, self.of)} repeat{_s(self.rows)} the text of another row"


@dataclasses.dataclass(frozen=True)
class SharedRows(Caution):
    """Rows of an evaluated split whose example another split has too."""

    kind = "shared rows"
    split: str
    other: str
    rows: int
    relabelled: int
    """Of these, rows whose label the other split, which labels the example, does not give it."""
    of: int
    places: Sequence[Sequence[str]] = ()

    @property
    def serious(self) -> bool:
        return self.rows >= _SHARED_SHARE * self.of

    def text(self) -> str:
        text = f"{self.split}: {share_text(self.rows, self.of)} also occur{_s(self.rows)} in {self.other}"
        if self.relabelled:
            text += f", {self.relabelled:,} of them with other labels only"
        places = "; ".join(" and ".join(rows) for rows in self.places[:_SHOWN_PLACES])
        return f"{text}; scores on {self.split} may be optimistic{f' ({places})' if places else ''}"


@dataclasses.dataclass(frozen=True)
class SkippedRows(Caution):
    """Bad rows that `data.on_bad_row: skip` left out."""

    kind = "skipped rows"
    split: str
    source: str
    rows: int
    of: int
    column: str | None = None
    """The column that is bad in most of them."""

    @property
    def serious(self) -> bool:
        return self.rows >= _SKIPPED_SHARE * self.of

    def text(self) -> str:
        what = "1 bad row" if self.rows == 1 else f"{self.rows:,} bad rows"
        text = f"{self.split}: left out {what} of {self.of:,} ({100 * self.rows / self.of:.1f} %) in {self.source}"
        if self.column is not None:
            text += f", mostly for column {self.column!r}"
        return f"{text}; most of this source is not used" if self.rows >= _MOST * self.of else text


@dataclasses.dataclass(frozen=True)
class AlikeLabels(Caution):
    """Labels that count as different classes and differ only in form."""

    kind = "alike labels"
    split: str
    groups: Sequence[Sequence[tuple[str, int]]]
    """Each group: (name, rows) of labels that look the same."""

    def text(self) -> str:
        groups = [" and ".join(f"{name!r} ({rows:,})" for name, rows in group) for group in self.groups]
        return (
            f"{self.split}: labels that differ only in form count as different classes: {'; '.join(groups)} rows; "
            "write them in one form if they mean the same"
        )


@dataclasses.dataclass(frozen=True)
class MajorityLabel(Caution):
    """A label that most evaluated rows have, where accuracy is the metric."""

    kind = "majority label"
    split: str
    label: str
    rows: int
    of: int

    def text(self) -> str:
        share = f"{100 * self.rows / self.of:.1f} %"
        return (
            f"{self.split}: {share} of the rows have the label {self.label!r}, so a model that always says so has an "
            f"accuracy of {share}; task.metric=macro_f1 or mcc tells more"
        )


@dataclasses.dataclass(frozen=True)
class NumberedLabels(Caution):
    """Class numbers in rows, read as positions among names that stand elsewhere."""

    kind = "numbered labels"
    split: str
    names: Sequence[str]

    @property
    def serious(self) -> bool:
        return False  # where the order is wrong, `BetterOrder` says so

    def text(self) -> str:
        return f"{self.split}: labels are numbers, read as positions among the known labels: {order_text(self.names)}"


def _s(rows: int) -> str:
    """The ending of a verb whose subject is so many rows."""
    return "s" if rows == 1 else ""


def _such_as(places: Sequence[Sequence[str]]) -> str:
    return f", such as {'; '.join(' and '.join(rows) for rows in places[:_SHOWN_PLACES])}" if places else ""

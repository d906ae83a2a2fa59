"""What readers of all formats give: records, bad rows, and one error for columns that a source lacks."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from raybrew.errors import DataError

__all__ = [
    "BadRow",
    "MissingColumnsError",
    "RawRow",
    "Record",
    "RowReader",
    "first_line",
    "not_utf8",
    "require_columns",
]

#: Characters of what a message says about one row or file: the data may be anything.
_MAX_REASON = 300
#: Columns of one source row as they stand there.
RawRow: TypeAlias = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class BadRow:
    """A source row that cannot be used. Both count from 1: `row` data rows (no header), `line` lines of a text file."""

    file: str
    row: int
    column: str | None
    reason: str
    line: int | None = None

    def __str__(self) -> str:
        place = f"{self.file}, row {self.row}" + ("" if self.line is None else f" (line {self.line})")
        column = "" if self.column is None else f", column {self.column!r}"
        return f"{place}{column}: {_cut(self.reason, _MAX_REASON)}"


#: Row number, line number (text formats), and the row or what is wrong with it.
Record: TypeAlias = tuple[int, int | None, RawRow | BadRow]


class RowReader(Protocol):
    """Rows of one file, folder or hub dataset. Constructors only store; the methods read."""

    name: str

    def label_names(self, column: str) -> tuple[str, ...] | None:
        """Class names that the source declares for `column`; None where it declares none."""

    def rows(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Record]:
        """All rows, with at least `columns`, and those of `optional` that the source has.

        DataError if the source has no rows, lacks a column or is damaged.
        """


class MissingColumnsError(DataError):
    """A source lacks columns that are to be read."""

    def __init__(self, message: str, missing: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.missing = tuple(missing)


def require_columns(file: str, has: Sequence[str], wanted: Collection[str]) -> None:
    """DataError that names every column of `wanted` which `has` lacks (with near matches) or holds twice."""
    twice = sorted({column for column in wanted if has.count(column) > 1})
    if twice:
        raise DataError(f"{file}: column {', '.join(map(repr, twice))} occurs more than once")
    missing = [column for column in wanted if column not in has]
    if not missing:
        return
    there = _cut(", ".join(repr(_cut(column, 60)) for column in has) or "no columns", 2 * _MAX_REASON)
    text = f"{file}: no column {', '.join(map(repr, missing))}; it has {there}"
    by_case = {column.casefold(): column for column in has}
    near = [by_case[hit] for name in missing for hit in difflib.get_close_matches(str(name).casefold(), by_case, n=3)]
    if near:
        text += f" (near: {', '.join(map(repr, dict.fromkeys(near)))})"
    raise MissingColumnsError(f"{text}. Name the columns to read in data.columns", missing)


#: What to do about text in another encoding.
AS_UTF8 = "name its encoding in data.encoding (cp1252 is Windows-1252), or save the file as UTF-8"


def not_utf8(values: RawRow) -> tuple[str | None, str]:
    """Column and reason for a row decoded with `surrogateescape`, whose undecodable bytes became U+DC80..U+DCFF."""
    for column, value in values.items():
        for text in _texts(value):
            for index, char in enumerate(text):
                if "\udc80" <= char <= "\udcff":
                    byte = ord(char) - 0xDC00
                    meant = bytes([byte]).decode("cp1252", errors="ignore")
                    guess = f" ({meant} in Windows-1252)" if meant else ""
                    return column, f"not UTF-8: byte 0x{byte:02x} at character {index + 1}{guess}; {AS_UTF8}"
    return None, f"not UTF-8; {AS_UTF8}"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | Mapping):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def first_line(error: BaseException) -> str:
    """The message of a library's error on one line of at most 300 characters."""
    return _cut(" ".join(str(error).split()) or type(error).__name__, _MAX_REASON)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."

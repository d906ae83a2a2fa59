"""CoNLL files: a word a line with its columns, separated by tabs or spaces; a blank line ends a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from raybrew.data.readers.lines import text_lines
from raybrew.data.readers.records import AS_UTF8, BadRow, Record
from raybrew.errors import DataError

__all__ = ["ConllFile"]

#: What the configuration calls a column where it gives no number.
_DEFAULT_COLUMNS = {"tokens": 0, "tags": -1}
_DOCUMENT = "-DOCSTART-"


class ConllFile:
    """Sentences of a CoNLL file as rows of lists; `-DOCSTART-` lines and comments (`# ` before a sentence) are none.

    Columns are named by their numbers, from 0 or backwards from -1; `tokens` is the first and `tags` the last.
    """

    def __init__(self, path: Path, encoding: str | None = None) -> None:
        self.path = path
        self.encoding = encoding
        self.name = str(path)

    def label_names(self, column: str) -> tuple[str, ...] | None:
        """None: such files declare no names."""
        del column
        return None

    def rows(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Record]:
        """See `raybrew.data.readers.records.RowReader`."""
        row = 0
        for first, lines in self._sentences():
            row += 1
            yield row, first, self._row(row, lines, columns)
        if not row:
            raise DataError(f"{self.name}: empty file")

    def _sentences(self) -> Iterator[tuple[int, list[tuple[int, bytes]]]]:
        """Number of the first line, and the lines of each sentence."""
        lines: list[tuple[int, bytes]] = []
        for number, data in text_lines(self.path, self.name, self.encoding):
            data = data.strip(b"\r\n")
            # A tab may stand between columns of which one is a space; a line of spaces alone is blank.
            if not data.strip() or data.startswith(_DOCUMENT.encode()):
                if lines:
                    yield lines[0][0], lines
                lines = []
            elif lines or not data.startswith(b"# "):
                lines.append((number, data))
        if lines:
            yield lines[0][0], lines

    def _row(self, row: int, lines: list[tuple[int, bytes]], columns: Sequence[str]) -> dict[str, Any] | BadRow:
        fields: list[list[str]] = []
        for number, data in lines:
            try:
                text = data.decode()
            except UnicodeDecodeError as error:
                return BadRow(self.name, row, None, f"not UTF-8: byte 0x{data[error.start]:02x}; {AS_UTF8}", number)
            fields.append(text.split("\t") if "\t" in text else text.split())
            if len(fields[-1]) != len(fields[0]):
                return BadRow(
                    self.name, row, None, f"{len(fields[-1])} columns, the sentence began with {len(fields[0])}", number
                )
        width, found = len(fields[0]), {}
        for column in columns:
            place = _DEFAULT_COLUMNS.get(column, column)
            if not isinstance(place, int):
                raise DataError(f"{self.name}: columns of CoNLL files have numbers, data.columns gives {column!r}")
            if not -width <= place < width:
                return BadRow(
                    self.name, row, None, f"no column {place}; the line has {width} columns, from 0", lines[0][0]
                )
            found[column] = [line[place] for line in fields]
        if len(columns) > 1 and width == 1:
            return BadRow(self.name, row, None, "one column only; a word and its tag are needed", lines[0][0])
        return found

"""Rows of CSV, TSV and JSON files, plain or gzip, read as streams with row and line numbers.

CSV follows RFC 4180: fields in double quotes may hold commas, line ends and doubled quotes; another character than the
comma may separate them. TSV has no quoting at all: a line is a row and a tab is a border, as in the files of GLUE,
where quote characters are text. Names of columns are in the first line, or in `data.header`.
JSONL has one object per line; a file that is one JSON document is read as a whole (`documents`). Blank lines are no
rows. Files are UTF-8, with or without a byte order mark, unless `data.encoding` says otherwise.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raybrew.data.readers.documents import is_document, rows_of_document
from raybrew.data.readers.lines import bounded, opened, text_lines
from raybrew.data.readers.records import (
    AS_UTF8,
    BadRow,
    MissingColumnsError,
    Record,
    first_line,
    not_utf8,
    require_columns,
)
from raybrew.errors import DataError

__all__ = ["CsvFile", "JsonlFile", "TsvFile"]

#: What else may separate fields, for a guess where columns are missing.
_DELIMITERS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}
#: The first line with which Excel is told what separates fields.
_DECLARED = re.compile(rb'(?:\xef\xbb\xbf)?"?sep=(.)"?\r?\n')
#: Files that are one JSON document are held in memory, several times over.
_DOCUMENT_BYTES = 1 << 30
#: A quote that is never closed would otherwise swallow the rest of the file.
_FIELD_CHARACTERS = 1 << 24


class _TextFile:
    """What the formats share: a path, no declared class names, and perhaps names of columns that the file lacks."""

    def __init__(self, path: Path, header: Sequence[str] = (), encoding: str | None = None) -> None:
        self.path = path
        self.name = str(path)
        self.header = tuple(header)
        self.encoding = encoding

    def label_names(self, column: str) -> tuple[str, ...] | None:
        """None: text formats declare no class names."""
        del column
        return None

    def _row(self, header: Sequence[str], fields: Sequence[str], row: int, line: int) -> Mapping[str, Any] | BadRow:
        if len(fields) == len(header):
            return dict(zip(header, fields, strict=True))
        return BadRow(self.name, row, None, f"{len(fields)} fields, but the header has {len(header)}", line)

    def _no_rows(self) -> DataError:
        return DataError(f"{self.name}: a header, but no rows")

    def _require(self, header: Sequence[str], columns: Sequence[str], delimiter: str, unquoted: bool = False) -> None:
        """`require_columns`, with a guess what else may separate fields, or that there is no header."""
        try:
            require_columns(self.name, header, columns)
        except MissingColumnsError as error:
            line, guess = delimiter.join(header), ""
            others = [other for other in _DELIMITERS if other != delimiter and other in line]
            fits = [other for other in others if set(error.missing) & {name.strip(' "') for name in line.split(other)}]
            if fits:
                name = _DELIMITERS[fits[0]]
                guess = (
                    f"; fields look separated by {name}: set {'data.format=csv and ' * unquoted}data.delimiter={name}"
                )
            elif not self.header and set(error.missing) == set(columns):
                guess = "; where the first line is a row itself, name all columns of the file in data.header"
            raise MissingColumnsError(f"{error}{guess}", error.missing) from None


class CsvFile(_TextFile):
    """Values separated by `delimiter` (default: what a first line `sep=` says, else commas).

    Columns are named by the first line, or by `header` where the file has no such line.
    """

    def __init__(
        self, path: Path, delimiter: str | None = None, header: Sequence[str] = (), encoding: str | None = None
    ) -> None:
        super().__init__(path, header, encoding)
        self.delimiter = delimiter

    def rows(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Record]:
        """See `raybrew.data.readers.records.RowReader`."""
        with opened(self.path, self.name, self.encoding) as file:
            declared = _DECLARED.match(file.peek(16)[:16])  # type: ignore[attr-defined]  # buffered readers have it
            first = 0
            if declared is not None:
                file.readline()
                first = 1
            delimiter = self.delimiter or (declared[1].decode("ascii", "replace") if declared else ",")
            # surrogateescape: one bad byte makes one bad row instead of ending the file. newline="": csv sees \r\n.
            text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
            reader = csv.reader(bounded(text, self.name), strict=True, delimiter=delimiter)
            header = list(self.header) or self._header(reader)
            self._require(header, columns, delimiter)
            row = 0
            while True:
                line = first + reader.line_num + 1
                raw: Mapping[str, Any] | BadRow
                try:
                    fields = _next_fields(reader)
                except StopIteration:
                    break
                except csv.Error as error:
                    row += 1
                    yield row, line, BadRow(self.name, row, None, f"no CSV ({first_line(error)})", line)
                    continue
                if not fields:
                    continue
                row += 1
                raw = self._row(header, fields, row, line)
                if not isinstance(raw, BadRow) and not _is_utf8(fields):
                    raw = BadRow(self.name, row, *not_utf8(raw), line)
                yield row, line, raw
        if not row:
            raise self._no_rows()

    def _header(self, reader: Iterator[list[str]]) -> list[str]:
        try:
            while not (header := _next_fields(reader)):
                pass
        except StopIteration:
            raise DataError(f"{self.name}: empty file") from None
        except csv.Error as error:
            raise DataError(f"{self.name}: the header is no CSV ({first_line(error)})") from error
        if not _is_utf8(header):
            raise DataError(f"{self.name}: the header is not UTF-8; {AS_UTF8}")
        return header


class TsvFile(_TextFile):
    """Tab-separated values without quoting, named by the first line, or by `header` where the file has no such line."""

    def rows(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Record]:
        """See `raybrew.data.readers.records.RowReader`."""
        header: list[str] | None = list(self.header) or None
        if header is not None:
            self._require(header, columns, "\t", unquoted=True)
        row = 0
        for line, data in text_lines(self.path, self.name, self.encoding):
            if not data.strip(b"\r\n"):
                continue
            data = data.removesuffix(b"\n").removesuffix(b"\r")
            try:
                fields, is_utf8 = data.decode().split("\t"), True
            except UnicodeDecodeError:
                fields, is_utf8 = data.decode(errors="surrogateescape").split("\t"), False
            if header is None:
                if not is_utf8:
                    raise DataError(f"{self.name}: the header is not UTF-8; {AS_UTF8}")
                header = fields
                self._require(header, columns, "\t", unquoted=True)
                continue
            row += 1
            raw = self._row(header, fields, row, line)
            if not isinstance(raw, BadRow) and not is_utf8:
                raw = BadRow(self.name, row, *not_utf8(raw), line)
            yield row, line, raw
        if header is None:
            raise DataError(f"{self.name}: empty file")
        if not row:
            raise self._no_rows()


class JsonlFile(_TextFile):
    """One JSON object per line, or one document for all rows."""

    def rows(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Record]:
        """See `raybrew.data.readers.records.RowReader`."""
        seen: dict[str, None] = {}
        last_keys: Any = None
        row = 0
        document = self._document(columns)
        for line, raw in self._lines() if document is None else self._values(document):
            row += 1
            if not isinstance(raw, BadRow) and raw.keys() != last_keys:
                last_keys = raw.keys()
                seen.update(dict.fromkeys(last_keys))
            yield row, line, raw
        if not row:
            raise DataError(f"{self.name}: empty file")
        if seen:
            # A column that some rows lack makes bad rows; one that no row has is a wrong name.
            require_columns(self.name, list(seen), columns)

    def _lines(self) -> Iterator[tuple[int | None, Mapping[str, Any] | BadRow]]:
        row = 0
        for line, data in text_lines(self.path, self.name, self.encoding):
            if not data.isspace():
                row += 1
                yield line, self._object(data, row, line)

    def _values(self, rows: Iterator[Any]) -> Iterator[tuple[int | None, Mapping[str, Any] | BadRow]]:
        for row, value in enumerate(rows, 1):
            if isinstance(value, dict):
                yield None, value
            else:
                yield None, BadRow(self.name, row, None, f"a JSON object expected, got {_json_type(value)}")

    def _document(self, columns: Sequence[str]) -> Iterator[Any] | None:
        """The rows of a file that is one JSON document; None for one object per line."""
        lines = (data for _, data in text_lines(self.path, self.name, self.encoding) if not data.isspace())
        first, second = next(lines, b""), next(lines, None)
        start = first.lstrip()[:1]
        if start not in (b"[", b"{") or (start == b"{" and second is not None and _is_json(first)):
            return None
        if self.path.stat().st_size > _DOCUMENT_BYTES:
            raise DataError(
                f"{self.name}: begins as one JSON document of more than {_DOCUMENT_BYTES >> 30} GiB, too large to be "
                "read as a whole; write one object per line"
            )
        try:
            value = json.loads(b"".join(data for _, data in text_lines(self.path, self.name, self.encoding)))
        except (ValueError, RecursionError) as error:
            if start == b"[" and not _is_json(first):
                fix = f"; {AS_UTF8}" if isinstance(error, UnicodeDecodeError) else ""
                raise DataError(
                    f"{self.name}: begins as a JSON array, but is none ({first_line(error)}){fix}"
                ) from error
            return None  # each line says what is wrong with it
        if is_document(value, columns):
            return rows_of_document(self.name, value, columns)
        return None if second is None else iter([value])  # one object, perhaps over several lines

    def _object(self, data: bytes, row: int, line: int) -> Mapping[str, Any] | BadRow:
        try:
            text, is_utf8 = data.decode(), True
        except UnicodeDecodeError:
            text, is_utf8 = data.decode(errors="surrogateescape"), False
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = f"no JSON ({first_line(error)})" if is_utf8 else f"neither UTF-8 nor JSON; {AS_UTF8}"
            return BadRow(self.name, row, None, reason, line)
        if not isinstance(value, dict):
            return BadRow(self.name, row, None, f"a JSON object expected, got {_json_type(value)}", line)
        return value if is_utf8 else BadRow(self.name, row, *not_utf8(value), line)


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def _next_fields(reader: Iterator[list[str]]) -> list[str]:
    # The limit is global to the process, so it is only ours for the moment.
    before = csv.field_size_limit(_FIELD_CHARACTERS)
    try:
        return next(reader)
    finally:
        csv.field_size_limit(before)


def _json_type(value: Any) -> str:
    names = {list: "an array", str: "text", int: "a number", float: "a number", bool: "a truth value"}
    return names.get(type(value), "null")


def _is_utf8(fields: Sequence[str]) -> bool:
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        return False
    return True

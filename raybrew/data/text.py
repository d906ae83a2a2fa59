"""Rows of CSV, TSV and JSONL files, plain or gzip, read as streams with row and line numbers.

CSV follows RFC 4180: fields in double quotes may hold commas, line ends and doubled quotes. TSV has no quoting at all:
a line is a row and a tab is a border, as in the files of GLUE, where quote characters are text. Both need a header.
JSONL has one object per line. Blank lines are no rows. Files are UTF-8, with or without a byte order mark.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, AnyStr

from raybrew.data.records import BadRow, Record, first_line, not_utf8, require_columns
from raybrew.errors import DataError

__all__ = ["CsvFile", "JsonlFile", "TsvFile", "text_lines"]

_BUFFER_BYTES = 1 << 20
_GZIP_MARK = b"\x1f\x8b"
_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
#: A quote that is never closed would otherwise swallow the rest of the file.
_FIELD_CHARACTERS = 1 << 24
#: Bytes, of CSV characters.
_LINE_LIMIT = 1 << 26


class _TextFile:
    """What the three formats share: a path and no declared class names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)

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


class CsvFile(_TextFile):
    """Comma-separated values with a header."""

    def rows(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Record]:
        """See `raybrew.data.records.RowReader`."""
        with _opened(self.path) as file:
            # surrogateescape: one bad byte makes one bad row instead of ending the file. newline="": csv sees \r\n.
            text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
            reader = csv.reader(_bounded(text, self.path), strict=True)
            header = self._header(reader)
            require_columns(self.name, header, columns)
            row = 0
            while True:
                line = reader.line_num + 1
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
            raise DataError(f"{self.name}: the header is not UTF-8")
        return header


class TsvFile(_TextFile):
    """Tab-separated values with a header and without quoting."""

    def rows(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Record]:
        """See `raybrew.data.records.RowReader`."""
        header: list[str] | None = None
        row = 0
        for line, data in text_lines(self.path):
            if not data.strip(b"\r\n"):
                continue
            data = data.removesuffix(b"\n").removesuffix(b"\r")
            try:
                fields, is_utf8 = data.decode().split("\t"), True
            except UnicodeDecodeError:
                fields, is_utf8 = data.decode(errors="surrogateescape").split("\t"), False
            if header is None:
                if not is_utf8:
                    raise DataError(f"{self.name}: the header is not UTF-8")
                header = fields
                require_columns(self.name, header, columns)
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
    """One JSON object per line."""

    def rows(self, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[Record]:
        """See `raybrew.data.records.RowReader`."""
        seen: dict[str, None] = {}
        last_keys: Any = None
        row = 0
        for line, data in text_lines(self.path):
            if data.isspace():
                continue
            row += 1
            raw = self._object(data, row, line)
            if not isinstance(raw, BadRow) and raw.keys() != last_keys:
                last_keys = raw.keys()
                seen.update(dict.fromkeys(last_keys))
            yield row, line, raw
        if not row:
            raise DataError(f"{self.name}: empty file")
        if seen:
            # A column that some rows lack makes bad rows; one that no row has is a wrong name.
            require_columns(self.name, list(seen), columns)

    def _object(self, data: bytes, row: int, line: int) -> Mapping[str, Any] | BadRow:
        try:
            text, is_utf8 = data.decode(), True
        except UnicodeDecodeError:
            text, is_utf8 = data.decode(errors="surrogateescape"), False
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            self._refuse_array(row, text, None)
            reason = f"no JSON ({first_line(error)})" if is_utf8 else "neither UTF-8 nor JSON"
            return BadRow(self.name, row, None, reason, line)
        if not isinstance(value, dict):
            self._refuse_array(row, text, value)
            return BadRow(self.name, row, None, f"a JSON object expected, got {_json_type(value)}", line)
        return value if is_utf8 else BadRow(self.name, row, *not_utf8(value), line)

    def _refuse_array(self, row: int, text: str, value: Any) -> None:
        broken_or_objects = value is None or (isinstance(value, list) and value and isinstance(value[0], dict))
        if row == 1 and text.lstrip().startswith("[") and broken_or_objects:
            raise DataError(f"{self.name}: a JSON array; JSONL has one object per line and nothing around them")


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


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed where they are gzip by content, with DataError for what cannot be read."""
    try:
        with io.BufferedReader(io.FileIO(path), _BUFFER_BYTES) as packed:
            if path.suffix.lower() == ".gz" or packed.peek(2)[:2] == _GZIP_MARK:
                with gzip.GzipFile(fileobj=packed) as unpacked, io.BufferedReader(unpacked, _BUFFER_BYTES) as file:
                    yield _refuse_utf16(path, file)
            else:
                yield _refuse_utf16(path, packed)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: damaged gzip file ({first_line(error)})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)})") from error


def _refuse_utf16(path: Path, file: Any) -> IO[bytes]:
    if file.peek(2)[:2] in _UTF16_MARKS:
        raise DataError(f"{path}: UTF-16 text; save it as UTF-8")
    checked: IO[bytes] = file
    return checked


def text_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of every line of a text file, plain or gzip; DataError if it cannot be read."""
    with _opened(path) as file:
        for line, data in enumerate(_bounded(file, path), 1):
            yield line, data.removeprefix(_UTF8_MARK) if line == 1 else data


def _bounded(file: IO[AnyStr], path: Path) -> Iterator[AnyStr]:
    """The lines of `file`; DataError at one that is too long to be a row, before it fills the memory."""
    number = 0
    while data := file.readline(_LINE_LIMIT):
        number += 1
        if len(data) == _LINE_LIMIT:
            raise DataError(
                f"{path}: line {number} is longer than {_LINE_LIMIT >> 20} MiB, so not a row; is the file of another "
                "format (data.format), or without line ends?"
            )
        yield data

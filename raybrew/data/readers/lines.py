"""Text files as bytes of UTF-8: unpacked, of any encoding, line by line and never more than a row can be."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, AnyStr

from raybrew.data.readers.records import first_line
from raybrew.errors import DataError

__all__ = ["UTF8_MARK", "bounded", "opened", "text_lines"]

_BUFFER_BYTES = 1 << 20
_GZIP_MARK = b"\x1f\x8b"
UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
#: Bytes, of CSV characters.
_LINE_LIMIT = 1 << 26


@contextlib.contextmanager
def opened(path: Path, name: str, encoding: str | None) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked if gzip by content, in UTF-8 if of another `encoding`; DataError if unreadable."""
    try:
        with io.BufferedReader(io.FileIO(path), _BUFFER_BYTES) as packed:
            if path.suffix.lower() == ".gz" or packed.peek(2)[:2] == _GZIP_MARK:
                with gzip.GzipFile(fileobj=packed) as unpacked, io.BufferedReader(unpacked, _BUFFER_BYTES) as file:
                    yield _as_utf8(name, file, encoding)
            else:
                yield _as_utf8(name, packed, encoding)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{name}: damaged gzip file ({first_line(error)})") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({first_line(error)})") from error
    except UnicodeError as error:
        raise DataError(f"{name}: not {encoding}, as data.encoding says ({first_line(error)})") from error


def _as_utf8(name: str, file: io.BufferedReader[Any], encoding: str | None) -> IO[bytes]:
    if encoding is not None:
        return io.BufferedReader(_Recoded(file, encoding), _BUFFER_BYTES)
    if file.peek(2)[:2] in _UTF16_MARKS:
        raise DataError(f"{name}: UTF-16 text; set data.encoding=utf-16, or save it as UTF-8")
    return file


class _Recoded(io.RawIOBase):
    """The text of a file of another encoding as bytes of UTF-8."""

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        self._text = io.TextIOWrapper(file, encoding, newline="")
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._rest = self._rest or self._text.read(_BUFFER_BYTES).encode()
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def text_lines(path: Path, name: str | None = None, encoding: str | None = None) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of every line of a text file, plain or gzip; DataError if it cannot be read.

    Messages call it `name`, by default its path.
    """
    with opened(path, name or str(path), encoding) as file:
        for line, data in enumerate(bounded(file, name or str(path)), 1):
            yield line, data.removeprefix(UTF8_MARK) if line == 1 else data


def bounded(file: IO[AnyStr], name: str) -> Iterator[AnyStr]:
    """The lines of `file`; DataError at one that is too long to be a row, before it fills the memory."""
    number = 0
    while data := file.readline(_LINE_LIMIT):
        number += 1
        if len(data) == _LINE_LIMIT:
            raise DataError(
                f"{name}: line {number} is longer than {_LINE_LIMIT >> 20} MiB, so not a row; is the file of another "
                "format (data.format), or without line ends?"
            )
        yield data

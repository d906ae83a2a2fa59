"""Checks of texts in source rows that all tasks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raybrew.tasks.base import BadValue

__all__ = ["checked_text", "text_of"]


def text_of(raw: Mapping[str, Any], column: str) -> str:
    """The text in `column` of a source row; BadValue where it is missing, empty or none."""
    if column not in raw:
        raise BadValue(column, f"missing; the row has {', '.join(map(repr, raw)) or 'no columns'}")
    value = raw[column]
    if value is None:
        raise BadValue(column, "empty")
    if not isinstance(value, str):
        raise BadValue(column, f"text expected, got {type(value).__name__}")
    if not value.strip():
        raise BadValue(column, "empty")
    if "\ufffd" in value:
        raise BadValue(column, "holds U+FFFD, the mark left where bytes of another encoding were read as UTF-8")
    return checked_text(value, column)


def checked_text(value: str, column: str) -> str:
    """`value` itself; BadValue for what no tokenizer or file format takes."""
    if "\0" in value:
        raise BadValue(column, "holds a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise BadValue(column, f"holds U+{code:04X}, half of a surrogate pair, which is no character") from None
    return value

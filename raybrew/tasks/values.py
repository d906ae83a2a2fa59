"""Values of source rows: texts, labels by name or number, and the id that a hash of the content gives an example."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import xxhash

from raybrew.tasks.base import BadValue, Labels

__all__ = ["checked_text", "example_id", "is_position", "label_id", "name_or_number", "text_of"]


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


def example_id(content: Sequence[str]) -> bytes:
    """16 bytes that name an example by its content.

    xxh3_128 of every text's UTF-8, each preceded by its length in bytes (8 bytes, little-endian), so that no two
    contents run together.
    """
    parts = []
    for text in content:
        data = text.encode()
        parts += [len(data).to_bytes(8, "little"), data]
    return xxhash.xxh3_128_digest(b"".join(parts))


#: `int` alone would also take "1_0" and digits of other scripts. pandas writes 1.0 where a column lacks some labels.
_WHOLE_NUMBER = re.compile(r"([+-]?[0-9]{1,18})(?:\.0*)?")
#: Truth values as numbers, where there are two labels.
_TRUTH = {"false": 0, "true": 1}


def name_or_number(value: object, column: str) -> str | int | None:
    """One label as it stands in a source: a name, a number, or None where there is none; BadValue otherwise."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if not value.is_integer():
            raise BadValue(column, f"{value!r} is no class number; a label is a name or a whole number")
        return int(value)
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        return checked_text(value, column).strip()
    raise BadValue(column, f"a label is text or a whole number, got {type(value).__name__}")


def label_id(value: str | int | None, labels: Labels, names_of_source: Sequence[str] | None, column: str) -> int:
    """Index of `value` into `labels`, -1 for none; BadValue names what is known."""
    if value is None:
        return -1
    if isinstance(value, int) and names_of_source is not None:
        if value == -1:
            return -1  # the hub's mark of a hidden label
        if not 0 <= value < len(names_of_source):
            raise BadValue(column, f"class number {value} is outside 0..{len(names_of_source) - 1}")
        value = names_of_source[value]
    if str(value) in labels.names:
        return labels.names.index(str(value))
    # Models and data often differ in case only (POSITIVE, positive); a name that fits two labels fits none.
    alike = [index for index, name in enumerate(labels.names) if name.casefold() == str(value).casefold()]
    if len(alike) == 1:
        return alike[0]
    number = _as_number(value)
    if number is None and len(labels) == 2:
        number = _TRUTH.get(str(value).casefold())
    if number is not None:
        # "0" and 0 mean the first class unless some class is itself named by a number, such as 0.0.
        numbers = [_as_number(name) for name in labels.names]
        if numbers.count(number) == 1:
            return numbers.index(number)
        if number == -1:
            return -1
        if 0 <= number < len(labels) and not any(known is not None for known in numbers):
            return number
    allowed = ", ".join(labels.names[:20]) + (", ..." if len(labels) > 20 else "")
    raise BadValue(column, f"unknown label {value!r}; known labels: {allowed}")


def is_position(value: str | int | None, name: str) -> bool:
    """Whether a label that was taken for the class `name` is the number of that class, not its name in some form."""
    if str(value).casefold() == name.casefold():
        return False
    return _as_number(name) is None and (_as_number(value) is not None or str(value).casefold() in _TRUTH)


def _as_number(value: str | int | None) -> int | None:
    if value is None or isinstance(value, int):
        return value
    found = _WHOLE_NUMBER.fullmatch(value)
    return None if found is None else int(found[1])

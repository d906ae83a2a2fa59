"""JSON files of runs, and their sections as frozen dataclasses: read leniently, written without loss.

A file may be an older version's, or damaged: a value of another type than its field's is read as missing, and whatever
is in a section stays there when it is written again.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["Section", "bounded_text", "integer", "number", "numbers", "read_object"]

#: Bytes of one file of a run, the metrics left aside.
_MAX_BYTES = 1 << 26

_Section = TypeVar("_Section", bound="Section")
_Read = Callable[[Any], Any]
_NEW: Mapping[str, Any] = {}


def number(value: Any) -> float | None:
    """`value` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def integer(value: Any) -> int | None:
    """`value` if it is a whole number, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def numbers(value: Any) -> dict[str, float]:
    """The finite numbers of a mapping by name."""
    named = value.items() if isinstance(value, Mapping) else ()
    return {str(name): found for name, item in named if (found := number(item)) is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A JSON object with known keys. A field without a default is always written, null too; others once known."""

    raw: Mapping[str, Any] = dataclasses.field(default_factory=lambda: _NEW, repr=False, compare=False)
    """The object as it was read; of one that was not read `_NEW`."""

    @classmethod
    def read(cls: type[_Section], value: Any) -> _Section:
        """`value` as read from a file; without known fields where it is no mapping."""
        raw = value if isinstance(value, Mapping) else {}
        return cls(raw=raw, **{name: read(raw.get(name)) for name, read in _readers(cls).items()})  # type: ignore[arg-type]

    def plain(self) -> dict[str, Any]:
        """As JSON: what was read, and the fields that were set since."""
        found, readers = dict(self.raw), _readers(type(self))  # type: ignore[arg-type]
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            always = self.raw is _NEW and field.default is field.default_factory is dataclasses.MISSING
            if always or value != readers[field.name](self.raw.get(field.name)):
                found[field.name] = _plain(value)
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, Section):
        return value.plain()
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@functools.cache  # mypy takes the hash of instances for that of their class
def _readers(section: Any) -> dict[str, _Read]:
    """Name of each field but `raw` -> how its value is read."""
    hints = typing.get_type_hints(section)
    return {field.name: _reader(hints[field.name]) for field in dataclasses.fields(section)[1:]}


def _reader(hint: Any) -> _Read:
    """How a value of this type is read: None, or an empty one, for values of other types."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        inner = next(part for part in typing.get_args(hint) if part is not type(None))
        read = _reader(inner)
        return read if inner in _PLAIN else lambda value: read(value) if isinstance(value, Mapping) and value else None
    if hint in _PLAIN:
        return _PLAIN[hint]
    if isinstance(hint, type) and issubclass(hint, Section):
        return hint.read
    first, second = typing.get_args(hint)
    inner = first if second is Ellipsis else second
    read = inner.read if isinstance(inner, type) and issubclass(inner, Section) else lambda value: value
    if second is Ellipsis:
        return lambda value: tuple(map(read, value)) if isinstance(value, list | tuple) else ()
    if inner is float:
        return numbers
    return lambda value: {str(name): read(item) for name, item in value.items()} if isinstance(value, Mapping) else {}


_PLAIN: dict[Any, _Read] = {
    int: integer,
    float: number,
    str: lambda value: value if isinstance(value, str) else None,
    bool: bool,
}


def bounded_text(path: Path) -> str:
    """The text of a file of a run; ValueError if it is far larger than those are."""
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"larger than {_MAX_BYTES >> 20} MiB, so not what raybrew writes there")
    return path.read_text(encoding="utf-8")


def read_object(path: Path, problems: list[str], needed: bool = True) -> dict[str, Any] | None:
    """The JSON object in a file; None without one, with a sentence in `problems` if it is `needed` or unreadable."""
    try:
        value = json.loads(bounded_text(path))
    except FileNotFoundError:
        if needed:
            problems.append(f"{path.name} is missing")
        return None
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return None
    if not isinstance(value, dict):
        problems.append(f"{path.name} holds no JSON object")
        return None
    return value

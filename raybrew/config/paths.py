"""Paths in experiments: whether something can be, or is, where they lead."""

from __future__ import annotations

from pathlib import Path

from raybrew.config.problems import shown
from raybrew.errors import Problem

__all__ = ["absolute", "exists", "unusable_path"]

#: Bytes of the name of a file or folder.
_MAX_NAME = 255


def unusable_path(key: str, text: str | None) -> list[Problem]:
    """A path at which no machine can have anything."""
    if text is None:
        return []
    try:
        parts = Path(text).expanduser().parts
    except RuntimeError:
        return [Problem(key, f"given {shown(text)}; there is no such user", "missing")]
    if text and all(len(part.encode()) <= _MAX_NAME for part in parts):
        return []
    return [Problem(key, f"given {shown(text)}; allowed: a path whose names have 1 to {_MAX_NAME} bytes")]


def exists(text: str, folder: bool = False) -> bool:
    """Whether there is such a file or folder; False for what cannot be the name of one."""
    try:
        path = Path(text).expanduser()
        return path.is_dir() if folder else path.exists()
    except (OSError, RuntimeError):  # a name too long, an unknown ~user
        return False


def absolute(text: str) -> Path:
    """Where it was looked for."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        return Path(text)

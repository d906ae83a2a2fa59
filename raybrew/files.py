"""Files that appear whole or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["json_bytes", "make_storage", "replacing", "write_bytes", "write_json", "write_text"]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write a file to, which takes the name `path` when the block ends well.

    Its content is on the disk by then. A block that fails, or an OSError such as a full disk, leaves nothing behind; a
    process that is killed leaves a hidden file that ends in `.tmp`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file."""
    with replacing(path) as new:
        new.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a small text file as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON."""
    write_bytes(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """`value` as the JSON of our files."""
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def make_storage(root: Path) -> None:
    """The folder of runs and stores, if it is new, as one that `ray job submit --working-dir .` does not take along."""
    with contextlib.suppress(OSError):  # whoever writes to it says what is wrong with it
        root.mkdir(parents=True)
        (root / ".rayignore").write_text("# runs and stores stay where they are\n*\n", encoding="utf-8")

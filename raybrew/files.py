"""Files that appear whole or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from raybrew.errors import EnvironmentProblem, RunLocked

__all__ = ["json_bytes", "locked_folder", "make_storage", "replacing", "write_bytes", "write_json", "write_text"]


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


@contextlib.contextmanager
def locked_folder(folder: Path, what: str, is_finished: Callable[[], bool]) -> Iterator[None]:
    """Hold the `folder` of a run or sweep; RunLocked if another process is at it.

    What is finished is also read where nothing can be written: there is no other process to keep off.
    """
    make_storage(folder.parents[1])
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise RunLocked(f"{folder}: another process is working on this {what}") from error
    except OSError as error:
        if not is_finished():
            raise EnvironmentProblem(f"cannot write the {what} folder {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()

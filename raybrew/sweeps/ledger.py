"""The ledger of a sweep: appended line by line, each on the disk before the sweep goes on. Read by `reports.sweeps`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from raybrew.errors import EnvironmentProblem, RunLocked
from raybrew.files import make_storage
from raybrew.records.ledger import LEDGER, read_ledger
from raybrew.secrets import scrub
from raybrew.tracking.jsonl import MetricsLog

__all__ = ["Ledger"]

#: Keys of a line whose values are text for people, from a command line or a library.
_WORDS = frozenset({"command", "error", "reason"})


class Ledger:
    """One writer; any number of readers. `at` of each line is the time in seconds since 1970."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._log = MetricsLog(folder / LEDGER)

    def records(self) -> list[dict[str, Any]]:
        """All whole lines so far; RunError for one that no sweep has written."""
        return read_ledger(self.folder / LEDGER)

    def write(self, kind: str, **values: Any) -> dict[str, Any]:
        """Append one line and bring it to the disk.

        Secrets leave what people wrote or libraries said. Values stay whole: a sweep is continued from them, and an
        experiment with a secret in it is refused before.
        """
        words = {key: scrub(value) for key, value in values.items() if key in _WORDS}
        record = {"kind": kind, "at": round(time.time(), 3), **values, **words}
        self._log.write(record)
        self._log.sync()
        return record

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the sweep; RunLocked if another process is at it."""
        make_storage(self.folder.parents[1])
        lock = FileLock(self.folder / ".lock", timeout=0)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise RunLocked(f"{self.folder}: another process is working on this sweep") from error
        except OSError as error:
            raise EnvironmentProblem(f"cannot write {self.folder}: {error.strerror or error}") from error
        try:
            yield
        finally:
            self._log.close()
            lock.release()

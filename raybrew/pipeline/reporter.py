"""How verbs tell a person what they do: lines, and progress read from a run's own metrics file.

Training may happen in other processes, on other nodes; its metrics.jsonl is where all of them are visible, so progress
is followed there, by a thread beside the waiting verb.
"""

from __future__ import annotations

import datetime
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

__all__ = ["LineReporter", "QuietReporter", "Reporter", "follow_metrics"]

_POLL_SECONDS = 0.25
#: A rate over less time says nothing: several events may have been read at once.
_PACE_SECONDS = 1.0


class Reporter(Protocol):
    """Shows what a verb does. Implementations: lines, nothing, or (in the command line) bars."""

    def say(self, message: str) -> None:
        """One line."""
        ...

    def bar(self, title: str, total: int, unit: str) -> Any:
        """Context manager whose value is called with (done, text) as work proceeds."""
        ...


class QuietReporter:
    """Shows nothing."""

    def say(self, message: str) -> None:
        return None

    @contextmanager
    def bar(self, title: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
        yield lambda done, text: None


class LineReporter:
    """Single lines through `write`: for logs, pipes and notebooks. Progress takes a line at each tenth of the way."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write

    def say(self, message: str) -> None:
        self.write(message)

    @contextmanager
    def bar(self, title: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
        shown, first = -1, None

        def update(done: int, text: str) -> None:
            nonlocal shown, first
            now = time.monotonic()
            if first is None:  # what a continued run had done already says nothing of its speed
                first = (done, now)
            tenth = 10 * done // max(total, 1)
            if tenth > shown:
                shown = tenth
                pace = _pace(done - first[0], total - done, now - first[1], unit)
                self.write("  ".join(part for part in (f"{title}: {done}/{total} {unit}", pace, text) if part))

        yield update


def _pace(done: int, left: int, seconds: float, unit: str) -> str:
    """Rate and remaining time, such as `812.4 rows/s, 0:01:10 left`; empty while nothing is known."""
    if done <= 0 or seconds < _PACE_SECONDS:
        return ""
    rate = done / seconds
    return f"{rate:.1f} {unit}/s" + (f", {datetime.timedelta(seconds=round(left / rate))} left" if left > 0 else "")


@contextmanager
def follow_metrics(path: Path, reporter: Reporter, title: str, num_steps: int) -> Iterator[None]:
    """While the body runs, show what is appended to the metrics file at `path`: a bar of steps, and events as lines."""
    tail = _Tail(path)
    done = threading.Event()
    with reporter.bar(title, num_steps, "steps") as update:
        thread = threading.Thread(target=_follow, args=(tail, reporter, update, done), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join(timeout=5)


def _follow(tail: _Tail, reporter: Reporter, update: Callable[[int, str], None], done: threading.Event) -> None:
    loss, metric = "", ""
    while True:
        finished = done.wait(_POLL_SECONDS)
        for record in tail.new_records():
            if record.get("kind") == "event":
                if record["event"] not in ("started", "finished"):
                    reporter.say(f"  {record['message']}")
                continue
            if record.get("kind") == "train":
                loss = f"loss {record['loss']:.4f}" if isinstance(record["loss"], float) else f"loss {record['loss']}"
                loss = f"{record['stage']}: {loss}" if "stage" in record else loss
            elif record.get("kind") == "eval":
                named = [(name, value) for name, value in record.items() if name.startswith("eval/")]
                if named:  # first what chooses the checkpoint
                    name = "eval loss" if named[0][0] == "eval/loss" else named[0][0].removeprefix("eval/")
                    metric = f"{name} {float(named[0][1]):.4f}"  # NaN is written as text
            update(int(record["step"]), "  ".join(part for part in (loss, metric) if part))
        if finished:
            return


class _Tail:
    """What is appended to a JSON lines file from now on.

    A run that resumes may replace the file by one cut back to its checkpoint; then reading starts at the line that
    announces the resumption.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity, self.offset = self._stat()

    def new_records(self) -> list[dict[str, Any]]:
        """Whole new lines."""
        identity, size = self._stat()
        replaced = identity != self.identity or size < self.offset
        if replaced:
            self.identity, self.offset = identity, 0
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read()
        except OSError:
            return []
        end = data.rfind(b"\n") + 1
        self.offset += end
        records: list[dict[str, Any]] = []
        for line in data[:end].splitlines():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if replaced and record.get("event") in ("started", "resumed"):
                records.clear()
            records.append(record)
        return records

    def _stat(self) -> tuple[int | None, int]:
        try:
            found = self.path.stat()
        except OSError:
            return None, 0
        return found.st_ino, found.st_size

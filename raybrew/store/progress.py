"""How far a capture is, told while it runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from raybrew.store.plan import ShardTask
from raybrew.store.worker import ShardResult

__all__ = ["CaptureProgress", "ProgressReporter"]


@dataclasses.dataclass(frozen=True)
class CaptureProgress:
    """Shards committed, and rows that went through the teacher (those of committed shards where no more is known).

    `tokens` and `bytes_written` are of committed shards, `seconds` since work began. `note` is news for a person.
    """

    done_shards: int
    total_shards: int
    done_rows: int
    total_rows: int
    tokens: int
    bytes_written: int
    seconds: float
    note: str | None = None


class ProgressReporter:
    """Adds up what workers tell and passes it on; used by one thread."""

    def __init__(self, tasks: Sequence[ShardTask], listener: Callable[[CaptureProgress], None] | None) -> None:
        self._listener = listener
        self._start = time.perf_counter()
        self._state = CaptureProgress(0, len(tasks), 0, sum(task.rows for task in tasks), 0, 0, 0.0)
        self._committed_rows = 0
        self._notes: set[str] = set()

    @property
    def shards_done(self) -> int:
        """Shards that were committed since work began."""
        return self._state.done_shards

    def rows(self, done: int) -> None:
        """`done` rows went through the teacher so far."""
        if done > self._state.done_rows:
            self._tell(done_rows=done)

    def shard(self, result: ShardResult) -> None:
        """One more shard is committed."""
        state = self._state
        self._committed_rows += result.rows
        news = [note for note in result.notes if note not in self._notes]
        self._notes.update(news)
        self._tell(
            done_shards=state.done_shards + 1,
            done_rows=max(state.done_rows, self._committed_rows),
            tokens=state.tokens + result.tokens,
            bytes_written=state.bytes_written + result.bytes,
            note="; ".join(news) or None,
        )

    def _tell(self, **changes: Any) -> None:
        seconds = time.perf_counter() - self._start
        self._state = dataclasses.replace(self._state, **{"note": None, "seconds": seconds, **changes})
        if self._listener is not None:
            self._listener(self._state)

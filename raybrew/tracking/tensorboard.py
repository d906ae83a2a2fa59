"""TensorBoard event files in `<run folder>/tensorboard`, written without torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raybrew.tracking.base import Status, scalars

__all__ = ["TensorBoardTracker"]


class TensorBoardTracker:
    """Scalars over steps. A resumed run opens a new file that tells TensorBoard to hide what it repeats."""

    name = "tensorboard"

    def __init__(self) -> None:
        self._writer: Any = None
        self._hide_later_steps = False

    def start(self, run_id: str, config: Mapping[str, Any], folder: Path, resume: bool) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(folder / "tensorboard"))
        self._hide_later_steps = resume

    def log(self, record: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = scalars(record)
        if self._writer is None or not values:
            return
        step, now = int(record["step"]), time.time()
        if self._hide_later_steps:
            # A dead process may have written steps beyond its checkpoint; the first new step says which.
            self._writer.add_event(Event(wall_time=now, step=step, session_log=SessionLog(status=SessionLog.START)))
            self._hide_later_steps = False
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._writer.add_event(Event(wall_time=now, step=step, summary=summary))

    def finish(self, status: Status) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        return None

"""TensorBoard event files, written without torch; those of runs lie in `<run folder>/tensorboard`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raybrew.tracking.base import Status, scalars

__all__ = ["EventWriter", "TensorBoardTracker", "tensorboard_tracker"]


class EventWriter:
    """Scalars over steps in one event file of `folder`.

    With `resume` its first step hides later ones of older files: a dead process may have written beyond its checkpoint.
    """

    def __init__(self, folder: Path, resume: bool) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(folder))
        self._hide_later_steps = resume

    def add(self, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary

        now = time.time()
        if self._hide_later_steps:
            self._writer.add_event(Event(wall_time=now, step=step, session_log=SessionLog(status=SessionLog.START)))
            self._hide_later_steps = False
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
        self._writer.add_event(Event(wall_time=now, step=step, summary=summary))

    def close(self) -> None:
        self._writer.close()


class TensorBoardTracker:
    """Mirrors the records of a run."""

    name = "tensorboard"

    def __init__(self) -> None:
        self._writer: EventWriter | None = None

    def start(self, run_id: str, config: Mapping[str, Any], folder: Path, resume: bool) -> None:
        self._writer = EventWriter(folder / "tensorboard", resume)

    def log(self, record: Mapping[str, Any]) -> None:
        values = scalars(record)
        if self._writer is not None and values:
            self._writer.add(int(record["step"]), values)

    def finish(self, status: Status) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        return None


def tensorboard_tracker(section: object, **of_run: str) -> TensorBoardTracker:
    """The tracker: nothing in it depends on the experiment."""
    return TensorBoardTracker()

"""All trackers of a run behind one object that never raises."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raybrew.config.tracking import TrackingConfig
from raybrew.secrets import scrub
from raybrew.tracking.base import Status, Tracker
from raybrew.tracking.tensorboard import TensorBoardTracker
from raybrew.tracking.wandb import WandbTracker

__all__ = ["SafeTrackers", "build_trackers"]

logger = logging.getLogger("raybrew.tracking")


def build_trackers(config: TrackingConfig, *, experiment: str, job_type: str, rank: int = 0) -> SafeTrackers:
    """The trackers that `config` asks for; none on ranks other than 0, whose records would be doubles.

    `experiment` is the default W&B group, `job_type` the verb ("distill", "finetune").
    """
    trackers: list[Tracker] = []
    if rank == 0 and config.tensorboard:
        trackers.append(TensorBoardTracker())
    if rank == 0 and config.wandb is not None:
        trackers.append(WandbTracker(config.wandb, experiment=experiment, job_type=job_type))
    return SafeTrackers(trackers)


class SafeTrackers:
    """Passes every call to every tracker. One that raises is named in one log line and not called again."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = list(trackers)

    @property
    def names(self) -> tuple[str, ...]:
        """The trackers that still work."""
        return tuple(tracker.name for tracker in self._trackers)

    def start(self, run_id: str, config: Mapping[str, Any], folder: Path, resume: bool = False) -> None:
        """Open all mirrors; secrets are taken out of `config` first."""
        plain = scrub(config)
        self._each("start", lambda tracker: tracker.start(run_id, plain, Path(folder), resume))

    def log(self, record: Mapping[str, Any]) -> None:
        """Mirror one record, as given to `MetricsLog.write`."""
        self._each("log", lambda tracker: tracker.log(record))

    def finish(self, status: Status) -> None:
        """Close all mirrors."""
        self._each("finish", lambda tracker: tracker.finish(status))

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """The ids of all working trackers by tracker name, for the checkpoint."""
        state: dict[str, dict[str, Any]] = {}
        self._each("state_dict", lambda tracker: state.update({tracker.name: dict(tracker.state_dict())}))
        return state

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Hand ids back, before `start`."""
        self._each("load_state_dict", lambda tracker: tracker.load_state_dict(state.get(tracker.name, {})))

    def _each(self, what: str, call: Callable[[Tracker], None]) -> None:
        for tracker in tuple(self._trackers):
            try:
                call(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                text = " ".join(str(scrub(str(error))).split())[:300]
                logger.warning(
                    "tracker %s failed in %s and is off for the rest of this run (metrics.jsonl goes on): %s: %s",
                    tracker.name,
                    what,
                    type(error).__name__,
                    text,
                )

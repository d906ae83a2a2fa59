"""All trackers of a run behind one object that never raises."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raybrew.catalog.target import load_target
from raybrew.config.tracking import TrackingConfig
from raybrew.secrets import scrub
from raybrew.tracking.base import Status, Tracker

__all__ = ["SafeTrackers", "add_test", "build_trackers"]

logger = logging.getLogger("raybrew.tracking")


def build_trackers(
    config: TrackingConfig,
    *,
    experiment: str,
    job_type: str,
    rank: int = 0,
    summaries: bool = False,
    otherwise: str = "metrics.jsonl goes on",
) -> SafeTrackers:
    """The trackers that `config` asks for; none on ranks other than 0, whose records would be doubles.

    `experiment` is the default group, `job_type` the verb ("distill", "finetune"). With `summaries` only those that
    have runs for more than training (SummaryTracker). `otherwise` says what stays when one fails.
    """
    trackers: list[Tracker] = [
        load_target(one.spec.target)(one.section, experiment=experiment, job_type=job_type)
        for one in (config.asked if rank == 0 else ())
        if one.spec.summaries or not summaries
    ]
    return SafeTrackers(trackers, otherwise)


def add_test(config: TrackingConfig, *, experiment: str, job_type: str, folder: Path, test: Mapping[str, Any]) -> None:
    """Add what a finished run reaches on data.test to its mirrors, as `test/<metric>`.

    Nothing where a tracker does not know the run. It never fails a run that is done.
    """
    trackers = build_trackers(
        config, experiment=experiment, job_type=job_type, summaries=True, otherwise="summary.json has data.test"
    )
    trackers.reopen(folder)
    values = {f"test/{name}": value for name, value in test["metrics"].items()}
    trackers.summarise({f"test/{test['metric']}": test["value"], **values, "test/rows": test["rows"]})
    trackers.finish("done")


class SafeTrackers:
    """Passes every call to every tracker. One that raises is named in one log line and not called again."""

    def __init__(self, trackers: Sequence[Tracker], otherwise: str = "metrics.jsonl goes on") -> None:
        self._trackers = list(trackers)
        self._otherwise = otherwise

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

    def reopen(self, folder: Path) -> None:
        """Open the mirrors of the finished run in `folder`, and leave out those that there are none of."""
        known: list[Tracker] = []
        self._each("reopen", lambda tracker: known.extend([tracker] if tracker.reopen(folder) else []))
        self._trackers = known

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Values of the run as a whole."""
        self._each("summarise", lambda tracker: tracker.summarise(values))

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table, one row per mapping."""
        self._each("log_table", lambda tracker: tracker.log_table(name, rows))

    def log_page(self, name: str, path: Path) -> None:
        """An HTML file, shown as it is."""
        self._each("log_page", lambda tracker: tracker.log_page(name, path))

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

    def _each(self, what: str, call: Callable[[Any], None]) -> None:
        for tracker in tuple(self._trackers):
            try:
                call(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                text = " ".join(str(scrub(str(error))).split())[:300]
                logger.warning(
                    "tracker %s failed in %s and is off for the rest of this run (%s): %s: %s",
                    tracker.name,
                    what,
                    self._otherwise,
                    type(error).__name__,
                    text,
                )

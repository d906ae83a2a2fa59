"""What a tracker is: a mirror of `metrics.jsonl` in somebody else's tool."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

__all__ = ["AXES", "Status", "SummaryTracker", "Tracker", "scalars"]

#: How a run ended.
Status = Literal["done", "interrupted", "failed"]

#: Keys of a record that say where it stands, not what was measured.
AXES = frozenset({"step", "epoch", "time", "kind", "event", "message"})


@runtime_checkable
class Tracker(Protocol):
    """Receives the records of one run. May raise anything: `SafeTrackers` keeps that away from training."""

    name: str

    def start(self, run_id: str, config: Mapping[str, Any], folder: Path, resume: bool) -> None:
        """Open the mirror of the run in `folder`; `resume` says that earlier records exist already."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Mirror one record, in the form of a line of `metrics.jsonl`."""

    def finish(self, status: Status) -> None:
        """Write out what is left and close."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to continue the same mirror: ids, as plain values."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take `state` back, before `start`."""


@runtime_checkable
class SummaryTracker(Tracker, Protocol):
    """A tracker that has a run for each sweep too, and takes what is known after training."""

    def reopen(self, folder: Path) -> bool:
        """Open the mirror of the finished run in `folder`; False if there is none."""

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Values of the run as a whole."""

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table, one row per mapping."""

    def log_page(self, name: str, path: Path) -> None:
        """An HTML file, shown as it is."""


def scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The measured numbers of a train or eval record by name: `train/loss`, `train/loss/kd`, `eval/accuracy`."""
    kind = record.get("kind")
    if kind not in ("train", "eval"):
        return {}
    found = {}
    for name, value in record.items():
        if name in AXES or isinstance(value, bool) or not isinstance(value, numbers.Real):
            continue
        found[name if name.startswith(f"{kind}/") else f"{kind}/{name}"] = float(value)
    return found

"""The trials of a sweep with what the conductor asks of them all the time, kept up to date instead of counted anew.

A sweep asks after each event: how many configurations are there, which trials has this one, what has been spent?
Looking through all trials for each answer would take the driver of a sweep of ten thousand trials most of its time.
"""

from __future__ import annotations

import bisect
from collections import Counter, deque
from collections.abc import KeysView, Mapping
from typing import Any

from raybrew.records.trials import CANDIDATE, TrialRecord, canonical

__all__ = ["OVER", "Trials", "value_of"]

#: Statuses of a trial that has ended.
OVER = ("done", "stopped", "failed")
#: Ended trials that are kept in order of their value.
_BEST = 8


class Trials(dict[str, TrialRecord]):
    """Run -> trial, in the order in which trials were noted. Trials are added and replaced, never removed."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        """Trials by status."""
        self.seconds = 0.0
        """Of all trials, as far as they have ended."""
        self.gpu_seconds = 0.0
        # role -> canonical values -> runs
        self._runs: dict[str, dict[str, dict[str, None]]] = {}
        self._keys: dict[str, str] = {}
        self._touched: deque[str] = deque()
        self._best: list[tuple[float, int, str]] = []

    def __setitem__(self, run: str, trial: TrialRecord) -> None:
        before = self.get(run)
        super().__setitem__(run, trial)
        if before is not None:
            self._count(before, -1)
        self._count(trial, 1)
        self._group(trial, before)
        if before is None or (before.status, before.lost) != (trial.status, trial.lost):
            self._touched.append(run)
        self._rank(trial, before)

    def configurations(self) -> list[dict[str, Any]]:
        """Values of the search so far, in the order of their first trials."""
        firsts = [self[next(iter(runs))] for runs in self._runs.get(CANDIDATE, {}).values()]
        return [trial.values for trial in sorted(firsts, key=lambda trial: trial.number)]

    @property
    def known(self) -> KeysView[str]:
        """The configurations of the search as canonical texts."""
        return self._runs.get(CANDIDATE, {}).keys()

    def with_values(self, values: Mapping[str, Any], role: str) -> list[TrialRecord]:
        """All seeds of a configuration, in the order of trials."""
        found = [self[run] for run in self._runs.get(role, {}).get(canonical(values), ())]
        return sorted(found, key=lambda trial: trial.number)

    def take_touched(self) -> list[TrialRecord]:
        """Trials that are new, changed status or lost their process since this was last asked.

        Another thread may note some more.
        """
        found: dict[str, None] = {}
        while self._touched:
            found[self._touched.popleft()] = None
        return [self[run] for run in found]

    def best(self) -> list[TrialRecord]:
        """Up to eight trials that have ended: finished ones from good to bad, then others."""
        return [self[run] for *_, run in list(self._best)]

    def _count(self, trial: TrialRecord, sign: int) -> None:
        self.counts[trial.status] += sign
        self.seconds += sign * (trial.seconds or 0.0)
        self.gpu_seconds += sign * (trial.seconds or 0.0) * trial.gpus

    def _group(self, trial: TrialRecord, before: TrialRecord | None) -> None:
        if before is not None and (before.role, before.values) == (trial.role, trial.values):
            return
        run = trial.run
        if before is not None:
            role, key = before.role, self._keys[run]
            del self._runs[role][key][run]
            if not self._runs[role][key]:
                del self._runs[role][key]
        key = canonical(trial.values)
        self._keys[run] = key
        self._runs.setdefault(trial.role, {}).setdefault(key, {})[run] = None

    def _rank(self, trial: TrialRecord, before: TrialRecord | None) -> None:
        if before is not None and before.status in OVER:
            # Rare: it runs again. Whoever was pushed out by it must come back.
            over = (other for other in self.values() if other.status in OVER)
            self._best = sorted(map(_place, over))[:_BEST]
        elif trial.status in OVER:
            bisect.insort(self._best, _place(trial))
            del self._best[_BEST:]


def value_of(trial: TrialRecord) -> float:
    """The metric of a trial: its own, or the best so far; NaN for none."""
    if trial.value is not None:
        return trial.value
    return max((value for _, value in trial.reports), default=float("nan"))


def _place(trial: TrialRecord) -> tuple[float, int, str]:
    value = value_of(trial)
    shown = trial.status == "done" and value == value
    return -value if shown else float("inf"), trial.number, trial.run

"""Ray Tune's schedulers, for configurations of the search only, and with what an earlier session had learnt."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from raybrew.catalog.target import load_target
from raybrew.config.sweep import SchedulerConfig
from raybrew.records.trials import CANDIDATE, TrialRecord

__all__ = ["asha", "build_scheduler", "median", "rungs"]


@dataclasses.dataclass(eq=False)
class _Run:
    """A trial of this or an earlier session as a scheduler knows it: by its run, which a continued trial keeps."""

    trial_id: str
    status: str = "RUNNING"
    percent: float = 0.0
    """How far it has reported."""


class CandidatesOnly(FIFOScheduler):
    """Asks `inner` about trials of the search; controls and further seeds of the best always run to their end.

    A trial that was interrupted goes on under the name of its run: what it reported then is not reported again, and
    takes no second place among others.
    """

    def __init__(self, inner: TrialScheduler) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inner = inner
        self._runs: dict[str, _Run] = {}

    def take_up(self, name: str, reports: Iterable[tuple[float, float]]) -> None:
        """What a trial reported in earlier sessions, as (share of its steps, metric)."""
        for share, value in reports:
            self._report(name, {"percent": 100 * share, "quality": value}, None)

    def _run(self, name: str, tune_controller: Any) -> _Run:
        if name not in self._runs:
            self._runs[name] = _Run(name)
            self.inner.on_trial_add(tune_controller, self._runs[name])  # type: ignore[arg-type]
        return self._runs[name]

    def _report(self, name: str, result: dict[str, Any], tune_controller: Any) -> str:
        run = self._run(name, tune_controller)
        if result["percent"] <= run.percent:
            return str(TrialScheduler.CONTINUE)  # repeated after its last checkpoint; it was decided to go on
        run.percent = result["percent"]
        return str(self.inner.on_trial_result(tune_controller, run, result))  # type: ignore[arg-type]

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if _may_stop(trial):
            self._run(trial.config["run"], tune_controller)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if not _may_stop(trial) or "percent" not in result:
            return str(TrialScheduler.CONTINUE)
        # A trial on its last step is finishing; stopping it would save nothing and lose its summary.
        action = self._report(trial.config["run"], result, tune_controller)
        return action if result["percent"] < 100 else str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        return None  # its last result was a report, or says how the trial ended

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        return None


def build_scheduler(config: SchedulerConfig, earlier: Iterable[TrialRecord] = ()) -> TrialScheduler:
    """The scheduler that `config` names; rungs of `earlier` trials are filled with what they reported."""
    target = config.row.target
    if not target:  # the conductor decides a population's rounds
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    scheduler = CandidatesOnly(load_target(target)(config))
    for trial in earlier:
        if trial.role == CANDIDATE and not trial.rerun:
            scheduler.take_up(trial.run, trial.reports)
    return scheduler


def asha(config: SchedulerConfig) -> TrialScheduler:
    """Asynchronous successive halving by shares of a trial's steps."""
    return AsyncHyperBandScheduler(
        time_attr="percent",
        metric="quality",
        mode="max",
        max_t=100,
        grace_period=100 * config.grace,  # type: ignore[arg-type]  # any number does
        reduction_factor=config.reduction_factor,
        stop_last_trials=False,
    )


def median(config: SchedulerConfig) -> TrialScheduler:
    """Stops what is below the median of the others."""
    return MedianStoppingRule(
        time_attr="percent",
        metric="quality",
        mode="max",
        grace_period=100 * config.grace,
        min_samples_required=config.min_trials,
        # Tune's rule would pause trials that it cannot judge yet, and a paused training would start anew.
        min_time_slice=math.inf,  # type: ignore[arg-type]
    )


def rungs(config: SchedulerConfig) -> list[float]:
    """Shares of a trial's steps at which `asha` decides."""
    found, share = [], config.grace
    while share < 1:
        found.append(share)
        share *= config.reduction_factor
    return found


def _may_stop(trial: Any) -> bool:
    return bool(trial.config.get("may_stop"))

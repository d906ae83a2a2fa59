"""Ray Tune's schedulers, for configurations of the search only, and with what an earlier session had learnt."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from raybrew.config.sweep import SchedulerConfig
from raybrew.reports.sweeps import CANDIDATE, TrialRecord

__all__ = ["build_scheduler", "rungs"]


@dataclasses.dataclass(frozen=True, eq=False)
class _Past:
    """A trial of an earlier session, as far as a scheduler asks."""

    trial_id: str
    status: str = "TERMINATED"


class CandidatesOnly(FIFOScheduler):
    """Asks `inner` about trials of the search; controls and further seeds of the best always run to their end."""

    def __init__(self, inner: TrialScheduler) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inner = inner

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:
        return True

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if _may_stop(trial):
            self.inner.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if not _may_stop(trial) or "percent" not in result:
            return str(TrialScheduler.CONTINUE)
        # A trial on its last step is finishing; stopping it would save nothing and lose its summary.
        action = str(self.inner.on_trial_result(tune_controller, trial, result))
        return action if result["percent"] < 100 else str(TrialScheduler.CONTINUE)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if _may_stop(trial) and "percent" in result:
            self.inner.on_trial_complete(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        return None


def build_scheduler(config: SchedulerConfig, earlier: Iterable[TrialRecord] = ()) -> TrialScheduler:
    """The scheduler that `config` names; rungs of `earlier` trials are filled with what they reported."""
    if config.kind in ("none", "pbt"):  # the conductor decides a population's rounds
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    if config.kind == "asha":
        inner: TrialScheduler = AsyncHyperBandScheduler(
            time_attr="percent",
            metric="quality",
            mode="max",
            max_t=100,
            grace_period=100 * config.grace,  # type: ignore[arg-type]  # any number does
            reduction_factor=config.reduction_factor,
            stop_last_trials=False,
        )
    else:
        inner = MedianStoppingRule(
            time_attr="percent",
            metric="quality",
            mode="max",
            grace_period=100 * config.grace,
            min_samples_required=config.min_trials,
            # Tune's rule would pause trials that it cannot judge yet, and a paused training would start anew.
            min_time_slice=math.inf,  # type: ignore[arg-type]
        )
    for trial in earlier:
        if trial.role != CANDIDATE or trial.rerun or not trial.reports or trial.status not in ("done", "stopped"):
            continue
        past = _Past(trial.run)
        inner.on_trial_add(None, past)  # type: ignore[arg-type]
        for share, value in trial.reports:
            inner.on_trial_result(None, past, {"percent": 100 * share, "quality": value})  # type: ignore[arg-type]
    return CandidatesOnly(inner)


def rungs(config: SchedulerConfig) -> list[float]:
    """Shares of a trial's steps at which `asha` decides."""
    found, share = [], config.grace
    while share < 1:
        found.append(share)
        share *= config.reduction_factor
    return found


def _may_stop(trial: Any) -> bool:
    return bool(trial.config.get("may_stop"))

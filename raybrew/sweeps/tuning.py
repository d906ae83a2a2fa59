"""The sweep as Ray Tune runs it: it asks the conductor for trials, and tells it how they go."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback, Stopper
from ray.tune.search import Searcher

from raybrew.config import Experiment
from raybrew.errors import ClusterError, EnvironmentProblem, RaybrewError
from raybrew.models.devices import cluster_devices
from raybrew.records.trials import CANDIDATE
from raybrew.runtime import RayInfo, check_resources
from raybrew.sweeps.conductor import Conductor
from raybrew.sweeps.jobs import Job, gpus_of
from raybrew.sweeps.schedulers import build_scheduler
from raybrew.sweeps.trial import run_trial
from raybrew.training.context import run_in_thread

__all__ = ["room_for", "run_trials", "wanted_resources"]

#: A process that dies (out of memory, a lost node) is replaced this often; the trial goes on from its checkpoint.
_RESTARTS = 2


def run_trials(conductor: Conductor, ray_info: RayInfo, changed: Callable[[], None]) -> str:
    """Run what the conductor gives until it has no more; returns why it ended: `finished`, `interrupted`, a budget.

    `changed` is called a few times a second, and whenever something happened.
    """
    base, sweep = conductor.base, conductor.sweep
    slots = room_for(base, ray_info)
    conductor.devices = dataclasses.replace(cluster_devices("sweep"), gpus=ray_info.gpus)
    folder = conductor.ledger.folder / ".tune"
    shutil.rmtree(folder, ignore_errors=True)
    brain = _Brain(conductor, changed)
    earlier = [trial for trial in conductor.trials.values() if trial.reports]
    # A trial that is stopped saves nothing any more, but closes its files; the process then takes the next one.
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "20")
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(slots))
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # with a traceback; ours is a line
    tuner = tune.Tuner(
        tune.with_resources(run_trial, wanted_resources(base, ray_info)),
        tune_config=tune.TuneConfig(
            search_alg=_Asker(brain),
            scheduler=build_scheduler(sweep.scheduler, earlier),
            num_samples=-1,
            max_concurrent_trials=slots,
            reuse_actors=base.train.worker_range[1] == 1,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=str(folder),
            stop=_Ends(brain),
            callbacks=[_Listener(brain)],
            failure_config=tune.FailureConfig(max_failures=_RESTARTS),
            verbose=0,
        ),
    )
    failure: BaseException | None = None
    try:
        run_in_thread(tuner.fit, lambda: brain.stop("interrupted"), changed)
    except BaseException as error:
        failure = error
    shutil.rmtree(folder, ignore_errors=True)
    if conductor.stopped_by == "interrupted":
        return conductor.stopped_by  # whatever else: what was to stop a process group may have ended Ray as well
    if brain.error is not None:
        raise brain.error
    if failure is not None and not isinstance(failure, KeyboardInterrupt):
        if isinstance(failure, RaybrewError):
            raise failure
        first = (str(failure).strip().splitlines() or [type(failure).__name__])[-1]
        raise ClusterError(f"Ray Tune ended early: {type(failure).__name__}: {first}") from failure
    return conductor.stopped_by or "finished"


def wanted_resources(base: Experiment, ray_info: RayInfo) -> Any:
    """What Ray reserves for one trial.

    A trial of several workers is a Ray Train run, whose workers reserve for themselves; its own process must then hold
    no part of a CPU, or they might never fit.
    """
    assert base.sweep is not None
    if base.train.worker_range[1] == 1:
        return {"cpu": base.sweep.resources.cpus, "gpu": gpus_of(base, base.sweep, ray_info.gpus)}
    return tune.PlacementGroupFactory([{"CPU": 0, "memory": 2**20}])


def room_for(base: Experiment, ray_info: RayInfo) -> int:
    """Trials at the same time; ClusterError if there is room for none."""
    assert base.sweep is not None
    sweep, train = base.sweep, base.train
    gpus = gpus_of(base, sweep, ray_info.gpus)
    if train.worker_range[1] == 1:
        cpus, keys = sweep.resources.cpus, "sweep.resources"
    else:
        cpus = train.worker_range[1] * train.cpus_per_worker
        keys = "train.workers, train.cpus_per_worker"
    check_resources(cpus, gpus, f"one trial ({keys})")
    room = math.floor(ray_info.cpus / cpus + 1e-9)
    if gpus:
        # A part of a GPU lies on one GPU, so each holds a whole number of trials.
        room = min(
            room, math.floor(ray_info.gpus) * math.floor(1 / gpus + 1e-9) if gpus < 1 else int(ray_info.gpus // gpus)
        )
    return max(1, min(room, sweep.concurrency or room))


class _Brain:
    """The conductor for Tune's parts, which live in one thread; an error of ours ends the sweep instead of a trial."""

    def __init__(self, conductor: Conductor, changed: Callable[[], None]) -> None:
        self.conductor = conductor
        self.changed = changed
        self.runs: dict[str, str] = {}
        self.last: dict[str, dict[str, Any]] = {}
        self.given_at: dict[str, float] = {}
        self.error: RaybrewError | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Brain:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Tune keeps copies of its parts on disk. They are of no use: a sweep is continued from its ledger.
        return object, ()

    def stop(self, reason: str) -> None:
        self.conductor.stopped_by = self.conductor.stopped_by or reason

    def guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RaybrewError as error:
            self.fail(error)
            return None
        finally:
            self.changed()

    def fail(self, error: RaybrewError) -> None:
        """End the sweep with `error`, or with an earlier one."""
        self.error = self.error or error
        self.stop("error")


class _Asker(Searcher):
    """Gives Tune one trial after the other."""

    def __init__(self, brain: _Brain) -> None:
        super().__init__()
        self.brain = brain

    def suggest(self, trial_id: str) -> Any:
        conductor = self.brain.conductor
        job: Job | None = self.brain.guarded(conductor.next)
        if job is None:
            return Searcher.FINISHED if conductor.finished else None
        self.brain.runs[trial_id] = job.run
        self.brain.given_at[trial_id] = time.time()
        self.brain.guarded(lambda: conductor.started(job.run))
        folder = f"{job.experiment.store.storage_path}/{job.experiment.name}/{job.run}"
        again = conductor.trials[job.run].again
        spec = {
            "experiment": job.experiment.plain(),
            "cwd": os.getcwd(),
            "command": f"raybrew distill {folder}/config.yaml",
            "until": conductor.until(job.run),
            "needs_student": again,
            "device": "cuda" if conductor.trials[job.run].gpus else "cpu",
            "devices": dataclasses.asdict(conductor.devices),
        }
        may_stop = job.role == CANDIDATE and not job.rerun and not again
        return {"spec": json.dumps(spec), "run": job.run, "may_stop": may_stop}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        return None

    def save(self, checkpoint_path: str) -> None:
        return None  # the ledger is what a sweep is continued from

    def restore(self, checkpoint_path: str) -> None:
        return None


class _Listener(Callback):
    """Hears of trials from Tune."""

    def __init__(self, brain: _Brain) -> None:
        self.brain = brain

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        run = self.brain.runs.get(trial.trial_id)
        if run is None:
            return
        if "status" in result:
            self.brain.last[trial.trial_id] = result
        elif "percent" in result:
            self.brain.guarded(
                lambda: self.brain.conductor.reported(run, result["percent"] / 100, float(result["quality"]))
            )

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        run = self.brain.runs.get(trial.trial_id)
        if run is not None and self.brain.conductor.stopped_by is None:
            now = time.time()
            seconds = now - self.brain.given_at.get(trial.trial_id, now)
            self.brain.given_at[trial.trial_id] = now
            self.brain.guarded(lambda: self.brain.conductor.lost(run, _last_error(trial), seconds))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended(trial, {"status": "stopped"})

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        reason = f"its process was lost more often than it is replaced ({_RESTARTS} times): {_last_error(trial)}"
        self._ended(trial, {"status": "failed", "error": f"ProcessDied: {reason}", "error_type": "ProcessDied"})

    def _ended(self, trial: Any, otherwise: dict[str, Any]) -> None:
        run = self.brain.runs.pop(trial.trial_id, None)
        result = self.brain.last.pop(trial.trial_id, None)
        given = self.brain.given_at.pop(trial.trial_id, time.time())
        if run is None:
            return
        conductor = self.brain.conductor
        seconds = time.time() - given
        if result is None and conductor.stopped_by is not None:
            # The whole sweep stops: the trial goes on when it is continued.
            self.brain.guarded(lambda: conductor.interrupted(run, {"seconds": round(seconds, 3)}))
            return
        outcome: dict[str, Any] = {"seconds": round(seconds, 3), **otherwise}
        if result is not None:
            outcome = {"status": result["status"], "seconds": round(seconds, 3)}
            kept = ("value", "error", "error_type", "reused", "step", "share")
            outcome |= {key: result[key] for key in kept if result.get(key) is not None}
            if result.get("overhead_inside") is not None:
                outcome["overhead"] = round(seconds - result["seconds"] + result["overhead_inside"], 3)
            if result["status"] == "interrupted":
                told: dict[str, Any] = {key: outcome[key] for key in ("seconds", "overhead") if key in outcome}
                self.brain.guarded(lambda: conductor.interrupted(run, told))
                if result.get("disk"):
                    self.brain.fail(EnvironmentProblem(f"{result['disk']}; make room, and the same command continues"))
                return
            if outcome.pop("status") == "paused":
                self.brain.guarded(lambda: conductor.paused(run, outcome))
                return
            outcome["status"] = result["status"]
        self.brain.guarded(lambda: conductor.ended(run, outcome))


def _last_error(trial: Any) -> str:
    """What Ray says of the end of a trial's process, in a line."""
    try:
        # Not `trial.get_error()`, which looks where the file is copied to some time later.
        text = Path(trial.error_file).read_text(encoding="utf-8")
    except (OSError, TypeError):
        text = ""
    told = text.rsplit("Failure #", 1)[-1].splitlines()[1:]
    lines = [line.strip() for line in told if line.strip()]
    # Of an error in the process Ray gives the traceback, which ends with what it was.
    traced = any("Traceback" in line for line in lines)
    return (lines[-1] if traced else lines[0]).split(". ")[0][:200].rstrip(".") if lines else "Ray gives no reason"


class _Ends(Stopper):
    """Ends all trials when the sweep is interrupted or a budget is used up."""

    def __init__(self, brain: _Brain) -> None:
        self.brain = brain

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        conductor = self.brain.conductor
        conductor.stopped_by = conductor.stopped_by or conductor.over_budget()
        return conductor.stopped_by is not None

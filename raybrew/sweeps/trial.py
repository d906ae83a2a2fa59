"""One trial, in a process of Ray Tune that runs many of them: imports, encoded rows and memory maps stay warm.

The result of a trial is in its run folder; Tune is told each evaluation, and whether to go on comes back from it. A
trial that fails says so as a result, so that the reason is not lost in a traceback of another process and the process
goes on with the next one.
"""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raybrew.config import Experiment
from raybrew.config.judge import quality
from raybrew.config.stages import stage_names
from raybrew.errors import Interrupted, RaybrewError, RunError, RunLocked, machine_problem
from raybrew.models.devices import Devices, assume_devices
from raybrew.records.lines import evaluations_in, steps_in_all, trained_seconds
from raybrew.records.summary import RunSummary
from raybrew.training.checkpoints import Checkpoints
from raybrew.training.context import STOP_FILE
from raybrew.training.run_folder import RunFolder

__all__ = ["run_trial"]

#: Shares of steps that differ by less are the same.
_CLOSE = 1e-6
#: Seconds that a trial waits for a run whose former process is dying with its cluster.
_LOCK_SECONDS = 120.0


def run_trial(config: Mapping[str, Any]) -> None:
    """Run the trial that `config` describes; what Ray Tune calls. Returns after a last report that has `status`."""
    from ray import tune

    entered = time.time()
    spec = json.loads(config["spec"])
    if os.path.isdir(spec["cwd"]):
        os.chdir(spec["cwd"])  # paths in experiments are relative to where the command was given
    experiment = Experiment.model_validate(spec["experiment"])
    assume_devices(Devices(**spec["devices"]))
    judge = experiment.judge
    until: float | None = spec["until"]
    folder = RunFolder.of(experiment, "distill").path
    stopped = threading.Event()
    pause: dict[str, Any] | None = None

    def report(metrics: dict[str, Any]) -> bool:
        nonlocal pause
        if metrics["quality"] is None:
            return stopped.is_set()  # the teacher has nothing for any evaluation row
        try:
            tune.report({"percent": round(100 * metrics["share"], 4), "quality": float(metrics["quality"])})
        except SystemExit:  # how Tune ends a function that its scheduler stops
            stopped.set()
        if until is not None and metrics["share"] >= until - _CLOSE:
            pause = {"step": metrics["step"], "share": metrics["share"], "value": float(metrics["quality"])}
        return stopped.is_set() or pause is not None

    before = _trained_seconds(folder)
    try:
        pause = _has_paused(folder, until, judge)
        if pause:
            outcome = {"status": "paused", **pause}
        else:
            outcome = _distill(experiment, spec["command"], report, spec["needs_student"], spec["device"])
    except Interrupted as error:
        if stopped.is_set():
            # As Tune ends a function itself: a return would make it report once more, and nobody listens any more.
            raise SystemExit(0) from None
        outcome = {"status": "interrupted", "error": str(error)} if pause is None else {"status": "paused", **pause}
        outcome["training_seconds"] = max(0.0, _trained_seconds(folder) - before)
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        kind = type(error).__name__
        disk = machine_problem(error, only_disk=True)
        if disk is None:
            outcome = {"status": "failed", "error": f"{kind}: {first}"[:500], "error_type": kind}
        else:  # no fault of the trial, and the next one would meet it too
            outcome = {"status": "interrupted", "disk": first if isinstance(error, RaybrewError) else disk}
        _free_memory()
    if stopped.is_set():
        raise SystemExit(0)
    training = outcome.pop("training_seconds", None)
    seconds = time.time() - entered
    outcome["seconds"] = round(seconds, 3)
    if training is not None:
        outcome["overhead_inside"] = round(max(0.0, seconds - training), 3)
    tune.report(outcome)


def _distill(experiment: Experiment, command: str, report: Any, needs_student: bool, device: str) -> dict[str, Any]:
    from raybrew.pipeline.rows import keep_rows
    from raybrew.verbs.distill import distill

    keep_rows()
    several = experiment.train.worker_range[1] > 1
    # One worker takes the GPU that Ray reserved for it, or none: Ray does not hide those of others.
    changes = {"launcher": "ray"} if several else {"launcher": "local", "device": device}
    train = experiment.train.model_copy(update=changes)
    if train.threads is None:
        train = train.model_copy(update={"threads": int(os.environ.get("OMP_NUM_THREADS", "1"))})
    experiment = experiment.model_copy(update={"train": train})
    folder = RunFolder.of(experiment, "distill").path
    before = _trained_seconds(folder)
    names = stage_names(experiment.distill)
    with _stop_workers(folder, report, experiment.judge, names[-1] if names else None) if several else _nothing():
        result = _when_unlocked(
            lambda: distill(
                experiment,
                report=False,
                command=command,
                on_evaluation=None if several else report,
                needs_student=needs_student,
                score_test=False,  # by the sweep, once all choices are made
                alone=False,
            )
        )
    facts = RunSummary.read(result.summary)
    best = facts.best
    value = None if best is None or best.value is None else quality(str(best.metric), best.value)
    outcome: dict[str, Any] = {"status": "done", "value": value, "reused": result.already_done}
    if not result.already_done:
        outcome["training_seconds"] = max(0.0, (facts.wall_seconds or 0.0) - before)
    return outcome


def _has_paused(folder: Path, until: float | None, judge: str) -> dict[str, Any] | None:
    """Where a trial stands that had come to its pause when its process died before it was told of."""
    steps = Checkpoints(folder / "checkpoints", 1).steps()
    total = steps_in_all(folder)
    if until is None or not steps or not total or steps[-1] / total < until - _CLOSE:
        return None
    # Lines of a step are on the disk before its checkpoint.
    value = dict(_evaluations(folder, judge, None)).get(steps[-1])
    return None if value is None else {"step": steps[-1], "share": steps[-1] / total, "value": value}


def _when_unlocked(call: Any) -> Any:
    """`call`, tried again while another process holds the run."""
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return call()
        except RunLocked:
            if time.monotonic() > until:
                raise
            time.sleep(0.5)


def _trained_seconds(folder: Path) -> float:
    """Training time that an unfinished run has behind it: up to its last checkpoint, from which it goes on."""
    return trained_seconds(folder, max(Checkpoints(folder / "checkpoints", 1).steps(), default=0))


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _stop_workers(folder: Path, report: Any, judge: str, stage: str | None) -> Iterator[None]:
    """While Ray Train's workers run: their evaluations, read from the run's own file, are reported from here.

    With stages, those of the last one, `stage`.
    """
    done = threading.Event()

    def follow() -> None:
        seen = len(_evaluations(folder, judge, stage))
        while not done.wait(0.3):
            found = _evaluations(folder, judge, stage)
            for step, value in found[seen:]:
                total = steps_in_all(folder)
                if total and report({"share": step / total, "quality": value}):
                    (folder / STOP_FILE).touch()
            seen = max(seen, len(found))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5)


def _evaluations(folder: Path, judge: str, stage: str | None) -> list[tuple[int, float]]:
    """Step and quality of each evaluation of a stage."""
    try:
        found = [(each.step, each.written(judge)) for each in evaluations_in(folder) if each.stage == stage]
    except RunError:
        return []
    return [(step, quality(judge, value)) for step, value in found if step is not None and value is not None]


def _free_memory() -> None:
    """What a failed trial held must not fail the next one in this process."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

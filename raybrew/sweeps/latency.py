"""How long students take, measured again when no trial runs any more.

A trial measures its student while others train on the same cores, and with the threads of a trial; the teacher was
measured before, by this process alone. Both are measured alike here, so that `faster` compares like with like.
"""

from __future__ import annotations

import json
from typing import Any

from raybrew.data.arrow import write_json
from raybrew.reports.collect import RunRecord, dict_at, integer, load_run
from raybrew.sweeps.conductor import Conductor
from raybrew.sweeps.progress import SweepReporter
from raybrew.training.run_folder import describe_environment

__all__ = ["measure_alone"]

_BATCHES = (1, 32)
#: Seconds for one batch size of one architecture; the median of fewer runs then.
_BUDGET_SECONDS = 4.0


def measure_alone(conductor: Conductor, view: SweepReporter) -> None:
    """Time each architecture of the finished students once, and write that into the summaries of its runs.

    Runs of another machine than this one, and those that were there before the sweep, keep what they measured.
    """
    here = describe_environment("")["machine"]
    groups: dict[str, list[RunRecord]] = {}
    for trial in conductor.trials.values():
        folder = conductor.ledger.folder.parent / trial.run
        if trial.status != "done" or trial.reused or not (folder / "summary.json").is_file():
            continue
        run = load_run(folder)
        if _hardware(dict_at(run.environment, "machine")) == _hardware(here) and _tokens(run) is not None:
            groups.setdefault(_architecture(run), []).append(run)
    for runs in groups.values():
        todo = [run for run in runs if not dict_at(run.summary or {}, "latency_ms").get("alone")]
        measured = next((run for run in runs if run not in todo), None)
        if not todo:
            continue
        times = dict(dict_at(measured.summary or {}, "latency_ms")) if measured else _measure(conductor, todo)
        if not times:
            continue
        for run in todo:
            write_json(run.folder / "summary.json", {**(run.summary or {}), "latency_ms": times})
        conductor.ledger.write("latency", runs=[run.folder.name for run in todo], latency_ms=times)
    if groups:
        many = f"{len(groups)} architecture{'s' if len(groups) > 1 else ''}"
        view.say(f"time per example measured again without other trials: {many}")


def _measure(conductor: Conductor, runs: list[RunRecord]) -> dict[str, Any]:
    """Milliseconds per example of the first of these students that is still there; empty if none is."""
    from raybrew.config.views import task_views
    from raybrew.models.inspection import measure_latency
    from raybrew.models.loading import ModelSource, load_model, pick_device

    name, view = next(iter(task_views(conductor.base).items()))
    for run in runs:
        folder = run.folder / "student" / (name or "")
        length = _tokens(run)
        if length is None or not (folder / "config.json").is_file():
            continue
        model = load_model(ModelSource(str(folder)), view.task.kind)
        device = pick_device(conductor.base.train.device, "train.device")
        found = measure_latency(
            model, batch_sizes=_BATCHES, length=length, device=device, budget_seconds=_BUDGET_SECONDS
        )
        times = {f"batch_{size}": round(value, 4) for size, value in found.items()}
        return {**times, "tokens": length, "alone": True}
    return {}


def _architecture(run: RunRecord) -> str:
    """Equal for students that take the same time."""
    facts = dict_at(run.summary or {}, "student")
    sizes = {name: value for name, value in facts.items() if name not in ("description", "megabytes")}
    return json.dumps([sizes, _tokens(run), (run.summary or {}).get("device")], sort_keys=True, default=str)


def _tokens(run: RunRecord) -> int | None:
    return integer(dict_at(run.summary or {}, "latency_ms").get("tokens"))


def _hardware(machine: Any) -> list[Any]:
    return [machine.get(name) for name in ("cpu", "cpus", "gpus", "system")]

"""After the last trial: the best students are exported, what losers left on disk goes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from raybrew.errors import writing
from raybrew.sweeps.conductor import Conductor
from raybrew.sweeps.progress import SweepReporter
from raybrew.training.checkpoints import Checkpoints

__all__ = ["finish_sweep"]


def finish_sweep(conductor: Conductor, view: SweepReporter) -> None:
    """Export the best student to `<sweep>/best`, and remove weights and states that nobody will ask for.

    Kept are the students of the best `sweep.keep_students` configurations and of controls. Only runs of this sweep
    are touched, and only once nothing of it is left to do: a sweep that was stopped needs its states.
    """
    from raybrew.reports.collect import load_run

    folder = conductor.ledger.folder
    if conductor.stopped_by is not None:
        return
    record = None
    ranking = conductor.ranking()
    kept = {trial.run for values in ranking[: conductor.sweep.keep_students] for trial in conductor.trials_with(values)}
    freed = 0
    for trial in conductor.trials.values():
        run = folder.parent / trial.run
        if trial.status not in ("done", "stopped", "failed") or trial.reused:
            continue  # a run that was there before the sweep is not the sweep's to prune
        if trial.status == "stopped" or trial.status == "failed":
            freed += _size(run / "checkpoints")
            Checkpoints(run / "checkpoints", 1).clear()
        if trial.role == "candidate" and trial.run not in kept and (run / "student").is_dir():
            freed += _size(run / "student")
            shutil.rmtree(run / "student", ignore_errors=True)
    best = _best(conductor)
    if best is not None and (folder.parent / best / "student").is_dir():
        _copy(folder.parent / best / "student", folder / "best")
        record = load_run(folder.parent / best)
        value = record.best.value if record.best else float("nan")
        view.say(f"best student: {folder / 'best'} ({conductor.base.task.metric} {value:.4f}, run {best})")
    if freed:
        view.say(f"{freed / 1e6:.1f} MB of states and students of other configurations removed")


def _best(conductor: Conductor) -> str | None:
    """The run to export: of the best configuration the seed with the best checkpoint."""
    from raybrew.reports.sweep_tables import best_run
    from raybrew.reports.sweeps import load_sweep

    return best_run(load_sweep(conductor.ledger.folder))


def _copy(source: Path, target: Path) -> None:
    """`source` in place of `target`, whole or not at all."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    with writing(target):
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source, temporary)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0

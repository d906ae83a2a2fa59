"""After the last trial: the best is fixed, scored on rows that chose nothing, exported, and what lost goes."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path
from typing import Any

from raybrew.errors import RunError, writing
from raybrew.exports.folder import replaced_folder
from raybrew.files import write_json
from raybrew.records.sweeps import SweepRecord, load_sweep
from raybrew.records.trials import CANDIDATE
from raybrew.reports.numbers import show_named
from raybrew.reports.ranking import Standing, recommended, rule_of
from raybrew.reports.students import BEST, BEST_MARK, student_of_sweep
from raybrew.sweeps.conductor import Conductor
from raybrew.sweeps.progress import SweepReporter
from raybrew.sweeps.trials import OVER
from raybrew.training.checkpoints import Checkpoints

__all__ = ["finish_sweep"]


def finish_sweep(conductor: Conductor, view: SweepReporter) -> None:
    """Choose the best, score on `data.test`, export the student to `<sweep>/best`, prune the others; in this order.

    Only once nothing of the sweep is left to do: a sweep that was stopped needs its states and students. A kill at any
    moment leaves the students that the next call needs, as nothing is removed before `best` is whole. RunError if the
    recommended student is not there and could not be trained again.
    """
    if conductor.stopped_by is not None:
        return
    record = load_sweep(conductor.ledger.folder)
    best = recommended(record)
    if best is not None:
        # Before a row of data.test is read: nothing that it says can change the choice.
        conductor.ledger.write("best", run=best.run, values=best.values, value=best.mean)
        _check_student(conductor, best)
    _score(conductor, record, view)
    if best is not None:
        _export(conductor, record, best)
        chosen = next(trial for trial in best.trials if trial.run == best.run)
        value, mean = (show_named(record.metric, each) for each in (chosen.value, best.mean))
        told = f"{value} on data.eval (configuration mean {mean})" if len(best.counted) > 1 else f"{value} on data.eval"
        view.say(f"best student: {record.folder / BEST}, run {best.run}, seed {chosen.seed}: {told}")
    _prune(conductor, best, view)


def _score(conductor: Conductor, record: SweepRecord, view: SweepReporter) -> None:
    """Test rows for what is compared with them: configurations that are kept or were run again, and controls."""
    from raybrew.runs.scoring import score_run

    kept = _kept(conductor) | record.finalists()
    compared = [trial.run for trial in record.trials if trial.counts and (trial.role != CANDIDATE or trial.run in kept)]
    for run in map(conductor.students.run, compared):
        if run.has_student:
            score_run(run.path, view)


def _check_student(conductor: Conductor, best: Standing) -> None:
    """RunError if the recommended student is nowhere: it was removed, and training it again has failed."""
    try:
        student_of_sweep(conductor.ledger.folder, best.run)
    except RunError as error:
        reason = conductor.trials[best.run].error
        raise RunError(f"{error} (training it again failed: {reason})" if reason else str(error)) from None


def _export(conductor: Conductor, record: SweepRecord, best: Standing) -> None:
    """The student and a mark that says whose it is, in place of what is in `best`; whole or not at all."""
    run, target = conductor.students.run(best.run), record.folder / BEST
    if not run.has_student:  # `best` holds it
        with writing(target):
            write_json(target / BEST_MARK, _mark(record, best))
        return
    with replaced_folder(target) as new:
        shutil.copytree(run.student, new, dirs_exist_ok=True)
        write_json(new / BEST_MARK, _mark(record, best))


def _mark(record: SweepRecord, best: Standing) -> dict[str, Any]:
    chosen = next(trial for trial in best.trials if trial.run == best.run)
    return {
        "sweep": record.sweep_id,
        "run": best.run,
        "values": best.values,
        "seed": chosen.seed,
        "metric": record.metric,
        "value": best.mean,
        "seeds": [trial.seed for trial in best.counted],
        "run_value": chosen.value,
        "rule": rule_of(record.metric, bool(record.finalists())),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _kept(conductor: Conductor) -> set[str]:
    """Runs of the best `sweep.keep_students` configurations."""
    return {run for standing in conductor.ranking()[: conductor.sweep.keep_students] for run in standing.runs}


def _prune(conductor: Conductor, best: Standing | None, view: SweepReporter) -> None:
    """Remove states, and students of candidates that are not kept. Controls stay, and runs that others made."""
    kept = _kept(conductor) | ({best.run} if best is not None else set())
    freed = 0
    for trial in conductor.trials.values():
        if trial.status not in OVER or trial.reused:
            continue  # a run that was there before the sweep is not the sweep's to prune
        run = conductor.students.run(trial.run)
        if trial.status != "done":
            freed += _size(run.checkpoints)
            Checkpoints(run.checkpoints, 1).clear()
        if trial.role == CANDIDATE and trial.run not in kept and run.student.is_dir():
            freed += run.prune_student(f"the sweep {conductor.ledger.folder.name}")
    if freed:
        view.say(f"{freed / 1e6:.1f} MB of states and students of other configurations removed")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0

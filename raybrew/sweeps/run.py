"""sweep: try many students on one teacher pass, keep the best, write a report."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raybrew.config import Experiment
from raybrew.config.space import planned_trainings, space_cautions
from raybrew.config.sweep_judge import judge_notes, sweep_judge
from raybrew.config.values import refuse_secrets
from raybrew.errors import ConfigError, Interrupted, RunError, writing
from raybrew.exports.folder import replaced_folder
from raybrew.files import write_json
from raybrew.nodes import Folder, check_shared
from raybrew.pipeline.reporter import Reporter
from raybrew.records.ledger import Ledger
from raybrew.records.ranking import BEST, BEST_MARK, Standing, recommended
from raybrew.records.sweeps import SweepRecord, load_sweep
from raybrew.records.trial_index import OVER
from raybrew.records.trials import CANDIDATE, trials_of
from raybrew.reports.numbers import show_named
from raybrew.reports.sweep_tables import rule_of, student_of_sweep
from raybrew.runs.train_run import command_line
from raybrew.runtime import ray_runtime
from raybrew.sweeps.conductor import Conductor
from raybrew.sweeps.jobs import gpus_of
from raybrew.sweeps.latency import measure_alone
from raybrew.sweeps.prepare import control_steps, prepare_teachers
from raybrew.sweeps.progress import SweepReporter, quiet_or
from raybrew.sweeps.replay import objectives_from, older_results
from raybrew.sweeps.result import SweepResult, mirror_summary
from raybrew.training.checkpoints import Checkpoints

__all__ = ["finish_sweep", "sweep", "sweep_folder"]

_REPORT = "report.html"


def sweep(experiment: Experiment, *, reporter: Reporter | None = None) -> SweepResult:
    """Try what `experiment.sweep` names; the same call continues a sweep that was stopped or killed at any moment.

    Controls come first, then configurations of the search, then further seeds for the best. A trial that fails leaves
    the others alone; `SweepResult.failed` lists it. Raises ConfigError before anything starts, ClusterError if Ray has
    no room for a trial, Interrupted when asked to stop (what is finished stays finished).
    """
    if experiment.sweep is None:
        raise ConfigError("sweep: required by `raybrew sweep`; name what varies, see `raybrew init`")
    refuse_secrets(experiment.plain())
    view = quiet_or(reporter)
    for caution in [*space_cautions(experiment), *judge_notes(experiment)]:
        view.say(caution)
    folder = sweep_folder(experiment)
    ledger = Ledger(folder)
    with ledger.locked(), _told_how_to_go_on(ledger):
        began = bool(ledger.records())
        if not began:
            judge = sweep_judge(experiment)
            ledger.write(
                "sweep", name=experiment.name, experiment=experiment.plain(), command=command_line(), judge=judge
            )
        conductor = Conductor(
            experiment,
            ledger,
            steps_of=control_steps(),
            objectives=objectives_from(folder.parent, experiment.sweep.search.objectives),
            older=older_results(experiment),
        )
        if conductor.over() and load_sweep(folder).closed == "finished":
            if not (folder / _REPORT).is_file():
                _report(folder)  # the last session was stopped while it wrote it
            return SweepResult.load(folder, already_done=True)
        if began:
            done = sum(trial.role == CANDIDATE and trial.status == "done" for trial in conductor.trials.values())
            view.say(f"{done} of {max(done, planned_trainings(experiment.sweep))} trials done, continuing")
        reason = _run(experiment, conductor, view)
    result = SweepResult.load(folder)
    if reason == "interrupted":
        raise _interrupted(ledger)
    if reason != "finished":
        view.say(f"the sweep ended early: {reason}; a larger budget and the same command continue it")
    return result


@contextlib.contextmanager
def _told_how_to_go_on(ledger: Ledger) -> Iterator[None]:
    """Ctrl-C at any moment, also twice, is the same to the user as when trials run."""
    try:
        yield
    except KeyboardInterrupt:
        raise _interrupted(ledger) from None


def _interrupted(ledger: Ledger) -> Interrupted:
    done = sum(trial.status == "done" for trial in trials_of(ledger.records()))
    trials = f"{done} trial{' is' if done == 1 else 's are'} done"
    return Interrupted(f"{trials} in {ledger.folder}; the same command continues the sweep")


def _run(experiment: Experiment, conductor: Conductor, view: SweepReporter) -> str:
    """One session: teacher pass, trials, report. Returns why it ended."""
    from raybrew.sweeps.tuning import room_for, run_trials

    assert experiment.sweep is not None
    ledger = conductor.ledger
    ledger.write("session", command=command_line(), budget=experiment.sweep.budget.model_dump(mode="json"))
    if not conductor.source.exact:
        ledger.write("replay", exact=False)
        view.say(
            "warning: the search cannot repeat what it tried in earlier sessions (another version of optuna, another "
            "sweep.search.startup_trials, or a ledger of an older version): it goes on from the results, not as an "
            "unbroken sweep would"
        )
    reason = "failed"
    try:
        for one in prepare_teachers(experiment, conductor.num_trials, view):
            ledger.write("teacher", **dataclasses.asdict(one))
        with ray_runtime("sweep") as ray_info:
            if ray_info.dashboard_url:
                view.say(f"Ray dashboard: {ray_info.dashboard_url}")
            check_shared({f"store.storage_path ({ledger.folder})": Folder(ledger.folder)}, "sweep")
            slots = room_for(experiment, ray_info)
            view.say(_how_trials_run(experiment, slots, ray_info.gpus))
            ledger.write("room", slots=slots, cpus=ray_info.cpus, gpus=ray_info.gpus)
            with view.follow(conductor, slots) as changed:
                reason = run_trials(conductor, ray_info, changed)
            if reason != "interrupted":
                measure_alone(conductor, view)
        if reason == "finished" and conductor.population is not None and not conductor.population.rounds:
            view.say(
                "warning: no round of the population took place, as nothing was evaluated between "
                "sweep.scheduler.interval and the end; set train.eval_steps to evaluate more often"
            )
        finish_sweep(conductor, view)
    except (Interrupted, KeyboardInterrupt):
        reason = "interrupted"  # outside of trials: in the teacher's pass, while Ray starts, at the end
        raise
    finally:
        ledger.write("close", reason=reason)
    if reason != "interrupted":
        _report(ledger.folder)
        mirror_summary(experiment, ledger.folder)
    return reason


def _how_trials_run(experiment: Experiment, slots: int, cluster_gpus: float) -> str:
    """One line on what trials run on, and the keys that change it."""
    assert experiment.sweep is not None
    gpus = gpus_of(experiment, experiment.sweep, cluster_gpus)
    each = f"each with {gpus:g} GPU{'s' if gpus != 1 else ''}" if gpus else "on CPUs"
    text = f"up to {slots} trial{'s' if slots > 1 else ''} at the same time, {each}"
    if not gpus and cluster_gpus:
        return f"{text}; the cluster's {cluster_gpus:g} GPUs stay idle (train.device, sweep.resources.gpus)"
    if gpus and experiment.sweep.resources.gpus is None and experiment.train.worker_range[1] == 1:
        return f"{text} (sweep.resources.gpus: a fraction lets trials share one)"
    return text


def _report(folder: Path) -> None:
    """The page, with the sweep closed in the ledger that it is made from; none while no trial has begun."""
    from raybrew.verbs.report import report

    if load_sweep(folder).run_folders():
        report([folder], folder / _REPORT)


def sweep_folder(experiment: Experiment) -> Path:
    """`<storage_path>/<name>/sweep-<hash of all that decides what is tried>`; budgets and sizes may change."""
    return Path(experiment.store.storage_path).absolute() / experiment.name / experiment.sweep_id()


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

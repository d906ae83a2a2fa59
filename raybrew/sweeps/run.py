"""sweep: try many students on one teacher pass, keep the best, write a report."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from raybrew.config import Experiment
from raybrew.config.judge import LOSS, quality
from raybrew.config.space import planned_trainings, space_cautions
from raybrew.config.sweep_judge import judge_notes, sweep_judge
from raybrew.config.values import refuse_secrets
from raybrew.errors import ConfigError, Interrupted, RunError
from raybrew.nodes import Folder, check_shared
from raybrew.pipeline.reporter import Reporter
from raybrew.records.runs import dict_at, number
from raybrew.records.sweeps import LEDGER, find_sweeps, load_sweep
from raybrew.records.trials import CANDIDATE, trials_of
from raybrew.reports.timing import relative_latency
from raybrew.runs.train_run import command_line
from raybrew.runtime import ray_runtime
from raybrew.sweeps.conductor import Conductor, Older
from raybrew.sweeps.costs import gpus_of
from raybrew.sweeps.finish import finish_sweep
from raybrew.sweeps.latency import measure_alone
from raybrew.sweeps.ledger import Ledger
from raybrew.sweeps.mirror import mirror_summary
from raybrew.sweeps.prepare import control_steps, prepare_teachers
from raybrew.sweeps.progress import SweepReporter, quiet_or
from raybrew.sweeps.result import SweepResult

__all__ = ["sweep", "sweep_folder"]

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
            objectives=_objectives_from(folder.parent, experiment.sweep.search.objectives),
            older=_older(experiment),
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


def _objectives_from(folder: Path, names: tuple[str, ...]) -> Callable[[str], tuple[float, ...] | None]:
    """A function from a run to its objectives in the order of `names`, and its parameters; None if it is not done."""

    def objectives(run: str) -> tuple[float, ...] | None:
        try:
            summary = json.loads((folder / run / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        best = dict_at(summary, "best")
        value = number(best.get("value"))
        measured = {
            "quality": None if value is None else quality(str(best.get("metric")), value),
            "parameters": number(dict_at(summary, "student").get("parameters")),
            "megabytes": number(dict_at(summary, "student").get("megabytes")),
            "latency": relative_latency(summary),
        }
        values = [measured[name] for name in (*names, "parameters")]
        return None if any(value is None for value in values) else tuple(value for value in values if value is not None)

    return objectives


def _older(experiment: Experiment) -> tuple[Older, ...]:
    """Finished configurations of the sweep that `sweep.warm_start` names, each with its mean objectives."""
    assert experiment.sweep is not None
    given = experiment.sweep.warm_start
    if given is None:
        return ()
    folders = find_sweeps([given])
    if not folders:
        raise RunError(f"sweep.warm_start: {given} holds no sweep: looked for {LEDGER} in it and two levels below")
    found: dict[str, list[tuple[dict[str, Any], tuple[float, ...]]]] = {}
    names = experiment.sweep.search.objectives
    for folder in folders:
        record = load_sweep(folder)
        if record.metric == LOSS:
            raise ConfigError(
                f"sweep.warm_start: {folder} was judged by its evaluation loss, which does not compare with "
                f"{experiment.task.metric}; name another sweep"
            )
        objectives = _objectives_from(folder.parent, names)
        for trial in record.trials_of("done"):
            values = objectives(trial.run) if trial.role == CANDIDATE else None
            if values is not None:
                found.setdefault(json.dumps(trial.values, sort_keys=True), []).append((trial.values, values))
    return tuple(
        Older(rows[0][0], tuple(sum(row[1][i] for row in rows) / len(rows) for i in range(len(names))))
        for rows in found.values()
    )

"""Rules for sweeps by population based training (`sweep.scheduler.kind: pbt`)."""

from __future__ import annotations

from raybrew.config.changes import CHANGEABLE, is_changeable, why_not
from raybrew.config.experiment import Experiment
from raybrew.config.problems import near_match
from raybrew.config.sweep import SweepConfig
from raybrew.errors import Problem

__all__ = ["check_population"]


def check_population(experiment: Experiment, sweep: SweepConfig) -> list[Problem]:
    """What a population cannot have: members take over one another's students, so all of them must fit each other."""
    problems = []
    for key, parameter in sweep.space.items():
        where = f"sweep.space.{key}"
        if not is_changeable(key):
            problems.append(
                Problem(
                    where,
                    "cannot vary with sweep.scheduler.kind=pbt, as members go on from each other's students; "
                    f"allowed: {', '.join(CHANGEABLE)}{near_match(key, CHANGEABLE)}",
                    "unknown",
                )
            )
            continue
        words = [why_not(key, v, experiment.distill, experiment.teacher, experiment.task) for v in parameter.values]
        problems += [Problem(where, text) for text in dict.fromkeys(text for text in words if text is not None)]
        if parameter.when:
            problems.append(Problem(f"{where}.when", "given with sweep.scheduler.kind=pbt; leave it out", "conflict"))
    if sweep.exclude:
        problems.append(Problem("sweep.exclude", "given with sweep.scheduler.kind=pbt; leave it out", "conflict"))
    if sweep.search.kind == "optuna":
        problems.append(
            Problem(
                "sweep.search.kind", "given 'optuna' with sweep.scheduler.kind=pbt; allowed: random, grid", "conflict"
            )
        )
    if experiment.distill.stages:
        problems.append(
            Problem("distill.stages", "given with sweep.scheduler.kind=pbt, whose values change all along", "conflict")
        )
    for key in sweep.scheduler.mutations or ():
        if key not in sweep.space:
            near = near_match(key, sweep.space)
            problems.append(
                Problem(
                    "sweep.scheduler.mutations", f"given {key!r}; allowed: {', '.join(sweep.space)}{near}", "unknown"
                )
            )
    if sweep.scheduler.mutations == ():
        problems.append(Problem("sweep.scheduler.mutations", "an empty list; leave it out to change all keys", "empty"))
    if sweep.trials == 1:
        problems.append(
            Problem("sweep.trials", "given 1 with sweep.scheduler.kind=pbt; a population has 2 or more", "conflict")
        )
    if sweep.seeds > 1:
        problems.append(
            Problem(
                "sweep.seeds",
                f"given {sweep.seeds} with sweep.scheduler.kind=pbt, whose members share train.seed; "
                "sweep.rerun_best trains the best with more seeds",
                "conflict",
            )
        )
    return [*problems, *_training(experiment)]


def _training(experiment: Experiment) -> list[Problem]:
    train = experiment.train
    problems = []
    if train.worker_range[1] > 1:
        problems.append(
            Problem(
                "train.workers",
                f"given {train.worker_range[1]} with sweep.scheduler.kind=pbt, whose rounds end at the same step of "
                "each member; allowed: 1",
                "conflict",
            )
        )
    problems += [
        Problem(f"train.{key}", "given with sweep.scheduler.kind=pbt; leave it out", "conflict")
        for key in ("early_stopping", "changes")
        if getattr(train, key)
    ]
    if train.eval_steps is None and train.epochs // (train.eval_epochs or 1) < 2:
        problems.append(
            Problem(
                "train.eval_steps",
                "required with sweep.scheduler.kind=pbt: members are compared at evaluations, and with "
                f"train.epochs={train.epochs} there is one only, at the end",
                "required",
            )
        )
    return problems

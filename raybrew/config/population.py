"""Rules for sweeps by population based training (`sweep.scheduler.kind: pbt`)."""

from __future__ import annotations

from raybrew.catalog.searchers import SEARCHERS
from raybrew.config.changes import CHANGEABLE, is_changeable, why_not
from raybrew.config.experiment import Experiment
from raybrew.config.problems import near_match
from raybrew.config.sweep import SweepConfig
from raybrew.errors import Problem

__all__ = ["check_population"]


def check_population(experiment: Experiment, sweep: SweepConfig) -> list[Problem]:
    """What a population cannot have: members take over one another's students, so all of them must fit each other."""
    problems, by = [], f"sweep.scheduler.kind={sweep.scheduler.kind}"
    for key, parameter in sweep.space.items():
        where = f"sweep.space.{key}"
        if not is_changeable(key):
            problems.append(
                Problem(
                    where,
                    f"cannot vary with {by}, as members go on from each other's students; "
                    f"allowed: {', '.join(CHANGEABLE)}{near_match(key, CHANGEABLE)}",
                    "unknown",
                )
            )
            continue
        words = [why_not(key, v, experiment.distill, experiment.teacher, experiment.task) for v in parameter.values]
        problems += [Problem(where, text) for text in dict.fromkeys(text for text in words if text is not None)]
        if parameter.when:
            problems.append(Problem(f"{where}.when", f"given with {by}; leave it out", "conflict"))
    if sweep.exclude:
        problems.append(Problem("sweep.exclude", f"given with {by}; leave it out", "conflict"))
    if sweep.search.row.learns:
        allowed = ", ".join(name for name, row in SEARCHERS.items() if not row.learns)
        given = f"given {sweep.search.kind!r} with {by}; allowed: {allowed}"
        problems.append(Problem("sweep.search.kind", given, "conflict"))
    if experiment.distill.stages:
        problems.append(Problem("distill.stages", f"given with {by}, whose values change all along", "conflict"))
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
        problems.append(Problem("sweep.trials", f"given 1 with {by}; a population has 2 or more", "conflict"))
    if sweep.seeds > 1:
        problems.append(
            Problem(
                "sweep.seeds",
                f"given {sweep.seeds} with {by}, whose members share train.seed; "
                "sweep.rerun_best trains the best with more seeds",
                "conflict",
            )
        )
    return [*problems, *_training(experiment, by)]


def _training(experiment: Experiment, by: str) -> list[Problem]:
    train = experiment.train
    problems = []
    if train.worker_range[1] > 1:
        problems.append(
            Problem(
                "train.workers",
                f"given {train.worker_range[1]} with {by}, whose rounds end at the same step of "
                "each member; allowed: 1",
                "conflict",
            )
        )
    problems += [
        Problem(f"train.{key}", f"given with {by}; leave it out", "conflict")
        for key in ("early_stopping", "changes")
        if getattr(train, key)
    ]
    if train.eval_steps is None and train.epochs // (train.eval_epochs or 1) < 2:
        problems.append(
            Problem(
                "train.eval_steps",
                f"required with {by}: members are compared at evaluations, and with "
                f"train.epochs={train.epochs} there is one only, at the end",
                "required",
            )
        )
    return problems

"""A search that continues: it is asked and told again what the ledger says, and goes on as if it had not stopped.

And what it is told: the objectives of its own trials, and of those of the sweep that `sweep.warm_start` names.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from raybrew.config import Experiment
from raybrew.config.judge import LOSS, quality
from raybrew.errors import ConfigError, RunError
from raybrew.records.ledger import LEDGER
from raybrew.records.summary import read_summary
from raybrew.records.sweeps import find_sweeps, load_sweep
from raybrew.records.timing import relative_latency
from raybrew.records.trial_index import OVER, Trials
from raybrew.records.trials import CANDIDATE, TrialRecord, after, canonical, new_trial
from raybrew.sweeps.search import Source

__all__ = ["Older", "Told", "mean_objectives", "objectives_from", "older_results", "replay"]

#: All seeds of a configuration -> its objectives; None if it has none.
Told = Callable[[Sequence[TrialRecord]], tuple[float, ...] | None]


@dataclasses.dataclass(frozen=True)
class Older:
    """A configuration of an older sweep with its objectives."""

    values: dict[str, Any]
    objectives: tuple[float, ...]


def replay(source: Source, records: Iterable[Mapping[str, Any]], told: Told) -> None:
    """Bring `source` where it stood after `records`, in the order in which they were written."""
    trials = Trials()
    for record in records:
        kind, run = record.get("kind"), str(record.get("run"))
        if kind == "trial":
            if record["role"] == CANDIDATE and canonical(record["values"]) not in trials.known:
                source.repeat(record["values"], trials.known)
            trials[run] = after(trials[run], record) if run in trials else new_trial(record, trials)
        elif run in trials:
            trial = trials[run] = after(trials[run], record)
            if kind == "end" and trial.role == CANDIDATE:
                seeds = trials.with_values(trial.values, CANDIDATE)
                if all(seed.status in OVER for seed in seeds):
                    source.tell(trial.values, told(seeds))


def mean_objectives(
    seeds: Iterable[TrialRecord], names: Sequence[str], read: Callable[[str], tuple[float, ...] | None]
) -> tuple[float, ...] | None:
    """The objectives of a configuration, averaged over its seeds; what was stopped counts with what it reached.

    `read` gives those of a run that older ledgers do not have.
    """
    rows: list[tuple[float, ...]] = []
    for trial in seeds:
        if trial.status == "stopped" and trial.reports and tuple(names) == ("quality",):
            rows.append((max(value for _, value in trial.reports),))
        elif trial.counts and (found := trial.objectives or read(trial.run)) is not None:
            rows.append(found[: len(names)])
    if not rows:
        return None
    return tuple(sum(row[index] for row in rows) / len(rows) for index in range(len(names)))


def objectives_from(folder: Path, names: tuple[str, ...]) -> Callable[[str], tuple[float, ...] | None]:
    """A function from a run to its objectives in the order of `names`, and its parameters; None if it is not done."""

    def objectives(run: str) -> tuple[float, ...] | None:
        summary = read_summary(folder / run)
        if summary is None:
            return None
        best, student = summary.best, summary.student
        measured = {
            "quality": None if best is None or best.value is None else quality(str(best.metric), best.value),
            "parameters": None if student.parameters is None else float(student.parameters),
            "megabytes": student.megabytes,
            "latency": relative_latency(summary),
        }
        values = [measured[name] for name in (*names, "parameters")]
        return None if any(value is None for value in values) else tuple(value for value in values if value is not None)

    return objectives


def older_results(experiment: Experiment) -> tuple[Older, ...]:
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
        objectives = objectives_from(folder.parent, names)
        for trial in record.trials_of("done"):
            values = objectives(trial.run) if trial.role == CANDIDATE else None
            if values is not None:
                found.setdefault(json.dumps(trial.values, sort_keys=True), []).append((trial.values, values))
    return tuple(
        Older(rows[0][0], tuple(sum(row[1][i] for row in rows) / len(rows) for i in range(len(names))))
        for rows in found.values()
    )

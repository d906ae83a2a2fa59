"""A search that continues: it is asked and told again what the ledger says, and goes on as if it had not stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from raybrew.records.trials import CANDIDATE, TrialRecord, after, canonical, new_trial
from raybrew.sweeps.search import Source
from raybrew.sweeps.trials import OVER, Trials

__all__ = ["Told", "mean_objectives", "replay"]

#: All seeds of a configuration -> its objectives; None if it has none.
Told = Callable[[Sequence[TrialRecord]], tuple[float, ...] | None]


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

"""The trials of a sweep, put together from the lines of its ledger: see `raybrew.records.sweeps` for their kinds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from raybrew.config.values import show_value_of

__all__ = ["CANDIDATE", "CONTROL", "KD_ONLY", "TrialRecord", "after", "canonical", "new_trial", "trials_of"]

_CHANGES = "train.changes"
#: Roles of trials: configurations of the space; the same student from labels alone; from the teacher's logits alone.
CANDIDATE, CONTROL, KD_ONLY = "candidate", "control", "KD only"

#: Built-in errors that mean the configuration is at fault.
_LASTING = frozenset({"ConfigError", "DataError", "LossError", "DivergenceError", "ModelError"})


@dataclasses.dataclass(frozen=True)
class TrialRecord:
    """One configuration with one seed, as the ledger knows it."""

    number: int
    run: str
    role: str
    values: dict[str, Any]
    seed: int
    status: str
    """`waiting`, `running` (or interrupted), `paused` (until its round is decided, or between two), `done`, `stopped`
    (by the scheduler) or `failed`."""
    rerun: bool = False
    reports: tuple[tuple[float, float], ...] = ()
    """(share of all steps, quality) of each evaluation; in a SweepRecord the metric or loss itself."""
    value: float | None = None
    seconds: float | None = None
    """Time in all its parts: those that were paused, interrupted, killed or failed as well."""
    overhead: float | None = None
    """Time beyond training, of the parts that told their training time."""
    error: str | None = None
    error_type: str | None = None
    """Name of the class of `error`; None in older ledgers."""
    reused: bool = False
    """The run was there already, so it cost nothing."""
    gpus: float = 0.0
    """GPUs that it holds while it runs, those of all workers together."""
    objectives: tuple[float, ...] | None = None
    """What the search was told of it when it ended, then its parameters; None in older ledgers."""
    again: bool = False
    """It is done, but its student was removed and is trained again: its value stands."""
    member: int | None = None
    """Of a population: whose trial it is, counted from 1."""
    source: str | None = None
    """The run whose student it goes on from."""
    paused_at: tuple[int, float, float] | None = None
    """(step, share of all steps, metric) where it last paused, or where it begins."""
    decided: bool = True
    """Whether the round that it paused for is decided."""
    seconds_before: float = 0.0
    """Time of its parts before the one that runs, or ran last."""
    untold_seconds: float = 0.0
    """Part of `seconds`: time of parts that could not tell how much of it was training (killed, lost)."""
    since: float | None = None
    """When the part that runs began, in seconds since 1970; None while none runs."""
    lost: int = 0
    """How often its process or node was lost; each time it went on from its last checkpoint."""

    @property
    def counts(self) -> bool:
        """Whether it has a result: it is done, also while its removed student is trained again."""
        return self.status == "done" or self.again

    @property
    def failed_for_good(self) -> bool:
        """Whether its configuration is at fault, so that another try would end the same way."""
        return self.status == "failed" and self.error_type in _LASTING

    @property
    def share(self) -> float:
        """How much of its steps it did."""
        return 1.0 if self.counts else self.reports[-1][0] if self.reports else 0.0

    @property
    def label(self) -> str:
        """Its values in a few words."""
        shown = ", ".join(f"{key.rsplit('.', 1)[-1]}={self.show(key)}" for key in self.values if key != _CHANGES)
        return shown or self.role

    def course(self, key: str) -> tuple[tuple[float, Any], ...]:
        """(share of all steps from which on, value) of one key, from the start to the end of training."""
        changes = self.values.get(_CHANGES) or ()
        return (
            (0.0, self.values[key]),
            *((change["at"], change["values"][key]) for change in changes if key in change["values"]),
        )

    def show(self, key: str) -> str:
        """The value of one key, or what it becomes one after another, in a few words."""
        return " → ".join(show_value_of(value) for _, value in self.course(key))


def canonical(values: Mapping[str, Any]) -> str:
    """Equal for equal values."""
    return json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)


def trials_of(records: Iterable[Mapping[str, Any]]) -> tuple[TrialRecord, ...]:
    """The trials that the lines of a ledger tell of, by number.

    What still runs when a session begins was killed with the session before: its time counts up to that one's last
    line.
    """
    trials: dict[str, TrialRecord] = {}
    last = 0.0
    for record in records:
        kind, run = record.get("kind"), str(record.get("run"))
        if kind == "session":
            trials = {name: _killed(trial, last) for name, trial in trials.items()}
        elif kind == "trial" and run not in trials:
            trials[run] = new_trial(record, trials)
        elif kind == "round":
            for decided in record["scores"]:
                if decided in trials:
                    trials[decided] = after(trials[decided], record)
        elif run in trials:
            trials[run] = after(trials[run], record)
        last = float(record.get("at") or last)
    return tuple(sorted(trials.values(), key=lambda trial: trial.number))


def _killed(trial: TrialRecord, at: float) -> TrialRecord:
    if trial.since is None:
        return trial
    return _spent(trial, {"seconds": max(0.0, at - trial.since)})


def new_trial(record: Mapping[str, Any], trials: Mapping[str, TrialRecord]) -> TrialRecord:
    """The trial of a line that names it for the first time; `trials` are those before it."""
    trial = TrialRecord(
        number=int(record["number"]),
        run=str(record["run"]),
        role=str(record["role"]),
        values=dict(record["values"]),
        seed=int(record["seed"]),
        status="waiting",
        rerun=bool(record.get("rerun")),
        gpus=float(record.get("gpus") or 0),
        member=record.get("member"),
    )
    if record.get("source") is None:
        return trial
    step, share, value = record["begins"]
    source = trials[record["source"]]
    return dataclasses.replace(
        trial,
        source=source.run,
        paused_at=(step, share, value),
        reports=tuple(report for report in source.reports if report[0] <= share + 1e-6),
    )


def after(trial: TrialRecord, record: Mapping[str, Any]) -> TrialRecord:
    """The trial after one more line about it."""
    kind = record["kind"]
    if kind == "trial":  # the search came to what was a control so far
        return dataclasses.replace(
            trial,
            role=str(record["role"]),
            values=dict(record["values"]),
            rerun=bool(record.get("rerun")),
            member=record.get("member"),
        )
    if kind == "start":
        gpus = record.get("gpus")
        return dataclasses.replace(
            trial,
            status="running",
            error=None,
            error_type=None,
            since=record.get("at"),
            seconds_before=trial.seconds or 0.0,
            gpus=trial.gpus if gpus is None else float(gpus),
        )
    if kind == "lost":
        trial = trial if record.get("seconds") is None else _spent(trial, record, at=record.get("at"))
        return dataclasses.replace(trial, lost=trial.lost + 1, error=record.get("error"))
    if kind == "report":
        # A trial that was killed repeats what came after its last checkpoint.
        kept = tuple(report for report in trial.reports if report[0] < record["share"])
        return dataclasses.replace(trial, reports=(*kept, (record["share"], record["value"])))
    if kind == "round":
        return dataclasses.replace(trial, decided=True)
    if kind == "again":
        return dataclasses.replace(trial, status="waiting", again=True)
    if kind == "interrupted":
        return _spent(trial, record)
    if kind == "pause":
        where = (int(record["step"]), record["share"], record["value"])
        return dataclasses.replace(_spent(trial, record), status="paused", paused_at=where, decided=False)
    if kind == "end":
        return _ended(_spent(trial, record), record)
    return trial


def _spent(trial: TrialRecord, record: Mapping[str, Any], at: float | None = None) -> TrialRecord:
    """The trial after a part that took `record["seconds"]`; the next part began at `at`, if it has begun."""
    part, overhead = record.get("seconds"), record.get("overhead")
    if part is None:
        return dataclasses.replace(trial, since=at)
    seconds = trial.seconds_before + part
    told = overhead is not None or record.get("kind") == "end"
    return dataclasses.replace(
        trial,
        seconds=seconds,
        seconds_before=seconds,
        overhead=trial.overhead if overhead is None else (trial.overhead or 0.0) + overhead,
        untold_seconds=trial.untold_seconds + (0.0 if told else part),
        since=at,
    )


def _ended(trial: TrialRecord, record: Mapping[str, Any]) -> TrialRecord:
    status, objectives = str(record["status"]), record.get("objectives")
    if trial.again and status != "done":
        # The result of the first training stands; only its student is missing.
        return dataclasses.replace(trial, status=status, error=record.get("error"), error_type=record.get("error_type"))
    return dataclasses.replace(
        trial,
        status=status,
        again=False,
        value=record.get("value"),
        error=record.get("error"),
        error_type=record.get("error_type"),
        reused=bool(record.get("reused")),
        objectives=None if objectives is None else tuple(objectives),
    )

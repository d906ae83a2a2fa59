"""Sweeps read back from their ledgers. What the trials measured stays in their run folders; the ledger says what was
tried, when, and how it ended.

`<storage_path>/<experiment>/sweep-<id>/ledger.jsonl` holds one JSON object a line, in the order in which things
happened. Kinds: `sweep` (once), `session` and `close` (each start and end of the command), `teacher` (each teacher
pass), `room` (how many trials run at a time), `trial` (what is tried), `start`, `report` (each evaluation) and `end` of
a trial. Of population based training: `population` (its size), `pause` of a trial that waits for its round, `round`
(what was decided, before it is carried out) and `copy` (of a state). A torn last line is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from raybrew.config.space import show_value_of
from raybrew.errors import RunError
from raybrew.reports.collect import RunRecord, is_run, load_run
from raybrew.reports.ledger import LEDGER, read_ledger

__all__ = [
    "CANDIDATE",
    "CONTROL",
    "KD_ONLY",
    "LEDGER",
    "SweepRecord",
    "TrialRecord",
    "after",
    "find_sweeps",
    "is_sweep",
    "load_sweep",
    "new_trial",
    "sessions_of",
    "trials_of",
]
_CHANGES = "train.changes"
#: Roles of trials: configurations of the space; the same student from labels alone; from the teacher's logits alone.
CANDIDATE, CONTROL, KD_ONLY = "candidate", "control", "KD only"


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
    """(share of all steps, metric) of each evaluation."""
    value: float | None = None
    seconds: float | None = None
    overhead: float | None = None
    error: str | None = None
    reused: bool = False
    """The run was there already, so it cost nothing."""
    gpus: float = 0.0
    member: int | None = None
    """Of a population: whose trial it is, counted from 1."""
    source: str | None = None
    """The run whose student it goes on from."""
    paused_at: tuple[int, float, float] | None = None
    """(step, share of all steps, metric) where it last paused, or where it begins."""
    decided: bool = True
    """Whether the round that it paused for is decided."""
    seconds_before: float = 0.0
    """Of its parts up to the last pause."""
    lost: int = 0
    """How often its process or node was lost; each time it went on from its last checkpoint."""

    @property
    def share(self) -> float:
        """How much of its steps it did."""
        return 1.0 if self.status == "done" else self.reports[-1][0] if self.reports else 0.0

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


@dataclasses.dataclass(frozen=True)
class SweepRecord:
    """A whole sweep. `runs` are the run folders of its trials that exist."""

    folder: Path
    name: str
    experiment: dict[str, Any]
    command: str | None
    metric: str
    trials: tuple[TrialRecord, ...]
    teachers: tuple[dict[str, Any], ...]
    sessions: tuple[dict[str, Any], ...]
    rounds: tuple[dict[str, Any], ...]
    """What was decided in each round of a population."""
    closed: str | None
    """Why the last session ended (`finished`, `interrupted`, a budget); None if it was killed or is running."""

    @property
    def sweep_id(self) -> str:
        return self.folder.name

    @property
    def space(self) -> dict[str, Any]:
        """The space as written in the experiment."""
        sweep = self.experiment.get("sweep")
        return dict(sweep.get("space") or {}) if isinstance(sweep, Mapping) else {}

    @property
    def wall_seconds(self) -> float:
        """Time over all sessions; that of a killed one counts up to its last line."""
        return float(sum(session["seconds"] for session in self.sessions))

    def run_folders(self) -> list[Path]:
        """Folders of the trials that have begun, in the order of trials."""
        folders = [self.folder.parent / trial.run for trial in self.trials]
        return [folder for folder in folders if is_run(folder)]

    def runs(self) -> list[RunRecord]:
        """What those folders tell."""
        return [load_run(folder) for folder in self.run_folders()]

    def trials_of(self, status: str) -> list[TrialRecord]:
        return [trial for trial in self.trials if trial.status == status]

    def finalists(self) -> set[str]:
        """Runs of configurations that were run again with more seeds; empty if none were."""
        tried = [trial for trial in self.trials if trial.role == CANDIDATE]
        again = {_key(trial) for trial in tried if trial.rerun and trial.status == "done"}
        return {trial.run for trial in tried if _key(trial) in again}


def is_sweep(folder: Path) -> bool:
    """Whether `folder` was made by a sweep."""
    return (folder / LEDGER).is_file()


def find_sweeps(paths: Iterable[str | Path]) -> list[Path]:
    """Sweep folders at `paths` or up to two levels below, each once."""
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if is_sweep(path):
            found[path.resolve()] = None
            continue
        for pattern in (f"*/{LEDGER}", f"*/*/{LEDGER}"):
            found.update({ledger.parent.resolve(): None for ledger in sorted(path.glob(pattern))})
    return list(found)


def load_sweep(folder: str | Path) -> SweepRecord:
    """The sweep in `folder`; RunError if there is none, or if its ledger was changed by something else."""
    folder = Path(folder)
    if not is_sweep(folder):
        raise RunError(f"{folder} is no sweep folder: {LEDGER} is not in it")
    records = read_ledger(folder / LEDGER)
    head = next((record for record in records if record.get("kind") == "sweep"), None)
    if head is None:
        raise RunError(f"{folder / LEDGER} has no line of kind `sweep`; remove the folder to start the sweep anew")
    experiment = head["experiment"]
    return SweepRecord(
        folder=folder,
        name=str(head.get("name") or folder.parent.name),
        experiment=experiment,
        command=head.get("command"),
        metric=str((experiment.get("task") or {}).get("metric") or "accuracy"),
        trials=trials_of(records),
        teachers=tuple(record for record in records if record.get("kind") == "teacher"),
        sessions=sessions_of(records),
        rounds=tuple(record for record in records if record.get("kind") == "round"),
        closed=_closed(records),
    )


def trials_of(records: Iterable[Mapping[str, Any]]) -> tuple[TrialRecord, ...]:
    """The trials that the lines of a ledger tell of, by number."""
    trials: dict[str, TrialRecord] = {}
    for record in records:
        kind, run = record.get("kind"), str(record.get("run"))
        if kind == "trial" and run not in trials:
            trials[run] = new_trial(record, trials)
        elif kind == "round":
            for decided in record["scores"]:
                if decided in trials:
                    trials[decided] = after(trials[decided], record)
        elif run in trials:
            trials[run] = after(trials[run], record)
    return tuple(sorted(trials.values(), key=lambda trial: trial.number))


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
    if record["kind"] == "trial":  # the search came to what was a control so far
        return dataclasses.replace(
            trial, role=str(record["role"]), values=dict(record["values"]), member=record.get("member")
        )
    if record["kind"] == "start":
        return dataclasses.replace(trial, status="running", error=None)
    if record["kind"] == "lost":
        return dataclasses.replace(trial, lost=trial.lost + 1, error=record.get("error"))
    if record["kind"] == "report":
        # A trial that was killed repeats what came after its last checkpoint.
        kept = tuple(report for report in trial.reports if report[0] < record["share"])
        return dataclasses.replace(trial, reports=(*kept, (record["share"], record["value"])))
    if record["kind"] == "round":
        return dataclasses.replace(trial, decided=True)
    if record["kind"] in ("pause", "end"):
        seconds, overhead = record.get("seconds"), record.get("overhead")
        if trial.seconds_before:
            seconds = trial.seconds_before + (seconds or 0.0)
            overhead = trial.overhead if overhead is None else (trial.overhead or 0.0) + overhead
    if record["kind"] == "pause":
        return dataclasses.replace(
            trial,
            status="paused",
            paused_at=(int(record["step"]), record["share"], record["value"]),
            decided=False,
            seconds=seconds,
            seconds_before=seconds or 0.0,
            overhead=overhead,
        )
    if record["kind"] == "end":
        return dataclasses.replace(
            trial,
            status=str(record["status"]),
            value=record.get("value"),
            seconds=seconds,
            overhead=overhead,
            error=record.get("error"),
            reused=bool(record.get("reused")),
        )
    return trial


def _key(trial: TrialRecord) -> str:
    return str(sorted(trial.values.items(), key=str))


def _closed(records: list[dict[str, Any]]) -> str | None:
    marks = [record for record in records if record.get("kind") in ("session", "close")]
    return str(marks[-1]["reason"]) if marks and marks[-1]["kind"] == "close" else None


def sessions_of(records: Iterable[Mapping[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Start, `seconds` and slots of each session."""
    found: list[dict[str, Any]] = []
    for record in records:
        if record.get("kind") == "session":
            found.append({**record, "seconds": 0.0})
        elif found and isinstance(record.get("at"), int | float):
            found[-1]["seconds"] = max(found[-1]["seconds"], record["at"] - found[-1]["at"])
            if record.get("kind") == "room":
                found[-1]["slots"] = record["slots"]
    return tuple(found)

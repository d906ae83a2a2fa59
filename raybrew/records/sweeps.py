"""Sweeps read back from their ledgers. What the trials measured stays in their run folders; the ledger says what was
tried, when, and how it ended.

`<storage_path>/<experiment>/sweep-<id>/ledger.jsonl` holds one JSON object a line, in the order in which things
happened. Kinds: `sweep` (once), `session` and `close` (each start and end of the command), `teacher` (each teacher
pass), `room` (how many trials run at a time), `trial` (what is tried), `start`, `report` (each evaluation),
`interrupted` and `end` of a trial, `again` (a trial whose student was removed is trained again), `replay` (the search
could not repeat its decisions) and `best` (the run that is chosen, before any row of `data.test` is read). Of
population based training: `population` (its size), `pause` of a trial that waits for its round, `round` (what was
decided, before it is carried out) and `copy` (of a state). A torn last line is left out.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from raybrew.config.judge import LOSS, value_of_quality
from raybrew.errors import RunError
from raybrew.records.ledger import LEDGER, closed_as, read_ledger
from raybrew.records.runs import RunRecord, dict_at, is_run, load_run
from raybrew.records.sections import Section, number
from raybrew.records.trials import CANDIDATE, CONTROL, KD_ONLY, TrialRecord, canonical, trials_of

__all__ = [
    "CANDIDATE",
    "CONTROL",
    "KD_ONLY",
    "LEDGER",
    "Cost",
    "Move",
    "Round",
    "Session",
    "SweepRecord",
    "TeacherRows",
    "TrialRecord",
    "cost_of",
    "find_sweeps",
    "is_sweep",
    "load_sweep",
    "sessions_of",
]


@dataclasses.dataclass(frozen=True)
class Session:
    """One call of the command: `slots` trials ran at a time."""

    began: float
    seconds: float = 0.0
    slots: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherRows(Section):
    """A teacher and the rows that trials learn from; `computed` are those that it read in this session."""

    teacher: str | None
    rows: int | None
    computed: int | None
    signals: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Move(Section):
    """Member `member`, so far run `of`, goes on as `run` from where `source` paused: (step, share, metric)."""

    member: int
    of: str
    source: str
    run: str
    values: Mapping[str, Any]
    begins: tuple[Any, ...]
    new: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round(Section):
    """What was decided once all members of a population had come to one point; the score of a failed one is None."""

    number: int
    scores: Mapping[str, float | None]
    moves: tuple[Move, ...]


@dataclasses.dataclass(frozen=True)
class SweepRecord:
    """A whole sweep. `runs` are the run folders of its trials that exist."""

    folder: Path
    name: str
    experiment: dict[str, Any]
    command: str | None
    metric: str
    """What its trials are judged by: a metric of the task, or `loss`, the evaluation loss, of which less is better."""
    trials: tuple[TrialRecord, ...]
    teachers: tuple[TeacherRows, ...]
    sessions: tuple[Session, ...]
    rounds: tuple[Round, ...]
    """What was decided in each round of a population."""
    replayed: bool
    """Whether every session repeated the decisions of the search before it went on; False is rare, see README."""
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
        return sum(session.seconds for session in self.sessions)

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
        again = {canonical(trial.values) for trial in tried if trial.rerun and trial.counts}
        return {trial.run for trial in tried if canonical(trial.values) in again}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a sweep took. Seconds are wall time; `overhead` is the mean of what a trial took beyond training."""

    wall_seconds: float
    trial_seconds: float
    training_seconds: float
    gpu_hours: float
    money: float | None
    num_trials: int
    num_done: int
    num_stopped: int
    num_failed: int
    num_reused: int
    overhead: float | None
    overhead_first: float | None
    """The mean over trials that had to load everything, the first of each place."""
    slots: int | None
    teacher_rows: int
    """Rows that teachers read during the sweep; those of the store cost nothing."""
    store_rows: int
    """Rows of the stores that trials learnt from."""
    saved_share: float
    """Share of all candidates' steps that early stops saved."""


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
    metric = str(head.get("judge") or (experiment.get("task") or {}).get("metric") or "accuracy")
    return SweepRecord(
        folder=folder,
        name=str(head.get("name") or folder.parent.name),
        experiment=experiment,
        command=head.get("command"),
        metric=metric,
        trials=tuple(_with_values(trial, metric) for trial in trials_of(records)),
        teachers=tuple(TeacherRows.read(record) for record in records if record.get("kind") == "teacher"),
        sessions=sessions_of(records),
        rounds=tuple(_round_with_values(record, metric) for record in records if record.get("kind") == "round"),
        replayed=not any(record.get("kind") == "replay" and not record.get("exact") for record in records),
        closed=closed_as(records),
    )


def cost_of(record: SweepRecord) -> Cost:
    """What the sweep took, from its ledger."""
    trials = record.trials
    budget = dict_at(record.experiment, "sweep", "budget")
    seconds = sum(trial.seconds or 0.0 for trial in trials)
    overheads = [(t.seconds or 0.0, t.overhead) for t in trials if t.overhead is not None]
    slots = next((session.slots for session in reversed(record.sessions) if session.slots), None)
    first = [overhead for _, overhead in overheads[: slots or 1]]
    later = [overhead for _, overhead in overheads[slots or 1 :]]
    price = number(budget.get("price_per_hour"))
    candidates = [t for t in trials if t.role == CANDIDATE and t.status in ("done", "stopped")]
    return Cost(
        wall_seconds=record.wall_seconds,
        trial_seconds=seconds,
        training_seconds=sum(
            (t.seconds or 0.0) - t.untold_seconds - t.overhead for t in trials if t.overhead is not None
        ),
        gpu_hours=sum((trial.seconds or 0.0) * trial.gpus for trial in trials) / 3600,
        money=None if price is None else price * seconds / 3600,
        num_trials=len(trials),
        num_done=len(record.trials_of("done")),
        num_stopped=len(record.trials_of("stopped")),
        num_failed=len(record.trials_of("failed")),
        num_reused=sum(trial.reused for trial in trials),
        overhead=statistics.fmean(later) if later else None,
        overhead_first=statistics.fmean(first) if first else None,
        slots=slots,
        teacher_rows=sum(one.computed or 0 for one in record.teachers),
        store_rows=sum(rows or 0 for _, rows in {(one.teacher, one.rows) for one in record.teachers}),
        saved_share=1 - sum(t.share for t in candidates) / len(candidates) if candidates else 0.0,
    )


def _with_values(trial: TrialRecord, metric: str) -> TrialRecord:
    """`trial` with values of `metric` as people read them in place of qualities, of which more is better."""
    if metric != LOSS:
        return trial
    paused = trial.paused_at
    return dataclasses.replace(
        trial,
        reports=tuple((share, value_of_quality(metric, each)) for share, each in trial.reports),
        value=None if trial.value is None else value_of_quality(metric, trial.value),
        paused_at=None if paused is None else (*paused[:2], value_of_quality(metric, paused[2])),
    )


def _round_with_values(record: Mapping[str, Any], metric: str) -> Round:
    found = Round.read(record)
    scores = {run: None if score is None else value_of_quality(metric, score) for run, score in found.scores.items()}
    return dataclasses.replace(found, scores=scores)


def sessions_of(records: Iterable[Mapping[str, Any]]) -> tuple[Session, ...]:
    """All sessions in order, each up to its last line."""
    found: list[Session] = []
    for record in records:
        if record.get("kind") == "session":
            found.append(Session(record["at"]))
        elif found and isinstance(record.get("at"), int | float):
            seconds = max(found[-1].seconds, record["at"] - found[-1].began)
            slots = record["slots"] if record.get("kind") == "room" else found[-1].slots
            found[-1] = Session(found[-1].began, seconds, slots)
    return tuple(found)

"""Population based training (arXiv 1711.09846): which members go on from whose students, and with what values.

Why not Ray's PopulationBasedTraining: its state is a snapshot of Tune that is some seconds old when a process dies, its
random numbers are the process's, and which members it compares depends on who happened to be faster. Here a round is
decided when all members have come to the same evaluation, from the ledger alone and with random numbers of
(sweep.search.seed, round, member), so that a sweep killed anywhere takes the same decisions. All members have a student
of one size and the same rows, so they come there together and little is lost by waiting.

A member that goes on from another one's student is a new trial: the other's configuration with one more entry in
`train.changes`. All members have the same `train.seed`, so this is the configuration of a run which, trained from its
start, ends with the same student; the copied checkpoint only saves its first steps. So what a population finds can be
read, repeated (`raybrew distill .../config.yaml`) and run with other seeds.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from raybrew.config import Experiment
from raybrew.config.sweep import ParameterConfig, SchedulerConfig, SweepConfig
from raybrew.errors import ConfigError
from raybrew.records.ledger import Ledger
from raybrew.records.sweeps import Move, Round
from raybrew.records.trial_index import Trials
from raybrew.records.trials import TrialRecord, after
from raybrew.sweeps.jobs import Job, make_job
from raybrew.sweeps.search import draw_value, readable

__all__ = [
    "FACTORS",
    "Population",
    "States",
    "explore",
    "matchups",
    "next_stop",
    "round_random",
    "values_in_force",
    "with_change",
]

#: What a number from a range is multiplied by.
FACTORS = (0.8, 1.2)
_CLOSE = 1e-6
#: Draws of other values for a member before it is left as it is.
_DRAWS = 50


def next_stop(share: float, interval: float) -> float | None:
    """The share of all steps at which the next round is due for a member that is at `share`; None for the last part."""
    stop = (int(share / interval + _CLOSE) + 1) * interval
    return None if stop > 1 - _CLOSE else round(stop, 9)


def round_random(seed: int, number: int, member: int) -> random.Random:
    """The random numbers of one decision."""
    return random.Random(f"population {seed} {number} {member}")


def matchups(scores: Mapping[int, float | None], quantile: float) -> tuple[list[int], list[int]]:
    """Members to replace and members to take over from, both from good to bad; a score of None is a failed member.

    Truncation selection: the lowest `quantile` of all give way to the highest as many. Failed ones always give way.
    """
    alive = sorted((m for m, score in scores.items() if score is not None), key=lambda m: (-_score(scores, m), m))
    failed = sorted(m for m, score in scores.items() if score is None)
    count = max(1, int(len(scores) * quantile + _CLOSE))
    best = alive[: min(count, len(alive))]
    rest = alive[len(best) :]
    lowest = rest[len(rest) - min(len(rest), max(0, count - len(failed))) :]
    return [*lowest, *failed] if best else [], best


def _score(scores: Mapping[int, float | None], member: int) -> float:
    found = scores[member]
    assert found is not None
    return found


def values_in_force(values: Mapping[str, Any]) -> dict[str, Any]:
    """What holds at the end of a trial's `train.changes`."""
    found = {key: value for key, value in values.items() if key != "train.changes"}
    for change in values.get("train.changes") or ():
        found |= change["values"]
    return found


def explore(
    now: Mapping[str, Any], space: Mapping[str, ParameterConfig], scheduler: SchedulerConfig, rng: random.Random
) -> dict[str, Any]:
    """Other values for the keys of `scheduler.mutations`, within the space; only those that differ from `now`."""
    found: dict[str, Any] = {}
    for key in scheduler.mutations if scheduler.mutations is not None else space:
        parameter, value = space[key], now[key]
        new = draw_value(parameter, rng) if rng.random() < scheduler.resample else _perturbed(parameter, value, rng)
        if new != value:
            found[key] = new
    return found


def _perturbed(parameter: ParameterConfig, value: Any, rng: random.Random) -> Any:
    if parameter.discrete:
        values = sorted(parameter.values)
        place = values.index(value) + rng.choice((-1, 1))
        return values[min(max(place, 0), len(values) - 1)]
    low, high = parameter.values
    moved = value * rng.choice(FACTORS)
    if parameter.kind == "int":
        whole = round(moved)
        if whole == value:
            whole += 1 if moved > value else -1
        return min(max(whole, low), high)
    return readable(moved, low, high)


def with_change(values: Mapping[str, Any], at: float, new: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a trial that does as that of `values` up to the share `at`, and has `new` from there on."""
    before: Sequence[Any] = values.get("train.changes") or ()
    return {**values, "train.changes": [*before, {"at": round(at, 9), "values": dict(new)}]}


class States(Protocol):
    """The training states of runs, see `RunStates`."""

    def copy(self, source: str, step: int, target: str) -> bool: ...
    def drop(self, run: str) -> None: ...


class Conducting(Protocol):
    """What a population asks of the conductor that it is a part of."""

    base: Experiment
    sweep: SweepConfig
    group: str
    ledger: Ledger
    trials: Trials
    jobs: dict[str, Job]
    queue: deque[str]

    @property
    def num_trials(self) -> int: ...
    def ask(self, drawn: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any] | None: ...
    def add(self, job: Job, applied: dict[str, Any] | None, **of_population: Any) -> None: ...
    def add_configuration(self, values: dict[str, Any], member: int | None = None) -> str: ...
    def ended(self, run: str, outcome: Mapping[str, Any]) -> None: ...


class Population:
    """The members of a sweep by population based training: a part of its conductor."""

    def __init__(self, conductor: Conducting, states: States) -> None:
        self.conductor = conductor
        self.states = states
        self.beginnings: list[dict[str, Any]] | None = None  #: what the members begin with
        self.members: dict[int, str] = {}  #: the run of each member, by its number
        self.rounds: list[Round] = []

    @property
    def size(self) -> int | None:
        """Members; None while they are not drawn."""
        return None if self.beginnings is None else len(self.beginnings)

    def until(self, trial: TrialRecord) -> float | None:
        """The share of its steps at which a trial is to pause; None to go on to the end."""
        if trial.member is None:
            return None
        return next_stop(trial.paused_at[1] if trial.paused_at else 0.0, self.conductor.sweep.scheduler.interval)

    def take_up(self, records: list[dict[str, Any]]) -> None:
        """Carry out what of the last round was not, and go on with the members that have something to do."""
        begun = next((record for record in records if record["kind"] == "population"), None)
        if begun is None:
            return
        asked = begun.get("asked")
        if asked != self.conductor.sweep.trials:
            raise ConfigError(
                f"sweep.trials: given {self.conductor.sweep.trials}, but this sweep began with a population of "
                f"{asked or len(begun['members'])}; keep that number, or make another sweep of it by another "
                "name or sweep.search.seed"
            )
        self.beginnings = begun["members"]
        self.rounds = [Round.read(record) for record in records if record["kind"] == "round"]
        for trial in self.conductor.trials.values():
            if trial.member is not None:
                self.members[trial.member] = trial.run  # of several of a member the last one holds
        copied = {str(record["run"]) for record in records if record["kind"] == "copy"}
        if self.rounds:
            self._carry_out(self.rounds[-1], copied)
        for run in self.members.values():
            trial = self.conductor.trials[run]
            # What failed for reasons that pass is tried again, as long as no round has replaced it.
            if (
                trial.status in ("waiting", "running")
                or (trial.status == "failed" and not trial.failed_for_good)
                or (trial.status == "paused" and trial.decided)
            ):
                self._enqueue(run)

    def _enqueue(self, run: str) -> None:
        if run not in self.conductor.queue and run in self.conductor.jobs:
            self.conductor.queue.append(run)

    def plan(self) -> None:
        """Begin with all members, then decide each round once all members have come to it."""
        if self.beginnings is None:
            drawn: list[dict[str, Any]] = []
            while len(drawn) < self.conductor.num_trials and (values := self.conductor.ask(drawn)) is not None:
                drawn.append(values)
            self.conductor.ledger.write("population", asked=self.conductor.sweep.trials, members=drawn)
            self.beginnings = drawn
        for number, values in enumerate(self.beginnings, 1):
            if number not in self.members:
                self.members[number] = self.conductor.add_configuration(values, number)
        current = [self.conductor.trials[run] for run in self.members.values()]
        if any(trial.status in ("waiting", "running") for trial in current):
            return
        waiting = [trial for trial in current if trial.status == "paused" and not trial.decided]
        if waiting:
            self._decide(waiting, [trial for trial in current if trial.status == "failed"])

    def _decide(self, waiting: list[TrialRecord], failed: list[TrialRecord]) -> None:
        """One round: noted first, carried out then."""
        number = len(self.rounds) + 1
        by_member = {trial.member: trial for trial in [*waiting, *failed] if trial.member is not None}
        scores = {
            member: trial.paused_at[2] if trial.status == "paused" and trial.paused_at else None
            for member, trial in by_member.items()
        }
        losers, best = matchups(scores, self.conductor.sweep.scheduler.quantile)
        moves = []
        known = set(self.conductor.trials)
        for member in losers:
            rng = round_random(self.conductor.sweep.search.seed, number, member)
            move = self._move(by_member[member], by_member[rng.choice(best)], rng, known)
            if move is not None:
                known.add(move.run)
                moves.append(move)
        line = self.conductor.ledger.write(
            "round",
            number=number,
            scores={trial.run: scores[member] for member, trial in by_member.items()},
            moves=[move.plain() for move in moves],
        )
        self.rounds.append(Round.read(line))
        for trial in by_member.values():
            self.conductor.trials[trial.run] = after(self.conductor.trials[trial.run], line)
        self._carry_out(self.rounds[-1], set())
        for run in self.members.values():
            if self.conductor.trials[run].status in ("paused", "waiting"):
                self._enqueue(run)

    def _move(self, loser: TrialRecord, winner: TrialRecord, rng: random.Random, known: set[str]) -> Move | None:
        """What becomes of `loser`; None if no values are left that nobody has tried from there."""
        assert winner.paused_at is not None
        for _ in range(_DRAWS):
            new = explore(
                values_in_force(winner.values), self.conductor.sweep.space, self.conductor.sweep.scheduler, rng
            )
            if not new:
                continue
            values = with_change(winner.values, winner.paused_at[1], new)
            try:
                run = make_job(self.conductor.base, values, winner.seed, self.conductor.group).run
            except ConfigError:
                continue
            if run not in known:
                return Move(member=loser.member or 0, of=loser.run, source=winner.run, run=run, values=values,
                            begins=winner.paused_at, new=new)  # fmt: skip
        return None

    def _carry_out(self, decided: Round, copied: set[str]) -> None:
        """Make true what a round decided; what is true already stays. Nobody goes on before all of it is."""
        for move in decided.moves:
            if self.conductor.trials[move.of].status == "paused":
                self.conductor.ended(move.of, {"status": "stopped"})
            if move.run not in self.conductor.trials:
                values, seed = dict(move.values), self.conductor.trials[move.source].seed
                job = make_job(self.conductor.base, values, seed, self.conductor.group)
                of_member = {"member": move.member, "source": move.source, "begins": list(move.begins)}
                self.conductor.add(job, values, **of_member)
            self.members[move.member] = move.run
            if move.run not in copied:
                found = self.states.copy(move.source, int(move.begins[0]), move.run)
                # Without it the trial does those steps itself: its configuration says how.
                self.conductor.ledger.write("copy", run=move.run, source=move.source, found=found)
            self.states.drop(move.of)

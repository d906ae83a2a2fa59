"""What is tried next, and what has come of everything so far. Knows the ledger, not Ray.

Order: controls, then configurations of the search with all their seeds, then further seeds for the best, then what is
to be kept but has lost its student. Everything is decided from the ledger, and a search repeats what it was asked and
told (`raybrew.sweeps.replay`), so a sweep that is continued takes the same decisions as one that was never stopped,
given the same order of events. README, "Sweeps", says what that order depends on.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

from raybrew.config import Experiment
from raybrew.config.space import DEFAULT_TRIALS
from raybrew.config.sweep import SweepConfig
from raybrew.config.sweep_judge import sweep_judge
from raybrew.errors import ConfigError
from raybrew.models.devices import Devices
from raybrew.records.ledger import Ledger
from raybrew.records.ranking import Standing, parameters_in, ranking
from raybrew.records.sweeps import sessions_of
from raybrew.records.trial_index import OVER, Trials
from raybrew.records.trials import CANDIDATE, TrialRecord, after, new_trial, trials_of
from raybrew.sweeps.controls import Controls, StepsOf
from raybrew.sweeps.jobs import Job, canonical, gpus_of, make_job, over_budget, spent
from raybrew.sweeps.population import Population, States
from raybrew.sweeps.replay import Older, mean_objectives, replay
from raybrew.sweeps.search import build_source, optuna_params
from raybrew.sweeps.students import RunStates, Students

__all__ = ["Conductor"]


class Conductor:
    """The state of a sweep. Methods are called by one thread."""

    def __init__(
        self,
        base: Experiment,
        ledger: Ledger,
        *,
        steps_of: StepsOf,
        objectives: Callable[[str], tuple[float, ...] | None],
        older: tuple[Older, ...] = (),
        states: States | None = None,
    ) -> None:
        assert base.sweep is not None
        self.base = base
        self.sweep: SweepConfig = base.sweep
        self.judge = sweep_judge(base)  #: the metric or LOSS; values of trials are qualities, higher being better
        self.ledger = ledger
        self.objectives = objectives
        self.group = f"{base.name}-{ledger.folder.name}"
        self.controls = Controls(base, self.group, steps_of)
        self.students = Students(ledger.folder)
        #: GPUs of the cluster, once that is known: they decide whether trials run on GPUs.
        self.devices = Devices(0)
        self.jobs: dict[str, Job] = {}
        self.trials = Trials()
        self.running: dict[str, float] = {}
        self.queue: deque[str] = deque()
        self.exhausted = False
        self.stopped_by: str | None = None
        self.population = Population(self, states or RunStates(ledger.folder.parent)) if self._is_pbt else None
        self._rerun_planned = False
        self.began = time.time()
        self.seconds_before = 0.0
        self._take_up(older)

    # What there is

    def _take_up(self, older: tuple[Older, ...]) -> None:
        """Everything that the ledger knows: finished trials count, the others go first."""
        records = self.ledger.records()
        noted: dict[str, dict[str, Any]] = {}
        for record in records:
            if record["kind"] == "trial":
                noted.setdefault(record["run"], record)
        # Nobody else is at this sweep: what seems to run was killed.
        for trial in trials_of([*records, {"kind": "session"}]):
            self.trials[trial.run] = trial
            try:
                # What was laid over the base, which for controls is more than the values that are shown.
                line = noted[trial.run]
                values = dict(line.get("applied") or line["values"])
                job = make_job(self.base, values, trial.seed, self.group, trial.role, trial.rerun)
            except ConfigError:
                continue
            if job.run != trial.run:
                continue  # another version named it: what it measured counts, but it cannot go on
            self.jobs[job.run] = dataclasses.replace(job, values=trial.values)
            if trial.role == CANDIDATE:
                self.controls.key_of(job)  # the first candidate decides how its controls start
            if trial.member is not None and not trial.again:
                continue  # the population knows when it is its turn
            if trial.status in ("waiting", "running") or (trial.status == "failed" and not trial.failed_for_good):
                self.queue.append(trial.run)
        self.seconds_before = sum(session.seconds for session in sessions_of(records))
        self.source = build_source(self.sweep)
        for one in older:
            self.source.tell(one.values, one.objectives)
        replay(self.source, records, self._told)
        self._older_first = sorted(older, key=lambda one: -one.objectives[0])
        if self.population is not None:
            self.population.take_up(records)
        for values in self._configurations():
            self._complete(values)

    def _complete(self, values: dict[str, Any]) -> None:
        """Note the seeds that a configuration lacks: `sweep.seeds` has grown, or a kill came between them."""
        runs = {trial.run: trial.member for trial in self.trials_with(values)}
        if len(runs) < self.sweep.seeds and all(run in self.jobs for run in runs):
            self.add_configuration(values, next(iter(runs.values())))

    def _configurations(self) -> list[dict[str, Any]]:
        """Values of the search so far, in order."""
        return self.trials.configurations()

    def trials_with(self, values: Mapping[str, Any], role: str = CANDIDATE) -> list[TrialRecord]:
        """All seeds of a configuration."""
        return self.trials.with_values(values, role)

    @property
    def _is_pbt(self) -> bool:
        return self.sweep.scheduler.row.rounds

    @property
    def num_trials(self) -> int:
        """Configurations of the whole search, as far as that is known."""
        if self.population is not None and self.population.size is not None:
            return self.population.size
        if self.exhausted:
            return len(self.trials.known)
        if self.sweep.trials is not None:
            return self.sweep.trials
        return 10**9 if self.sweep.search.row.lists else DEFAULT_TRIALS

    # What comes next

    def next(self) -> Job | None:
        """The next trial to start; None when there is none now, see `finished`."""
        self.stopped_by = self.stopped_by or self.over_budget()
        if self.stopped_by is not None:
            return None
        if not self.queue:
            self._plan()
        while self.queue:
            run = self.queue.popleft()
            if run not in self.running:
                return self.jobs[run]
        return None

    @property
    def finished(self) -> bool:
        """Whether nothing will come any more."""
        if self.stopped_by is not None:
            return True
        return not self.queue and not self.running and self._rerun_planned

    def over(self) -> bool:
        """Whether there was nothing left to do before anything started; plans what there is."""
        if not self.queue:
            self._plan()
        return not self.queue and self._rerun_planned

    def _plan(self) -> None:
        """Put into the queue what the ledger calls for next."""
        if self.population is not None:
            self.population.plan()
        while self.population is None and not self.queue and len(self.trials.known) < self.num_trials:
            values = self.ask()
            if values is None:
                self.exhausted = True
                break
            self.add_configuration(values)
        if self.queue or self.running:
            return
        if not self._rerun_planned:
            self._rerun_planned = True
            self._plan_rerun()
        if not self.queue:
            self._plan_again()

    def ask(self, drawn: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any] | None:
        """Another configuration than those that are noted or `drawn`; None if there is none left."""
        known: Set[str] = self.trials.known
        if drawn:
            known = known | {canonical(values) for values in drawn}
        while self._older_first and not self.sweep.search.row.learns:
            values = self._older_first.pop(0).values
            if optuna_params(self.sweep, values) is not None and canonical(values) not in known:
                return values  # what was good elsewhere is tried first
        return self.source.next(known)

    def add_configuration(self, values: dict[str, Any], member: int | None = None) -> str:
        """Note all seeds of a configuration as trials; returns the run of the first."""
        runs = []
        for offset in range(self.sweep.seeds):
            seed = self.base.train.seed + offset
            try:
                job = make_job(self.base, values, seed, self.group)
            except ConfigError as error:
                runs.append(self._add_impossible(values, seed, error, member))
                continue
            if offset == 0:
                self._add_controls(job, self.sweep.seeds)
            self.add(job, values, member=member)
            runs.append(job.run)
        return runs[0]

    def _add_controls(self, job: Job, num_seeds: int, rerun: bool = False) -> None:
        if self.sweep.controls:
            for control in self.controls.jobs(job, num_seeds, self.trials if rerun else None):
                self.add(control, None)

    def add(self, job: Job, applied: dict[str, Any] | None, **of_population: Any) -> None:
        """Note a trial and put it into the queue.

        A configuration that is there stays one trial: as one of the search, if it was a control only so far.
        """
        there = self.trials.get(job.run)
        if there is not None and (there.role == CANDIDATE or job.role != CANDIDATE):
            return
        number = len(self.trials) + 1 if there is None else there.number
        plain = job.experiment.plain()
        if applied is None:
            applied = {name: plain[name] for name in ("task", "data", "student", "distill", "train")}
        line = self.ledger.write(
            "trial", number=number, run=job.run, role=job.role, values=job.values, seed=job.seed, rerun=job.rerun,
            applied=applied, **{key: value for key, value in of_population.items() if value is not None},
        )  # fmt: skip
        self.jobs[job.run] = job
        if there is not None:
            self.trials[job.run] = after(there, line)
            return
        self.trials[job.run] = new_trial(line, self.trials)
        if "source" not in of_population:
            self.queue.append(job.run)

    def _add_impossible(self, values: dict[str, Any], seed: int, error: ConfigError, member: int | None = None) -> str:
        """A corner that only drawing found: noted as failed, as its run has no name."""
        run = f"impossible-{len(self.trials) + 1}"
        line = self.ledger.write(
            "trial", number=len(self.trials) + 1, run=run, role=CANDIDATE, values=values, seed=seed, member=member
        )
        self.trials[run] = new_trial(line, self.trials)
        text = "; ".join(map(str, error.problems)) or str(error)
        self.ended(run, {"status": "failed", "error": f"ConfigError: {text}", "error_type": "ConfigError"})
        return run

    def until(self, run: str) -> float | None:
        """The share of its steps at which a trial is to pause; None to go on to the end."""
        trial = self.trials[run]
        return None if self.population is None or trial.again else self.population.until(trial)

    def _plan_rerun(self) -> None:
        rerun = self.sweep.rerun_best
        for standing in self.ranking(to_rerun=True)[: rerun.count]:
            for offset in range(rerun.seeds):
                job = make_job(self.base, standing.values, self.base.train.seed + offset, self.group, rerun=True)
                if offset == 0:
                    self._add_controls(job, rerun.seeds, rerun=True)
                self.add(job, standing.values)

    def _plan_again(self) -> None:
        """Train again what is to be kept, but has lost its student; each run once in a session."""
        for run in self.students.lacking(self.ranking(), self.sweep.keep_students):
            if run in self.jobs:
                line = self.ledger.write("again", run=run)
                self.trials[run] = after(self.trials[run], line)
                self.queue.append(run)

    def ranking(self, to_rerun: bool = False) -> list[Standing]:
        """Finished configurations, best first, by the one rule: see `raybrew.records.ranking`."""
        return ranking(self.trials.values(), parameters_in(self.ledger.folder.parent), to_rerun=to_rerun)

    # What happened

    def started(self, run: str) -> None:
        """A trial begins (or begins again)."""
        self.running[run] = time.time()
        gpus = gpus_of(self.jobs[run].experiment, self.sweep, self.devices.gpus)
        line = self.ledger.write("start", run=run, gpus=gpus)
        self.trials[run] = after(self.trials[run], line)

    def lost(self, run: str, error: str, seconds: float | None = None) -> None:
        """The process of a trial is gone after `seconds`; another one goes on from its last checkpoint."""
        more = {} if seconds is None else {"seconds": round(seconds, 3)}
        line = self.ledger.write("lost", run=run, error=error, **more)
        self.trials[run] = after(self.trials[run], line)
        if seconds is not None and run in self.running:
            self.running[run] = time.time()

    def interrupted(self, run: str, outcome: Mapping[str, Any]) -> None:
        """The sweep stops while a trial runs, which goes on when the sweep is continued. Its `seconds` so far count."""
        self.running.pop(run, None)
        line = self.ledger.write("interrupted", run=run, **outcome)
        self.trials[run] = after(self.trials[run], line)

    def reported(self, run: str, share: float, value: float) -> None:
        """An evaluation."""
        line = self.ledger.write("report", run=run, share=round(share, 6), value=value)
        self.trials[run] = after(self.trials[run], line)

    def paused(self, run: str, outcome: Mapping[str, Any]) -> None:
        """A trial has come to `until`: `step`, `share` and `value` there."""
        self.running.pop(run, None)
        line = self.ledger.write("pause", run=run, **outcome)
        self.trials[run] = after(self.trials[run], line)

    def ended(self, run: str, outcome: Mapping[str, Any]) -> None:
        """A trial has ended: `status` done, stopped or failed, and what it measured."""
        self.running.pop(run, None)
        if outcome.get("reused") and self.trials[run].reports:
            # It was done by this sweep, in a session that was killed before it could say so.
            outcome = {**outcome, "reused": False}
        if outcome["status"] == "done" and (objectives := self.objectives(run)) is not None:
            # Noted, as a continued search must be told the same: times are measured anew after the last trial.
            outcome = {**outcome, "objectives": list(objectives)}
        line = self.ledger.write("end", run=run, **outcome)
        trial = self.trials[run] = after(self.trials[run], line)
        seeds = self.trials_with(trial.values)
        if trial.role == CANDIDATE and all(seed.status in OVER for seed in seeds):
            self.source.tell(trial.values, self._told(seeds))

    def _told(self, seeds: Sequence[TrialRecord]) -> tuple[float, ...] | None:
        return mean_objectives(seeds, self.sweep.search.objectives, self.objectives)

    def spent(self) -> dict[str, float]:
        """Minutes, GPU-hours, money and failures so far."""
        return spent(self)

    def over_budget(self) -> str | None:
        """Which limit is reached, in words; None while there is room."""
        return over_budget(self)

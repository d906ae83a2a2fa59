"""What is tried next, and what has come of everything so far. Knows the ledger, not Ray.

Order: controls, then configurations of the search with all their seeds, then further seeds for the best. Everything is
decided from the ledger, so a sweep that is continued takes the same decisions as one that was never stopped.
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
from raybrew.errors import ConfigError
from raybrew.reports.sweeps import CANDIDATE, TrialRecord, after, new_trial, sessions_of, trials_of
from raybrew.sweeps.jobs import LASTING, Job, canonical, control_jobs, make_job, shape_of
from raybrew.sweeps.ledger import Ledger
from raybrew.sweeps.rounds import Population, States
from raybrew.sweeps.search import Optuna, build_source, optuna_params
from raybrew.sweeps.states import RunStates
from raybrew.sweeps.trials import OVER, Trials

__all__ = ["Conductor", "Older"]


@dataclasses.dataclass(frozen=True)
class Older:
    """A configuration of an older sweep with its objectives."""

    values: dict[str, Any]
    objectives: tuple[float, ...]


class Conductor:
    """The state of a sweep. Methods are called by one thread."""

    def __init__(
        self,
        base: Experiment,
        ledger: Ledger,
        *,
        control_epochs: int,
        objectives: Callable[[str], tuple[float, ...] | None],
        older: tuple[Older, ...] = (),
        states: States | None = None,
    ) -> None:
        assert base.sweep is not None
        self.base = base
        self.sweep: SweepConfig = base.sweep
        self.ledger = ledger
        self.control_epochs = control_epochs
        self.objectives = objectives
        self.group = f"{base.name}-{ledger.folder.name}"
        self.jobs: dict[str, Job] = {}
        self.trials = Trials()
        self.running: dict[str, float] = {}
        self.queue: deque[str] = deque()
        self.exhausted = False
        self.stopped_by: str | None = None
        self.population = Population(self, states or RunStates(ledger.folder.parent)) if self._is_pbt else None
        self._rerun_planned = False
        self._controlled: set[str] = set()
        self._of_shape: dict[tuple[str, int], list[str]] = {}
        self._started = time.time()
        self._spent_before = 0.0
        self._take_up(older)

    # What there is

    def _take_up(self, older: tuple[Older, ...]) -> None:
        """Everything that the ledger knows: finished trials count, the others go first."""
        records = self.ledger.records()
        noted: dict[str, dict[str, Any]] = {}
        for record in records:
            if record["kind"] == "trial":
                noted.setdefault(record["run"], record)
        for trial in trials_of(records):
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
            self._know(dataclasses.replace(job, values=trial.values))
            lasting = trial.status == "failed" and str(trial.error).split(":")[0] in LASTING
            if trial.member is not None:
                continue  # the population knows when it is its turn
            if trial.status in ("waiting", "running") or (trial.status == "failed" and not lasting):
                self.queue.append(trial.run)
        self._spent_before = float(sum(session["seconds"] for session in sessions_of(records)))
        finished = [values for values in self._configurations() if self._told(values) is not None]
        self.source = build_source(self.sweep, len(finished))
        for one in older:
            self.source.tell(one.values, one.objectives)
        for values in finished:
            self.source.tell(values, self._told(values))
        self._older_first = sorted(older, key=lambda one: -one.objectives[0])
        if self.population is not None:
            self.population.take_up(records)

    def _know(self, job: Job) -> None:
        self.jobs[job.run] = job
        self._of_shape.setdefault((shape_of(job), job.seed), []).append(job.run)

    def _configurations(self) -> list[dict[str, Any]]:
        """Values of the search so far, in order."""
        return self.trials.configurations()

    def trials_with(self, values: Mapping[str, Any], role: str = CANDIDATE) -> list[TrialRecord]:
        """All seeds of a configuration."""
        return self.trials.with_values(values, role)

    @property
    def _is_pbt(self) -> bool:
        return self.sweep.scheduler.kind == "pbt"

    @property
    def num_trials(self) -> int:
        """Configurations of the whole search, as far as that is known."""
        if self.population is not None and self.population.size is not None:
            return self.population.size
        if self.exhausted:
            return len(self.trials.known)
        if self.sweep.trials is not None:
            return self.sweep.trials
        return 10**9 if self.sweep.search.kind == "grid" else DEFAULT_TRIALS

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

    def ask(self, drawn: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any] | None:
        """Another configuration than those that are noted or `drawn`; None if there is none left."""
        known: Set[str] = self.trials.known
        if drawn:
            known = known | {canonical(values) for values in drawn}
        while self._older_first and not isinstance(self.source, Optuna):
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
        key = f"{shape_of(job)} {num_seeds}"
        if not self.sweep.controls or key in self._controlled:
            return
        self._controlled.add(key)
        for control in control_jobs(self.base, job, self.group, self.control_epochs, num_seeds, rerun):
            # Students of one shape that start otherwise have the same control.
            alike = self._of_shape.get((shape_of(control), control.seed), ())
            known = any(self.trials[run].role == control.role for run in alike)
            if not known:
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
            applied = {name: plain[name] for name in ("data", "student", "distill", "train")}
        gpus = self.sweep.resources.gpus if job.experiment.train.worker_range[1] == 1 else 0.0
        line = self.ledger.write(
            "trial", number=number, run=job.run, role=job.role, values=job.values, seed=job.seed, rerun=job.rerun,
            applied=applied, gpus=gpus, **{key: value for key, value in of_population.items() if value is not None},
        )  # fmt: skip
        self._know(job)
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
        text = "; ".join(error.problems) or str(error)
        self.ended(run, {"status": "failed", "error": f"ConfigError: {text}"})
        return run

    def until(self, run: str) -> float | None:
        """The share of its steps at which a trial is to pause; None to go on to the end."""
        return None if self.population is None else self.population.until(self.trials[run])

    def _plan_rerun(self) -> None:
        rerun = self.sweep.rerun_best
        for values in self.ranking()[: rerun.count]:
            for offset in range(rerun.seeds):
                job = make_job(self.base, values, self.base.train.seed + offset, self.group, rerun=True)
                if offset == 0:
                    self._add_controls(job, rerun.seeds, rerun=True)
                self.add(job, values)

    def ranking(self) -> list[dict[str, Any]]:
        """Finished configurations, best first: mean of `task.metric`, ties to fewer parameters."""
        scored = []
        for index, values in enumerate(self._configurations()):
            done = [t for t in self.trials_with(values) if t.status == "done" and t.value is not None]
            if done:
                mean = sum(t.value for t in done if t.value is not None) / len(done)
                found = self.objectives(done[0].run)
                scored.append((-mean, found[-1] if found else 0.0, index, values))
        return [values for *_, values in sorted(scored, key=lambda item: item[:3])]

    # What happened

    def started(self, run: str) -> None:
        """A trial begins (or begins again)."""
        self.running[run] = time.time()
        line = self.ledger.write("start", run=run)
        self.trials[run] = after(self.trials[run], line)

    def lost(self, run: str, error: str) -> None:
        """The process of a trial is gone; another one takes the trial up from its last checkpoint."""
        line = self.ledger.write("lost", run=run, error=error)
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
        line = self.ledger.write("end", run=run, **outcome)
        trial = self.trials[run] = after(self.trials[run], line)
        if trial.role == CANDIDATE and all(t.status in OVER for t in self.trials_with(trial.values)):
            self.source.tell(trial.values, self._told(trial.values))

    def _told(self, values: Mapping[str, Any]) -> tuple[float, ...] | None:
        """The objectives of a configuration, averaged over its seeds; what was stopped counts with what it reached."""
        names = self.sweep.search.objectives
        trials = [t for t in self.trials_with(values) if t.status in ("done", "stopped")]
        rows: list[tuple[float, ...]] = []
        for trial in trials:
            if trial.status == "stopped" and trial.reports and names == ("quality",):
                rows.append((max(value for _, value in trial.reports),))
            elif trial.status == "done" and (found := self.objectives(trial.run)) is not None:
                rows.append(found[: len(names)])
        if not rows:
            return None
        return tuple(sum(row[index] for row in rows) / len(rows) for index in range(len(names)))

    # What it costs

    def spent(self) -> dict[str, float]:
        """Minutes, GPU-hours, money and failures so far."""
        now = time.time()
        seconds, gpu_seconds = self.trials.seconds, self.trials.gpu_seconds
        for run, since in list(self.running.items()):  # another thread may ask
            seconds += now - since
            gpu_seconds += (now - since) * self.trials[run].gpus
        price = self.sweep.budget.price_per_hour
        return {
            "wall_minutes": (self._spent_before + now - self._started) / 60,
            "gpu_hours": gpu_seconds / 3600,
            "money": seconds / 3600 * price if price is not None else 0.0,
            "failures": self.trials.counts["failed"],
        }

    def over_budget(self) -> str | None:
        """Which limit is reached, in words; None while there is room."""
        budget, spent = self.sweep.budget, self.spent()
        for name in ("wall_minutes", "gpu_hours", "money"):
            limit = getattr(budget, name)
            if limit is not None and spent[name] >= limit:
                return f"sweep.budget.{name} ({limit:g}) is used up"
        if budget.failures is not None and spent["failures"] > budget.failures:
            return f"{spent['failures']:.0f} trials failed, sweep.budget.failures allows {budget.failures}"
        return None

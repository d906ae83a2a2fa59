"""A sweep that is continued decides as one that was never stopped, and pays for what it did before."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raybrew.config.sweep import SchedulerConfig
from raybrew.models.devices import Devices
from raybrew.records.ledger import Ledger
from raybrew.records.sweeps import CANDIDATE, TrialRecord, cost_of, load_sweep
from raybrew.sweeps.conductor import Conductor
from raybrew.sweeps.jobs import Job
from raybrew.sweeps.schedulers import build_scheduler
from raybrew.sweeps.students import Students
from raybrew.tracking.jsonl import MetricsLog
from unit.sweep_helpers import base, conductor_of, drive, end

SPACE = {"train.learning_rate": {"loguniform": [1e-5, 1e-3]}, "distill.temperature": [1, 2, 4, 8]}
OPTUNA: dict[str, Any] = {
    "space": SPACE,
    "search": {"kind": "optuna", "startup_trials": 3},
    "trials": 9,
    "controls": False,
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here pulls the plug: lines need not reach the disk itself. Trials leave no folders."""
    monkeypatch.setattr(MetricsLog, "sync", lambda self: None)
    monkeypatch.setattr(Students, "lacking", lambda self, ranking, keep: [])


def quality(values: dict[str, Any]) -> float:
    rate, temperature = values["train.learning_rate"], values["distill.temperature"]
    return round(0.9 - abs(rate - 2e-4) * 100 - 0.01 * abs(temperature - 4), 6)


class Killed(Exception):  # noqa: N818
    pass


def run(conductor: Conductor, slots: int) -> None:
    """Trials in so many places; which of those that run ends first is a function of who they are."""
    measured = {run: quality(trial.values) for run, trial in conductor.trials.items()}
    names = conductor.sweep.search.objectives
    conductor.objectives = lambda name: (*(measured[name] if each == "quality" else 7.0 for each in names), 1000.0)
    places: list[str] = []
    while True:
        while len(places) < slots and (job := conductor.next()) is not None:
            conductor.started(job.run)
            measured[job.run] = quality(job.values)
            places.append(job.run)
        if not places:
            return
        first = min(places, key=lambda name: random.Random(name).random())
        places.remove(first)
        if measured[first] < 0.8:
            conductor.ended(
                first,
                {
                    "status": "failed",
                    "error": "DivergenceError: no number",
                    "error_type": "DivergenceError",
                    "seconds": 1.0,
                },
            )
        else:
            conductor.ended(first, {"status": "done", "value": measured[first], "seconds": 1.0})


def tried(conductor: Conductor) -> list[tuple[dict[str, Any], int]]:
    return [(trial.values, trial.seed) for trial in load_sweep(conductor.ledger.folder).trials]


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"seeds": 2, "trials": 5},
        {"search": {"kind": "optuna", "startup_trials": 3, "objectives": ["quality", "parameters"]}},
        {"exclude": [{"distill.temperature": [1, 8]}], "rerun_best": {"count": 1, "seeds": 2}},
        {"search": "random"},
    ],
)
def test_killed_after_any_line_it_proposes_the_same(
    slots: int, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = conductor_of(base(tmp_path / "unbroken", {**OPTUNA, **changes}))
    run(unbroken, slots)
    wanted = tried(unbroken)
    assert len(wanted) >= 5
    lines = len((unbroken.ledger.folder / "ledger.jsonl").read_text().splitlines())
    real = Ledger.write
    for place in range(3, lines, 3):
        experiment = base(tmp_path / str(place), {**OPTUNA, **changes})
        count = itertools.count(1)

        def write(self: Ledger, kind: str, **values: Any) -> dict[str, Any]:
            line = real(self, kind, **values)
            if next(count) == place:  # noqa: B023 (used in this round only)
                raise Killed
            return line

        with monkeypatch.context() as patched:
            patched.setattr(Ledger, "write", write)
            with pytest.raises(Killed):
                run(conductor_of(experiment), slots)
        again = conductor_of(experiment)
        assert again.source.exact
        run(again, slots)
        assert tried(again) == wanted, place


def test_more_trials_go_on_where_more_would_have_gone(tmp_path: Path) -> None:
    small = base(tmp_path / "a", {**OPTUNA, "trials": 5, "rerun_best": {"count": 1, "seeds": 2}})
    run(conductor_of(small), 1)
    more = conductor_of(base(tmp_path / "a", {**OPTUNA, "trials": 9}))
    assert more.source.exact
    run(more, 1)
    fresh = conductor_of(base(tmp_path / "b", {**OPTUNA, "trials": 9}))
    run(fresh, 1)
    assert [one for one in tried(more) if one[1] == 0] == tried(fresh)


def test_what_a_search_cannot_repeat_is_told_and_it_goes_on(tmp_path: Path) -> None:
    run(conductor_of(base(tmp_path, {**OPTUNA, "trials": 6})), 1)
    other = {**OPTUNA, "trials": 9, "search": {"kind": "optuna", "startup_trials": 1}}
    conductor = conductor_of(base(tmp_path, other))
    assert not conductor.source.exact
    assert len(conductor.source.study.trials) >= 6  # type: ignore[attr-defined]
    run(conductor, 1)
    values = [one for one, _ in tried(conductor)]
    assert len(values) == 9
    assert all(values.count(one) == 1 for one in values)
    assert load_sweep(conductor.ledger.folder).replayed
    conductor.ledger.write("replay", exact=False)
    assert not load_sweep(conductor.ledger.folder).replayed


def test_the_search_is_told_what_was_measured_then(tmp_path: Path) -> None:
    """Times are measured anew after the last trial; what a continued search repeats is in the ledger."""
    conductor = conductor_of(base(tmp_path, {**OPTUNA, "trials": 2}))
    run(conductor, 1)
    done = [trial for trial in conductor.trials.values() if trial.status == "done"]
    assert all(trial.objectives == (trial.value, 1000.0) for trial in done)
    again = conductor_of(base(tmp_path, {**OPTUNA, "trials": 2}))
    again.objectives = lambda name: pytest.fail("read again")
    assert [again.trials[trial.run].objectives for trial in done] == [trial.objectives for trial in done]


@dataclasses.dataclass
class TuneTrial:
    trial_id: str
    config: dict[str, Any]


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_schedulers_know_continued_trials_by_their_runs(kind: Any) -> None:
    """An interrupted trial is one of those that a rung knows, and not a second one when it goes on."""

    def past(number: int, status: str, *reports: tuple[float, float]) -> TrialRecord:
        return TrialRecord(number, f"run-{number}", CANDIDATE, {}, 0, status, reports=reports)

    def decisions(scheduler: Any, name: str, *reports: tuple[float, float]) -> list[str]:
        trial = TuneTrial(f"tune-{name}", {"may_stop": True, "run": name})
        scheduler.on_trial_add(None, trial)
        return [
            scheduler.on_trial_result(None, trial, {"percent": 100 * share, "quality": value})
            for share, value in reports
        ]

    config = SchedulerConfig(kind=kind, grace=0.25, min_trials=2)
    others = [past(n, "done", (0.25, 0.8), (0.5, 0.8), (1.0, 0.8)) for n in (1, 2, 3)]
    unbroken = build_scheduler(config, others)
    assert decisions(unbroken, "run-4", (0.25, 0.9)) == ["CONTINUE"]
    continued = build_scheduler(config, [*others, past(4, "running", (0.25, 0.9))])
    for scheduler in (unbroken, continued):
        # It repeats what came after its checkpoint, then falls behind.
        assert decisions(scheduler, "run-4", (0.25, 0.9), (0.3, 0.1)) == ["CONTINUE", "CONTINUE"]
    assert decisions(unbroken, "run-5", (0.25, 0.79)) == decisions(continued, "run-5", (0.25, 0.79)) == ["STOP"]


# What it costs


GRID = {"space": {"distill.temperature": [1, 2, 4]}, "search": "grid", "controls": False}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    return now


@pytest.mark.parametrize(
    ("train", "resources", "cluster", "gpus"),
    [
        ({"workers": 1}, {"gpus": 0.5}, 8, 0.5),
        ({"workers": 1}, {"gpus": 2}, 8, 2),
        ({"workers": 1}, {}, 8, 1),
        ({"workers": 1}, {}, 0, 0),
        ({"workers": 1}, {"gpus": 0}, 8, 0),
        ({"workers": 1, "device": "cpu"}, {}, 8, 0),
        ({"workers": 8, "device": "cuda"}, {"gpus": 1}, 8, 8),
        ({"workers": 8}, {}, 8, 8),
        ({"workers": 8}, {}, 0, 0),
        ({"workers": [2, 4], "device": "cuda"}, {}, 8, 4),
        ({"workers": 8, "device": "cpu"}, {}, 8, 0),
    ],
)
def test_gpu_hours_are_those_of_all_workers(
    train: dict[str, Any], resources: dict[str, Any], cluster: int, gpus: float, tmp_path: Path, clock: list[float]
) -> None:
    sweep = {**GRID, "resources": resources, "budget": {"money": 1000, "price_per_hour": 3}}
    conductor = conductor_of(base(tmp_path, sweep, train=train))
    conductor.devices = Devices(cluster)
    job = conductor.next()
    assert job is not None
    conductor.started(job.run)
    clock[0] += 10 * 3600
    assert conductor.spent()["gpu_hours"] == pytest.approx(10 * gpus)
    assert conductor.spent()["money"] == pytest.approx(30), "of trials on GPUs and on CPUs"
    conductor.ended(job.run, {"status": "done", "value": 0.5, "seconds": 36000.0})
    assert conductor.spent()["gpu_hours"] == pytest.approx(10 * gpus)
    cost = cost_of(load_sweep(conductor.ledger.folder))
    assert (cost.gpu_hours, cost.money) == (pytest.approx(10 * gpus), pytest.approx(30))


def stopped(conductor: Conductor, job: Job, clock: list[float]) -> None:
    conductor.interrupted(job.run, {"seconds": 3240.0})
    conductor.ledger.write("close", reason="interrupted")


def killed(conductor: Conductor, job: Job, clock: list[float]) -> None:
    conductor.reported(job.run, 0.5, 0.4)  # the last line
    clock[0] += 9999


def failed(conductor: Conductor, job: Job, clock: list[float]) -> None:
    conductor.ended(
        job.run,
        {"status": "failed", "error": "OutOfMemoryError: no", "error_type": "OutOfMemoryError", "seconds": 3240.0},
    )


def lost(conductor: Conductor, job: Job, clock: list[float]) -> None:
    conductor.lost(job.run, "its node is gone", 1240.0)
    conductor.interrupted(job.run, {"seconds": 2000.0})


@pytest.mark.parametrize("ends", [stopped, killed, failed, lost])
def test_time_of_trials_that_did_not_end_counts(
    ends: Callable[[Conductor, Job, list[float]], None], tmp_path: Path, clock: list[float]
) -> None:
    sweep = {**GRID, "resources": {"gpus": 1}, "budget": {"gpu_hours": 2.5, "money": 1000, "price_per_hour": 2}}
    hours = []
    for session in range(4):
        conductor = conductor_of(base(tmp_path, sweep))
        hours.append(conductor.spent()["gpu_hours"])
        assert conductor.spent()["money"] == pytest.approx(2 * hours[-1])
        job = conductor.next()
        if session == 3:
            assert job is None
            assert conductor.stopped_by == "sweep.budget.gpu_hours (2.5) is used up"
            break
        assert job is not None
        assert job.values == {"distill.temperature": 1}, "it goes on"
        conductor.started(job.run)
        clock[0] += 3240
        ends(conductor, job, clock)
    assert hours == pytest.approx([0, 0.9, 1.8, 2.7])
    cost = cost_of(load_sweep(conductor.ledger.folder))
    assert (cost.gpu_hours, cost.money) == (pytest.approx(2.7), pytest.approx(5.4))
    assert next(trial.seconds for trial in conductor.trials.values()) == pytest.approx(3 * 3240)


def test_training_time_of_a_continued_trial_is_of_the_parts_that_told_it(tmp_path: Path, clock: list[float]) -> None:
    conductor = conductor_of(base(tmp_path, GRID))
    job = conductor.next()
    assert job is not None
    conductor.started(job.run)
    conductor.interrupted(job.run, {"seconds": 100.0, "overhead": 10.0})
    again = conductor_of(base(tmp_path, GRID))
    again.started(job.run)
    clock[0] += 50
    again.reported(job.run, 0.5, 0.4)  # and killed
    third = conductor_of(base(tmp_path, GRID))
    third.started(job.run)
    third.ended(job.run, {"status": "done", "value": 0.5, "seconds": 40.0, "overhead": 4.0})
    for trial in (third.trials[job.run], load_sweep(third.ledger.folder).trials[0]):
        assert (trial.seconds, trial.overhead, trial.untold_seconds) == (190.0, 14.0, 50.0)
    assert cost_of(load_sweep(third.ledger.folder)).training_seconds == 190 - 50 - 14


def test_a_ledger_of_an_older_version_is_read(tmp_path: Path) -> None:
    """Without objectives, GPUs at the start and seconds of interrupted parts."""
    conductor = conductor_of(base(tmp_path, {**OPTUNA, "trials": 3}))
    drive(conductor, lambda job: quality(job.values))
    path = conductor.ledger.folder / "ledger.jsonl"
    old = [json.loads(line) for line in path.read_text().splitlines()]
    for line in old:
        for name in ("objectives", "gpus"):
            line.pop(name, None)
    path.write_text("".join(json.dumps(line) + "\n" for line in old))
    again = conductor_of(base(tmp_path, {**OPTUNA, "trials": 4}))
    assert again.source.exact
    job = again.next()
    assert job is not None
    again.started(job.run)
    end(again, job, quality(job.values))
    fresh = conductor_of(base(tmp_path / "b", {**OPTUNA, "trials": 4}))
    drive(fresh, lambda job: quality(job.values))
    assert tried(again) == tried(fresh)

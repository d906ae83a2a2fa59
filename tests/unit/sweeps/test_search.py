"""Random, grid and Optuna searches; Tune's schedulers around them, as far as no cluster is needed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from raybrew.config.sweep import SchedulerConfig, SweepConfig
from raybrew.records.sweeps import CANDIDATE, CONTROL, TrialRecord
from raybrew.sweeps.jobs import canonical
from raybrew.sweeps.search import Optuna, build_source, draw, optuna_params


@dataclasses.dataclass(eq=False)
class FakeTrial:
    """A trial of Tune, as far as a scheduler asks."""

    trial_id: str
    config: dict[str, Any]


def config(**values: Any) -> SweepConfig:
    return SweepConfig.model_validate(values)


def ask(sweep: SweepConfig, count: int) -> list[dict[str, Any]]:
    source, known, found = build_source(sweep), set(), []
    while len(found) < count and (values := source.next(known)) is not None:
        known.add(canonical(values))
        found.append(values)
    return found


SPACE = {
    "distill.temperature": {"uniform": [1, 8]},
    "train.learning_rate": {"loguniform": [1e-5, 1e-3]},
    "train.epochs": {"int": [1, 3]},
    "student.shape": ["T3", "T6"],
    "student.init": {"choice": ["random", "teacher"], "when": {"student.shape": "T3"}},
}


def test_random_draws_are_a_function_of_seed_and_place() -> None:
    sweep = config(space=SPACE)
    assert ask(sweep, 20) == ask(sweep, 20) == [draw(sweep, index) for index in range(20)]
    assert ask(sweep, 5) != ask(config(space=SPACE, search={"seed": 1}), 5)


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_draws_stay_in_the_space(search: str) -> None:
    found = ask(config(space=SPACE, search=search, exclude=[{"student.shape": "T6", "train.epochs": 2}]), 60)
    assert len(found) == 60
    for values in found:
        assert 1 <= values["distill.temperature"] <= 8
        assert 1e-5 <= values["train.learning_rate"] <= 1e-3
        assert values["train.epochs"] in (1, 2, 3)
        assert ("student.init" in values) == (values["student.shape"] == "T3")
        assert (values["student.shape"], values["train.epochs"]) != ("T6", 2)
    rates = [math.log10(values["train.learning_rate"]) for values in found]
    if search == "random":
        assert 0.3 < sum(rate < -4 for rate in rates) / 60 < 0.7, "each order of magnitude alike"
    assert {values["student.shape"] for values in found} == {"T3", "T6"}


@pytest.mark.parametrize("search", ["random", "grid", "optuna"])
def test_a_small_space_is_used_up(search: str) -> None:
    found = ask(config(space={"distill.temperature": [1, 2], "student.shape": ["T3", "T6"]}, search=search), 100)
    assert len(found) == 4
    assert len({canonical(values) for values in found}) == 4


def test_what_exclude_leaves_of_a_space_is_used_up_by_optuna() -> None:
    numbers = list(range(1, 21))
    exclude = [{"distill.temperature": numbers[2:], "train.epochs": numbers}]
    space = {"distill.temperature": numbers, "train.epochs": numbers}
    source, known = build_source(config(space=space, search="optuna", exclude=exclude)), set()
    while (values := source.next(known)) is not None:
        known.add(canonical(values))
        source.tell(values, (float(values["train.epochs"]),))
    assert len(known) == 40


def test_optuna_learns() -> None:
    sweep = config(space={"distill.temperature": {"uniform": [1, 9]}}, search={"kind": "optuna", "startup_trials": 8})
    source, known = Optuna(sweep), set()
    for _ in range(40):
        values = source.next(known)
        assert values is not None
        known.add(canonical(values))
        source.tell(values, (-abs(values["distill.temperature"] - 7.5),))
    late = [trial.params["distill.temperature"] for trial in source.study.trials[-12:]]
    assert sum(abs(value - 7.5) < 1.5 for value in late) >= 8, late


def test_optuna_takes_several_objectives_and_failures() -> None:
    sweep = config(
        space={"student.shape": ["T3", "T6"], "distill.temperature": {"uniform": [1, 9]}},
        search={"kind": "optuna", "objectives": ["quality", "parameters"]},
    )
    source, known = Optuna(sweep), set()
    for index in range(6):
        values = source.next(known)
        assert values is not None
        known.add(canonical(values))
        source.tell(values, None if index == 2 else (0.5 + 0.01 * index, 100.0 * index))
    assert [trial.state.name for trial in source.study.trials].count("FAIL") == 1
    assert [d.name for d in source.study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert len(source.study.best_trials) >= 1


def test_older_results_count_where_they_fit() -> None:
    sweep = config(space=SPACE)
    fits = {"distill.temperature": 2.0, "train.learning_rate": 1e-4, "train.epochs": 2, "student.shape": "T6"}
    assert optuna_params(sweep, fits) is not None
    assert optuna_params(sweep, {**fits, "student.shape": "T3"}) is None, "T3 also needs student.init"
    assert optuna_params(sweep, {**fits, "distill.temperature": 20.0}) is None
    assert optuna_params(sweep, {**fits, "train.batch_size": 8}) is None


def test_asha_stops_at_its_rungs_and_spares_controls() -> None:
    from raybrew.sweeps.schedulers import build_scheduler, rungs

    asha = SchedulerConfig(kind="asha", grace=0.25, reduction_factor=2)
    assert rungs(asha) == [0.25, 0.5]
    scheduler = build_scheduler(asha)
    asked: dict[str, list[str]] = {}

    def run(name: str, quality: float, may_stop: bool = True) -> None:
        trial = FakeTrial(trial_id=name, config={"may_stop": may_stop, "run": name})
        scheduler.on_trial_add(None, trial)
        for percent in (12.5, 25, 37.5, 50, 75, 100):
            answer = scheduler.on_trial_result(None, trial, {"percent": percent, "quality": quality})
            asked.setdefault(name, []).append(answer)
            if answer == "STOP":
                return

    run("good", 0.9)
    run("bad", 0.5)
    run("control", 0.1, may_stop=False)
    run("better", 0.95)
    assert asked["good"] == ["CONTINUE"] * 6
    assert asked["bad"] == ["CONTINUE", "STOP"], "not before the first rung"
    assert asked["control"] == ["CONTINUE"] * 6
    assert asked["better"] == ["CONTINUE"] * 6


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_a_continued_sweep_remembers_earlier_trials(kind: Any) -> None:
    from raybrew.sweeps.schedulers import build_scheduler

    def past(number: int, role: str, value: float) -> TrialRecord:
        reports = ((0.25, value), (0.5, value), (1.0, value))
        return TrialRecord(number, f"run-{number}", role, {}, 0, "done", reports=reports, value=value)

    trial = FakeTrial(trial_id="new", config={"may_stop": True, "run": "new"})
    bad = {"percent": 50.0, "quality": 0.5}
    remembering = build_scheduler(SchedulerConfig(kind=kind), [past(n, CANDIDATE, 0.9) for n in range(4)])
    remembering.on_trial_add(None, trial)
    assert remembering.on_trial_result(None, trial, bad) == "STOP"
    for earlier in ((), [past(n, CONTROL, 0.9) for n in range(4)]):
        fresh = build_scheduler(SchedulerConfig(kind=kind), earlier)
        fresh.on_trial_add(None, trial)
        assert fresh.on_trial_result(None, trial, bad) == "CONTINUE"

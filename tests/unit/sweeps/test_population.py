"""Population based training: who gives way to whom, with what values, and that a sweep killed at any line goes on."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from raybrew.config.sweep import ParameterConfig, SchedulerConfig
from raybrew.errors import ConfigError
from raybrew.records.ledger import Ledger
from raybrew.records.sweeps import CANDIDATE, load_sweep
from raybrew.sweeps.conductor import Conductor
from raybrew.sweeps.population import explore, matchups, next_stop, values_in_force, with_change
from raybrew.tracking.jsonl import MetricsLog
from unit.sweep_helpers import base, conductor_of, leave_student

SPACE = {"distill.temperature": {"uniform": [1, 8]}, "train.learning_rate": {"loguniform": [1e-5, 1e-2]}}
PBT = {"space": SPACE, "trials": 4, "scheduler": {"kind": "pbt", "interval": 0.4, "quantile": 0.5}, "controls": False}
STEPS, EVERY = 10, 2


def test_the_lowest_give_way_to_as_many_of_the_best() -> None:
    scores = {1: 0.5, 2: 0.9, 3: 0.7, 4: 0.1, 5: 0.3, 6: 0.8, 7: 0.2, 8: 0.6}
    assert matchups(scores, 0.25) == ([7, 4], [2, 6])
    assert matchups({1: 0.5, 2: 0.5, 3: 0.5}, 0.1) == ([3], [1]), "at least one; ties by number"
    assert matchups({**scores, 2: None}, 0.25) == ([4, 2], [6, 3]), "a failed member gives way first"
    assert matchups(dict.fromkeys((1, 2, 3), None) | {4: 0.1}, 0.25) == ([1, 2, 3], [4])
    assert matchups({1: None, 2: None}, 0.5) == ([], []), "nobody is left to take over from"
    assert matchups({1: 0.3}, 0.5) == ([], [1])


def test_rounds_are_due_at_multiples_of_the_interval() -> None:
    assert [next_stop(share, 0.25) for share in (0.0, 0.2, 0.25, 0.26, 0.5, 0.75)] == [0.25, 0.25, 0.5, 0.5, 0.75, None]
    assert next_stop(0.3, 0.1) == 0.4, "0.3 / 0.1 is a little less than 3"
    assert next_stop(0.7, 0.1) == 0.8
    assert next_stop(0.9, 0.3) is None


def test_values_are_perturbed_within_the_space() -> None:
    space = {
        "distill.temperature": ParameterConfig.model_validate({"uniform": [1, 8]}),
        "distill.kd_weight": ParameterConfig.model_validate([4, 0.5, 1]),
        "distill.hard_label_weight": ParameterConfig.model_validate({"int": [1, 9]}),
    }
    now = {"distill.temperature": 5.0, "distill.kd_weight": 1, "distill.hard_label_weight": 2}
    keep = SchedulerConfig(kind="pbt", resample=0.0)
    found = [explore(now, space, keep, random.Random(seed)) for seed in range(40)]
    assert {one["distill.temperature"] for one in found} == {4.0, 6.0}
    assert {one["distill.kd_weight"] for one in found} == {0.5, 4}, "listed values move to a neighbour"
    assert {one["distill.hard_label_weight"] for one in found} == {1, 3}, "a whole number moves by one at least"
    edge = {"distill.temperature": 7.5, "distill.kd_weight": 4, "distill.hard_label_weight": 9}
    found = [explore(edge, space, keep, random.Random(seed)) for seed in range(40)]
    assert {one["distill.temperature"] for one in found} == {6.0, 8.0}
    assert {one.get("distill.kd_weight") for one in found} == {1, None}
    assert {one.get("distill.hard_label_weight") for one in found} == {7, None}
    anew = SchedulerConfig(kind="pbt", resample=1.0, mutations=("distill.temperature",))
    found = [explore(now, space, anew, random.Random(seed)) for seed in range(40)]
    assert all(set(one) == {"distill.temperature"} for one in found)
    drawn = [one["distill.temperature"] for one in found]
    assert len(set(drawn)) > 30
    assert min(drawn) >= 1
    assert max(drawn) <= 8


def test_what_holds_is_what_was_changed_last() -> None:
    values = with_change({"a": 1.0, "b": 2.0}, 0.25, {"a": 3.0})
    values = with_change(values, 0.5, {"a": 4.0})
    assert values["train.changes"] == [{"at": 0.25, "values": {"a": 3.0}}, {"at": 0.5, "values": {"a": 4.0}}]
    assert values_in_force(values) == {"a": 4.0, "b": 2.0}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here pulls the plug: lines need not reach the disk itself."""
    monkeypatch.setattr(MetricsLog, "sync", lambda self: None)


class World:
    """What is on the disk: how far each run's state has come. Trials train here without training."""

    def __init__(self) -> None:
        self.steps: dict[str, int] = {}
        self.fails: set[tuple[float, int]] = set()

    def copy(self, source: str, step: int, target: str) -> bool:
        assert self.steps.get(source) == step, "its source has gone on"
        self.steps[target] = step
        return True

    def drop(self, run: str) -> None:
        self.steps.pop(run, None)

    def run(self, conductor: Conductor, run: str) -> None:
        """Go on from the state to the next pause or to the end."""
        values = conductor.trials[run].values
        until, step = conductor.until(run), self.steps.get(run, 0)
        if until is not None and step / STEPS >= until - 1e-9:  # died between the state and the line about it
            conductor.paused(run, {"step": step, "share": step / STEPS, "value": quality(values, step), "seconds": 1.0})
            return
        while step < STEPS:
            step += EVERY
            if (values["distill.temperature"], step) in self.fails:
                conductor.ended(
                    run,
                    {
                        "status": "failed",
                        "error": "DivergenceError: no number",
                        "error_type": "DivergenceError",
                        "seconds": 1.0,
                    },
                )
                return
            self.steps[run] = step
            conductor.reported(run, step / STEPS, quality(values, step))
            if until is not None and step / STEPS >= until - 1e-9:
                outcome = {"step": step, "share": step / STEPS, "value": quality(values, step), "seconds": 1.0}
                conductor.paused(run, outcome)
                return
        leave_student(conductor.ledger.folder.parent / run)
        conductor.ended(run, {"status": "done", "value": quality(values, step), "seconds": 1.0})


def quality(values: dict[str, Any], step: int) -> float:
    """Of the whole course of values up to `step`: a temperature near 3 helps, each step by itself."""
    total = 0.0
    for done in range(step):
        now = values["distill.temperature"]
        for change in values.get("train.changes", ()):
            if change["at"] <= done / STEPS + 1e-9:
                now = change["values"].get("distill.temperature", now)
        total += 1 / (1 + abs(now - 3))
    return round(total / STEPS, 6)


def drive(conductor: Conductor, world: World, slots: int = 1, order: random.Random | None = None) -> None:
    """Run trials in so many places; `order` says which ends first."""
    places: list[str] = []
    while True:
        while len(places) < slots and (job := conductor.next()) is not None:
            conductor.started(job.run)
            places.append(job.run)
        if not places:
            assert conductor.finished
            return
        world.run(conductor, places.pop((order or random.Random(0)).randrange(len(places))))


def told(conductor: Conductor) -> list[tuple[int | None, dict[str, Any], str, float | None]]:
    record = load_sweep(conductor.ledger.folder)
    return [(trial.member, trial.values, trial.status, trial.value) for trial in record.trials]


def population(tmp_path: Path, world: World, **changes: Any) -> Conductor:
    return conductor_of(base(tmp_path, {**PBT, **changes}, train={"eval_steps": EVERY}), states=world)


def test_members_take_over_and_their_courses_explain_the_result(tmp_path: Path) -> None:
    world = World()
    conductor = population(tmp_path, world, rerun_best={"count": 1, "seeds": 2})
    drive(conductor, world)
    record = load_sweep(conductor.ledger.folder)
    assert [line.number for line in record.rounds] == [1, 2]
    assert all(len(line.moves) == 2 for line in record.rounds)
    members = [trial for trial in record.trials if trial.member is not None]
    assert len(members) == 4 + 4
    assert sum(trial.status == "done" for trial in members) == 4
    assert sum(trial.status == "stopped" for trial in members) == 4
    for trial in members:
        if trial.status == "done":
            assert trial.value == quality(trial.values, STEPS), "as if trained by its course from the start"
            assert trial.share == 1
        if trial.source is not None:
            source = next(other for other in members if other.run == trial.source)
            shared = [report for report in source.reports if report in trial.reports]
            assert shared
            at = trial.values["train.changes"][-1]["at"]
            assert shared[-1][0] == at, "its curve begins with that of its source"
            assert len(trial.course("distill.temperature")) >= 1
    firsts = [trial.value for trial in members if trial.status == "done" and trial.source is None]
    # The best is trained again by its whole course with another seed.
    again = [trial for trial in record.trials if trial.rerun]
    best = max((trial for trial in members if trial.status == "done"), key=lambda trial: trial.value or 0)
    assert best.value is not None
    assert best.value >= max(value for value in firsts if value is not None)
    assert [(trial.values, trial.seed, trial.member) for trial in again] == [(best.values, 1, None)]
    # What gave way has no state any more.
    stopped = {trial.run for trial in members if trial.status == "stopped"}
    assert not stopped & set(world.steps)


def test_places_and_order_decide_nothing(tmp_path: Path) -> None:
    results = []
    for number, (slots, seed) in enumerate([(1, 0), (2, 1), (4, 2), (3, 3)]):
        world = World()
        conductor = population(tmp_path / str(number), world)
        drive(conductor, world, slots, random.Random(seed))
        results.append(told(conductor))
    assert all(result == results[0] for result in results[1:])


class Killed(BaseException):
    """kill -9: nothing runs after it."""


def test_killed_after_any_line_and_within_any_copy_it_decides_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    whole = population(tmp_path / "whole", world)
    drive(whole, world)
    wanted = told(whole)
    lines = [json.loads(line)["kind"] for line in (whole.ledger.folder / "ledger.jsonl").read_text().splitlines()]
    # Those between a trial's start and its end are many, and say nothing to the population.
    places = [place for place, kind in enumerate(lines[2:-1]) if kind not in ("start", "report")]
    assert len(places) > 25
    real_write, real_copy = Ledger.write, World.copy
    for place in itertools.chain(places, (("copy", number) for number in range(4))):
        folder, world, count = tmp_path / str(place), World(), itertools.count()

        def write(self: Ledger, kind: str, **values: Any) -> dict[str, Any]:
            line = real_write(self, kind, **values)
            if next(count) == place:  # noqa: B023  # of this turn
                raise Killed
            return line

        def copy(self: World, source: str, step: int, target: str) -> bool:
            found = real_copy(self, source, step, target)
            if place == ("copy", next(copies)):  # noqa: B023
                raise Killed
            return found

        copies = itertools.count()
        conductor = population(folder, world)
        with monkeypatch.context() as patched:
            patched.setattr(World, "copy", copy)
            patched.setattr(Ledger, "write", write)
            with pytest.raises(Killed):
                drive(conductor, world)
        conductor = population(folder, world)
        drive(conductor, world)
        assert told(conductor) == wanted, place
        records = [json.loads(line) for line in (conductor.ledger.folder / "ledger.jsonl").read_text().splitlines()]
        assert [record["number"] for record in records if record["kind"] == "round"] == [1, 2]
        assert population(folder, world).over(), "and it is done then"


def test_a_member_that_fails_is_replaced_and_stays_on_the_list(tmp_path: Path) -> None:
    world = World()
    conductor = population(tmp_path, world)
    temperatures = [values["distill.temperature"] for values in first_values(conductor)]
    world.fails = {(temperatures[2], 4)}
    drive(conductor, world)
    record = load_sweep(conductor.ledger.folder)
    (failed,) = record.trials_of("failed")
    assert failed.member == 3
    move = next(move for move in record.rounds[0].moves if move.member == 3)
    assert move.of == failed.run
    assert sum(trial.status == "done" for trial in record.trials) == 4
    # A later session leaves it at that.
    again = population(tmp_path, world)
    assert again.over()


def first_values(conductor: Conductor) -> list[dict[str, Any]]:
    job = conductor.next()
    assert job is not None
    conductor.queue.appendleft(job.run)
    return [trial.values for trial in conductor.trials.values() if trial.role == CANDIDATE]


def test_a_lost_state_is_noted_and_costs_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "copy", lambda self, source, step, target: False)
    world = World()
    conductor = population(tmp_path, world)
    drive(conductor, world)
    wanted = World()
    monkeypatch.undo()
    other = population(tmp_path / "b", wanted)
    drive(other, wanted)
    assert told(conductor) == told(other)
    lines = [json.loads(line) for line in (conductor.ledger.folder / "ledger.jsonl").read_text().splitlines()]
    assert {line["found"] for line in lines if line["kind"] == "copy"} == {False}


def test_the_size_of_a_population_stays(tmp_path: Path) -> None:
    world = World()
    drive(population(tmp_path, world), world)
    with pytest.raises(ConfigError, match="population of 4"):
        population(tmp_path, world, trials=8)


@pytest.mark.parametrize(
    ("sweep", "sections", "key", "words"),
    [
        ({"space": {**SPACE, "student.shape": ["T3", "T6"]}}, {}, "sweep.space.student.shape", "allowed: distill.temp"),
        (
            {"space": {"distill.matches": [[], ["hidden_mse"]]}},
            {},
            "sweep.space.distill.matches",
            "train.learning_rate",
        ),
        ({"space": {"distill.kd_weight": [0, 1]}}, {}, "sweep.space.distill.kd_weight", "numbers above 0"),
        ({"space": {"distill.matches.0.weight": [1, 2]}}, {}, "sweep.space.distill.matches.0.weight", "0 entries"),
        ({"search": "optuna"}, {}, "sweep.search.kind", "allowed: random, grid"),
        ({"seeds": 2}, {}, "sweep.seeds", "rerun_best"),
        ({"trials": 1}, {}, "sweep.trials", "2 or more"),
        ({"exclude": [{"distill.temperature": 1}]}, {}, "sweep.exclude", "leave it out"),
        ({}, {"train": {"workers": 2}}, "train.workers", "allowed: 1"),
        ({}, {"train": {"early_stopping": {"patience": 1}}}, "train.early_stopping", "leave it out"),
        ({}, {"train": {"epochs": 1, "eval_steps": None}}, "train.eval_steps", "one only"),
        (
            {"scheduler": {"kind": "pbt", "mutations": ["distill.temp"]}},
            {},
            "sweep.scheduler.mutations",
            "did you mean",
        ),
    ],
)
def test_what_a_population_cannot_have_is_refused_by_name(
    tmp_path: Path, sweep: dict[str, Any], sections: dict[str, Any], key: str, words: str
) -> None:
    sections = {"train": {"eval_steps": EVERY, **sections.get("train", {})}}
    with pytest.raises(ConfigError) as error:
        base(tmp_path, {**PBT, **sweep}, **sections)
    assert [found for found in error.value.problems if found.key == key and words in found.message], error.value

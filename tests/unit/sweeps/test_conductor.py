"""What a sweep tries and in which order, what its ledger keeps, and that a killed one goes on as if it had not been."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from raybrew.config import Experiment
from raybrew.records.sweeps import CANDIDATE, CONTROL, KD_ONLY, load_sweep
from raybrew.sweeps.conductor import Conductor
from raybrew.sweeps.jobs import Job
from raybrew.sweeps.progress import live_table, news, waiting_reason
from raybrew.sweeps.replay import Older
from unit.sweep_helpers import base, conductor_of, drive

SPACE = {"distill.temperature": [1, 4], "student.shape": [{"layers": 2, "hidden": 312}, {"layers": 4, "hidden": 312}]}
GRID = {"space": SPACE, "search": "grid"}


def by_values(job: Job) -> float:
    """More layers and a higher temperature are better; controls are worse."""
    shape = job.experiment.student.model_dump()["shape"]["layers"]
    return 0.5 + 0.05 * shape + (0.01 * job.experiment.distill.temperature if job.role == CANDIDATE else 0)


def told(jobs: list[Job]) -> list[tuple[str, dict[str, Any], int]]:
    return [(job.role, job.values, job.seed) for job in jobs]


def test_every_shape_has_one_control_before_its_students(tmp_path: Path) -> None:
    jobs = drive(conductor_of(base(tmp_path, GRID)), by_values)
    assert Counter(job.role for job in jobs) == {CANDIDATE: 4, CONTROL: 2}
    for control in (job for job in jobs if job.role == CONTROL):
        distill = control.experiment.distill
        assert (distill.kd_weight, distill.hard_label_weight, distill.matches) == (0, 1, ())
        place = jobs.index(control)
        students = [
            job for job in jobs if job.role == CANDIDATE and job.experiment.student == control.experiment.student
        ]
        assert len(students) == 2
        assert all(jobs.index(student) > place for student in students)


def test_unlabelled_rows_bring_a_control_without_labels_and_equal_steps_without_a_teacher(tmp_path: Path) -> None:
    experiment = base(tmp_path, GRID, data={"unlabeled": "c"}, distill={"hard_label_weight": 0.5})
    asked: list[tuple[str | None, str | None]] = []

    def steps_of(candidate: Experiment, control: Experiment) -> dict[str, Any]:
        asked.append((candidate.data.unlabeled, control.data.unlabeled))
        return {"train.epochs": 90, "train.max_steps": 123, "train.eval_steps": 41}

    jobs = drive(conductor_of(experiment, steps_of=steps_of), by_values)
    assert Counter(job.role for job in jobs) == {CANDIDATE: 4, CONTROL: 2, KD_ONLY: 2}
    labels = next(job for job in jobs if job.role == CONTROL).experiment
    assert labels.data.unlabeled is None
    assert (labels.train.epochs, labels.train.max_steps, labels.train.eval_steps) == (90, 123, 41)
    assert asked == [("c", None)] * 2, "once for each shape"
    teacher = next(job for job in jobs if job.role == KD_ONLY).experiment
    assert (teacher.data.unlabeled, teacher.distill.hard_label_weight, teacher.train.epochs) == ("c", 0.0, 30)
    # Where the students of the space have no labels anyway, that control is one of them.
    plain = base(tmp_path / "b", {**GRID, "space": {**SPACE, "distill.temperature": [4, 8]}}, data={"unlabeled": "c"})
    conductor = conductor_of(plain)
    assert len(drive(conductor, by_values)) == 4 + 2, "two shapes without a teacher, and nothing twice"
    roles = Counter(trial.role for trial in load_sweep(conductor.ledger.folder).trials)
    assert roles == {CANDIDATE: 4, CONTROL: 2}


def test_seeds_follow_one_another_and_controls_may_be_off(tmp_path: Path) -> None:
    experiment = base(tmp_path, {**GRID, "seeds": 2, "controls": False}, train={"seed": 7})
    jobs = drive(conductor_of(experiment), by_values)
    assert [job.seed for job in jobs] == [7, 8] * 4
    assert {job.role for job in jobs} == {CANDIDATE}


def test_the_best_are_run_again_with_their_controls(tmp_path: Path) -> None:
    conductor = conductor_of(base(tmp_path, {**GRID, "rerun_best": {"count": 1, "seeds": 3}}))
    jobs = drive(conductor, by_values)
    again = [job for job in jobs if job.rerun]
    assert told(again) == [
        (CONTROL, {"student.shape": {"layers": 4, "hidden": 312}}, 1),
        (CONTROL, {"student.shape": {"layers": 4, "hidden": 312}}, 2),
        (CANDIDATE, {"distill.temperature": 4, "student.shape": {"layers": 4, "hidden": 312}}, 1),
        (CANDIDATE, {"distill.temperature": 4, "student.shape": {"layers": 4, "hidden": 312}}, 2),
    ]
    assert jobs[-4:] == again
    record = load_sweep(conductor.ledger.folder)
    assert len(record.finalists()) == 3


@pytest.mark.parametrize("kill_at", [0, 1, 3, 5, 7])
@pytest.mark.parametrize("search", ["grid", "random", "optuna"])
def test_killed_at_any_trial_it_goes_on(tmp_path: Path, kill_at: int, search: str) -> None:
    sweep = {**GRID, "search": search, "trials": 4, "rerun_best": {"count": 1, "seeds": 2}}
    unbroken = drive(conductor_of(base(tmp_path / "a", sweep)), by_values)
    experiment = base(tmp_path / "b", sweep)
    count = iter(range(1000))
    first = drive(conductor_of(experiment), lambda job: None if next(count) == kill_at else by_values(job))
    assert len(first) == kill_at
    rest = drive(conductor_of(experiment), by_values)
    assert not {job.run for job in first} & {job.run for job in rest}, "finished trials stay finished"
    assert len(first) + len(rest) == len(unbroken)
    assert told(first + rest) == told(unbroken)
    third = conductor_of(experiment)
    assert third.over()
    assert third.next() is None


def test_a_torn_last_line_is_no_trial(tmp_path: Path) -> None:
    experiment = base(tmp_path, GRID)
    conductor = conductor_of(experiment)
    drive(conductor, by_values, limit=3)
    path = conductor.ledger.folder / "ledger.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "end", "run": "dist')
    assert [trial.status for trial in load_sweep(path.parent).trials][:3] == ["done", "done", "done"]
    rest = drive(conductor_of(experiment), by_values)
    assert len(rest) == 3
    lines = path.read_text().splitlines()
    assert all(json.loads(line) for line in lines), "the torn line is cut before anything is appended"


def test_lasting_failures_stay_and_others_are_tried_again(tmp_path: Path) -> None:
    experiment = base(tmp_path, {**GRID, "controls": False})
    errors = iter(["DivergenceError: the loss is no longer finite at step 3", "OutOfMemoryError: CUDA out of memory"])
    jobs = drive(conductor_of(experiment), lambda job: next(errors, None) or by_values(job))
    assert len(jobs) == 4, "a failed trial leaves the others alone"
    again = drive(conductor_of(experiment), by_values)
    assert [job.run for job in again] == [jobs[1].run]
    record = load_sweep(conductor_of(experiment).ledger.folder)
    assert [trial.error for trial in record.trials_of("failed")] == [
        "DivergenceError: the loss is no longer finite at step 3"
    ]


def test_more_trials_and_budgets_continue_the_same_sweep(tmp_path: Path) -> None:
    wide = {"space": {"distill.temperature": [float(t) for t in range(1, 40)]}, "controls": False}
    small = drive(conductor_of(base(tmp_path, {**wide, "trials": 3})), by_values)
    more = drive(conductor_of(base(tmp_path, {**wide, "trials": 5})), by_values)
    fresh = drive(conductor_of(base(tmp_path / "b", {**wide, "trials": 5})), by_values)
    assert told(small + more) == told(fresh)


def test_budgets_end_a_sweep_and_say_which(tmp_path: Path) -> None:
    failing = {**GRID, "controls": False, "budget": {"failures": 1}}
    conductor = conductor_of(base(tmp_path / "a", failing))
    assert len(drive(conductor, lambda job: "RunError: no")) == 2
    assert conductor.stopped_by == "2 trials failed, sweep.budget.failures allows 1"
    # Each trial takes 10 seconds at 360 an hour: 1.
    money = {**GRID, "controls": False, "budget": {"money": 1.5, "price_per_hour": 360}}
    conductor = conductor_of(base(tmp_path / "b", money))
    assert len(drive(conductor, by_values)) == 2
    assert conductor.stopped_by == "sweep.budget.money (1.5) is used up"
    gpu = {**GRID, "controls": False, "budget": {"gpu_hours": 0.004}, "resources": {"gpus": 0.5}}
    conductor = conductor_of(base(tmp_path / "c", gpu))
    assert len(drive(conductor, by_values)) == 3, "10 s x 0.5 GPU are 0.00139 GPU-hours"


def test_wall_time_adds_up_over_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("time.time", lambda: clock[0])
    experiment = base(tmp_path, {**GRID, "controls": False, "budget": {"wall_minutes": 1}})

    def slow(job: Job) -> float:
        clock[0] += 25
        return by_values(job)

    assert len(drive(conductor_of(experiment), slow, limit=1)) == 1
    clock[0] += 10_000  # nobody works at night
    conductor = conductor_of(experiment)
    assert len(drive(conductor, slow)) == 2
    assert conductor.stopped_by == "sweep.budget.wall_minutes (1) is used up"


def test_warm_start_tries_first_what_was_good_elsewhere(tmp_path: Path) -> None:
    older = (
        Older({"distill.temperature": 4.0}, (0.8,)),
        Older({"distill.temperature": 2.5}, (0.9,)),
        Older({"distill.temperature": 99.0}, (0.95,)),
        Older({"distill.temperature": 3.0, "train.epochs": 2}, (0.99,)),
    )
    sweep = {"space": {"distill.temperature": {"uniform": [1, 8]}}, "trials": 4, "controls": False}
    jobs = drive(conductor_of(base(tmp_path, sweep), older), by_values)
    assert [job.values["distill.temperature"] for job in jobs[:2]] == [2.5, 4.0]
    assert len(jobs) == 4


def test_warm_start_teaches_optuna(tmp_path: Path) -> None:
    older = tuple(Older({"distill.temperature": 1 + t / 4}, (0.9 - abs(1 + t / 4 - 6) / 10,)) for t in range(28))
    sweep = {"space": {"distill.temperature": {"uniform": [1, 8]}}, "trials": 8, "controls": False,
             "search": {"kind": "optuna", "startup_trials": 2}}  # fmt: skip
    asked = drive(conductor_of(base(tmp_path, sweep), older), lambda job: 0.5)
    near = sum(abs(job.values["distill.temperature"] - 6) < 1.5 for job in asked[:4])
    assert near >= 3, [job.values for job in asked]


def test_a_drawn_corner_that_is_impossible_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from raybrew.errors import ConfigError
    from raybrew.sweeps import conductor as module

    real = module.make_job

    def sometimes(*arguments: Any, **named: Any) -> Job:
        if arguments[1] == {"distill.temperature": 4, "student.shape": SPACE["student.shape"][0]}:
            raise ConfigError("no", ("distill.temperature: too warm",))
        return real(*arguments, **named)

    monkeypatch.setattr(module, "make_job", sometimes)
    conductor = conductor_of(base(tmp_path, {**GRID, "controls": False}))
    assert len(drive(conductor, by_values)) == 3
    failed = load_sweep(conductor.ledger.folder).trials_of("failed")
    assert [trial.error for trial in failed] == ["ConfigError: distill.temperature: too warm"]


def test_lines_say_what_happens_and_what_is_waited_for(tmp_path: Path) -> None:
    conductor = conductor_of(base(tmp_path, {**GRID, "concurrency": 1}))
    said: dict[str, str] = {}
    job = conductor.next()
    assert job is not None
    conductor.started(job.run)
    assert news(conductor, said) == ["trial 1 (control): shape=2x312, seed 0: starts"]
    assert waiting_reason(conductor, 1) == "1 trial waiting for one of 1 places: sweep.concurrency=1"
    conductor.ended(job.run, {"status": "failed", "error": "RunError: no", "error_type": "RunError"})
    assert news(conductor, said) == ["trial 1 (control): shape=2x312, seed 0: failed: RunError: no"]
    assert news(conductor, said) == []
    assert waiting_reason(conductor, 1) == ""


def test_every_change_is_on_the_disk_at_once(tmp_path: Path) -> None:
    conductor: Conductor = conductor_of(base(tmp_path, GRID))
    job = conductor.next()
    assert job is not None
    conductor.started(job.run)
    kinds = [json.loads(line)["kind"] for line in (conductor.ledger.folder / "ledger.jsonl").read_text().splitlines()]
    assert kinds == ["sweep", "session", "trial", "trial", "start"]


@pytest.mark.parametrize("width", [80, 200])
def test_the_live_table_cuts_nothing_but_configurations(tmp_path: Path, width: int) -> None:
    import io

    from rich.console import Console

    shapes = [{"layers": 4, "hidden": 312, "heads": 12, "feed_forward": 1200}, {"layers": 6, "hidden": 768}]
    space = {"distill.temperature": [1, 4], "student.shape": shapes, "train.learning_rate": [0.000123, 0.000456]}
    sweep = {"space": space, "trials": 8, "seeds": 2, "resources": {"gpus": 0.25}}
    conductor = conductor_of(base(tmp_path, sweep))
    drive(conductor, lambda job: 0.8765, limit=4)
    job = conductor.next()
    assert job is not None
    conductor.started(job.run)
    conductor.reported(job.run, 0.5, 0.4321)
    console = Console(file=io.StringIO(), width=width, soft_wrap=True)
    console.print(live_table(conductor, 1, width))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = text.splitlines()
    assert all(len(line) <= width for line in lines)
    assert len(lines) <= 24, "as many as the smallest terminal shows"
    head = next(line for line in lines if "configuration" in line)
    assert all(word in head for word in ("trial", "seed", "progress", "accuracy %", "time"))
    assert " 50 %" in text
    assert "43.21" in text
    assert text.count("done") >= 4
    assert text.count("87.65") >= 4
    assert "10 s" in text
    told = " ".join(lines)
    assert "waiting for one of 1 places: each reserves 1 CPUs and 0.25 GPUs (sweep.resources)" in told
    assert re.search(r"\d more configurations to come", told)


def test_what_this_sweep_did_before_it_was_killed_is_not_taken_for_somebody_elses(tmp_path: Path) -> None:
    """Its run is there and done, yet the ledger does not know: by reports the ledger knows whose it is."""
    for reports, reused in (((0.5, 0.8), False), ((), True)):
        conductor = conductor_of(base(tmp_path / str(reused), GRID))
        job = conductor.next()
        assert job is not None
        conductor.started(job.run)
        if reports:
            conductor.reported(job.run, *reports)
        again = conductor_of(base(tmp_path / str(reused), GRID))
        again.started(job.run)
        again.ended(job.run, {"status": "done", "value": 0.8, "seconds": 1.0, "reused": True})
        assert again.trials[job.run].reused is reused
        assert next(one for one in load_sweep(again.ledger.folder).trials if one.run == job.run).reused is reused

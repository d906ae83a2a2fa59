"""Controls are trained, evaluated and searched as the students that they are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raybrew.config import Experiment
from raybrew.config.controls import control_settings, planned_controls
from raybrew.data.sampler import Order
from raybrew.records.sweeps import CANDIDATE, CONTROL, KD_ONLY, load_sweep
from raybrew.reports.sweep_tables import leaderboard
from raybrew.sweeps import prepare
from raybrew.sweeps.jobs import Job
from raybrew.training.encoded import build_order, evaluation_steps, total_steps
from unit.sweep_helpers import base, conductor_of, drive

SHAPES = [{"layers": 2, "hidden": 312}, {"layers": 4, "hidden": 312}]
GRID: dict[str, Any] = {"space": {"distill.temperature": [1, 4]}, "search": "grid"}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Numbers of labelled and unlabelled rows, in place of files; rows have 1 to 40 tokens."""
    rows = {"labelled": 1000, "unlabelled": 19000}

    def epochs_of(experiment: Experiment) -> Order:
        count = rows["labelled"] + (rows["unlabelled"] if experiment.data.unlabeled else 0)
        return build_order(np.arange(count, dtype=np.int32) % 40 + 1, experiment.train)

    monkeypatch.setattr(prepare, "_epochs_of", epochs_of)
    return rows


def controls_of(experiment: Experiment) -> list[Job]:
    conductor = conductor_of(experiment, steps_of=prepare.control_steps())
    assert not conductor.over()
    while len(conductor.trials.known) < conductor.num_trials and (values := conductor.ask()) is not None:
        conductor.add_configuration(values)
    return [job for job in conductor.jobs.values() if job.role != CANDIDATE]


@pytest.mark.parametrize(
    "train",
    [
        {"epochs": 6},
        {"epochs": 6, "eval_steps": 700},
        {"epochs": 6, "eval_epochs": 2},
        {"epochs": 30, "max_steps": 1700},
        {"epochs": 3, "batch_tokens": 512},
        {"epochs": 1},
    ],
)
def test_unlabelled_rows_give_a_control_the_same_steps_and_evaluations(
    train: dict[str, Any], tmp_path: Path, counted: dict[str, int]
) -> None:
    train = {**train, "early_stopping": {"patience": 3}}
    experiment = base(tmp_path, GRID, data={"unlabeled": "u"}, distill={"hard_label_weight": 0.5}, train=train)
    labels, teacher = controls_of(experiment)
    assert (labels.role, teacher.role) == (CONTROL, KD_ONLY)
    counts = []
    for one in (experiment, labels.experiment, teacher.experiment):
        rows = counted["labelled"] + (counted["unlabelled"] if one.data.unlabeled else 0)
        order = build_order(np.arange(rows, dtype=np.int32) % 40 + 1, one.train)
        counts.append((total_steps(order, one.train), evaluation_steps(order, one.train)))
    assert counts[0] == counts[2]
    assert counts[0][0] == counts[1][0]
    assert len(counts[0][1]) == len(counts[1][1])
    if "batch_tokens" not in train:  # epochs of equal length
        assert counts[0][1] == counts[1][1], "early stopping may come after the same share of steps"
    assert labels.experiment.train.early_stopping == experiment.train.early_stopping


def test_controls_of_labelled_rows_are_the_runs_that_they_were(tmp_path: Path) -> None:
    (control,) = controls_of(base(tmp_path, GRID))
    assert control.run == "distill-a78b51833b"
    assert control.experiment.train == base(tmp_path, GRID).train


def test_what_belongs_to_the_teacher_leaves_a_controls_changes(tmp_path: Path, counted: dict[str, int]) -> None:
    changes = [
        {"at": 0.5, "values": {"distill.temperature": 2.0, "train.learning_rate": 5e-5}},
        {"at": 0.8, "values": {"distill.kd_weight": 0.5, "distill.hard_label_weight": 2.0}},
    ]
    experiment = base(
        tmp_path,
        GRID,
        data={"unlabeled": "u"},
        distill={"hard_label_weight": 0.5, "kd_weight": 1.0},
        train={"changes": changes},
    )
    labels, teacher = controls_of(experiment)
    plain = [change.model_dump() for change in labels.experiment.train.changes]
    assert plain == [{"at": 0.5, "values": {"train.learning_rate": 5e-5}}]
    assert [change.values for change in teacher.experiment.train.changes] == [
        {"distill.temperature": 2.0, "train.learning_rate": 5e-5},
        {"distill.kd_weight": 0.5},
    ]
    only_losses = base(tmp_path / "b", GRID, train={"changes": changes[1:]}, distill={"hard_label_weight": 0.5})
    (control,) = controls_of(only_losses)
    assert control.experiment.train.changes == ()


def test_controls_search_the_learning_rates_of_their_students(tmp_path: Path) -> None:
    space = {"student.shape": SHAPES, "distill.temperature": [1, 4], "train.learning_rate": [1e-4, 3e-4, 1e-3]}
    found = controls_of(base(tmp_path, {"space": space, "search": "grid"}))
    rates = {(control.values["student.shape"]["layers"], control.experiment.train.learning_rate) for control in found}
    assert rates == {(layers, rate) for layers in (2, 4) for rate in space["train.learning_rate"]}
    assert len(found) == 6
    assert all(control.values["train.learning_rate"] == control.experiment.train.learning_rate for control in found)


@pytest.mark.parametrize(
    ("parameter", "rates"),
    [
        ({"loguniform": [1e-5, 1e-2]}, [3.162e-05, 3.162e-04, 3.162e-03]),
        ({"uniform": [0.001, 0.007]}, [0.002, 0.004, 0.006]),
    ],
)
def test_the_middles_of_three_parts_stand_for_a_range(parameter: Any, rates: list[float], tmp_path: Path) -> None:
    sweep = base(tmp_path, {"space": {"train.learning_rate": parameter}, "trials": 2}).sweep
    assert sweep is not None
    settings = control_settings(sweep, {"train.learning_rate": 1e-4})
    assert [setting["train.learning_rate"] for setting in settings] == pytest.approx(rates)


def test_many_settings_are_sampled_so_that_each_value_occurs(tmp_path: Path) -> None:
    space = {
        "train.learning_rate": [1e-5, 3e-5, 1e-4, 3e-4],
        "train.warmup": [0.0, 0.1, 0.2],
        "train.weight_decay": [0, 0.1],
    }
    sweep = base(tmp_path, {"space": space}).sweep
    assert sweep is not None
    settings = control_settings(sweep, {})
    assert 4 < len(settings) <= 9
    for key, values in space.items():
        assert {setting[key] for setting in settings} == set(values)
    excluded = sweep.model_copy(update={"exclude": ({"train.learning_rate": 1e-5, "train.warmup": 0.1},)})
    assert not any(
        (one["train.learning_rate"], one["train.warmup"]) == (1e-5, 0.1) for one in control_settings(excluded, {})
    )


def test_controls_match_the_amount_of_training_of_each_student(tmp_path: Path, counted: dict[str, int]) -> None:
    space = {"distill.temperature": [1, 4], "train.epochs": [2, 6], "train.batch_size": [16, 32]}
    found = controls_of(base(tmp_path, {"space": space, "search": "grid"}))
    assert len(found) == 4
    assert {(one.experiment.train.epochs, one.experiment.train.batch_size) for one in found} == {
        (epochs, size) for epochs in (2, 6) for size in (16, 32)
    }
    unlabelled = base(
        tmp_path / "b",
        {"space": space, "search": "grid"},
        data={"unlabeled": "u"},
        distill={"hard_label_weight": 0.5},
    )
    steps = {
        (one.values["train.epochs"], one.values["train.batch_size"]): one.experiment.train.max_steps
        for one in controls_of(unlabelled)
        if one.role == CONTROL
    }
    assert steps == {(2, 16): 2500, (2, 32): 1250, (6, 16): 7500, (6, 32): 3750}


def by_rate(job: Job) -> float:
    """The middle learning rate is best for both; by luck the first seed of the control at another one is as good."""
    rate = job.experiment.train.learning_rate
    if job.role == CANDIDATE:
        return 0.9 if rate == 3e-4 else 0.8
    return {1e-4: 0.84, 3e-4: 0.85 if job.seed == 0 else 0.83, 1e-3: 0.7}[rate]


def test_a_student_is_compared_with_the_best_control_on_data_eval(tmp_path: Path) -> None:
    space = {"distill.temperature": [1, 4], "train.learning_rate": [1e-4, 3e-4, 1e-3]}
    conductor = conductor_of(base(tmp_path, {"space": space, "search": "grid"}))
    drive(conductor, by_rate)
    board = leaderboard(load_sweep(conductor.ledger.folder))
    students = [row for row in board.rows if row.role == "student"]
    assert len(students) == 6
    for row in students:
        assert row.quality is not None
        assert row.gain is not None
        assert row.gain.mean == pytest.approx(row.quality.mean - 0.85), "also of a student with another learning rate"


def test_the_best_control_alone_is_run_again(tmp_path: Path) -> None:
    space = {"distill.temperature": [1, 4], "train.learning_rate": [1e-4, 3e-4, 1e-3]}
    sweep = {"space": space, "search": "grid", "rerun_best": {"count": 2, "seeds": 2}}
    conductor = conductor_of(base(tmp_path, sweep))
    jobs = drive(conductor, by_rate)
    again = [job for job in jobs if job.rerun]
    assert [(job.role, job.experiment.train.learning_rate, job.seed) for job in again] == [
        (CONTROL, 3e-4, 1),
        (CANDIDATE, 3e-4, 1),
        (CANDIDATE, 3e-4, 1),
    ]
    board = leaderboard(load_sweep(conductor.ledger.folder))
    assert board.best is not None
    assert board.best.gain is not None
    assert board.best.gain.mean == pytest.approx(0.9 - 0.83), "neither side has the seed that chose it"
    assert board.best.gain.paired
    (control,) = [row for row in board.rows if row.role == "control"]
    assert control.seeds == (1,)


@pytest.mark.parametrize(
    ("sweep", "data", "count"),
    [
        ({"space": {"distill.temperature": [1, 4]}, "search": "grid"}, {}, 1),
        ({"space": {"distill.temperature": [1, 4], "student.shape": SHAPES}, "search": "grid"}, {}, 2),
        ({"space": {"distill.temperature": [1, 4], "student.shape": SHAPES}, "search": "grid"}, {"unlabeled": "u"}, 4),
        ({"space": {"student.shape": SHAPES, "train.learning_rate": [1e-4, 1e-3]}, "search": "grid"}, {}, 4),
        ({"space": {"student.shape": SHAPES, "train.learning_rate": {"loguniform": [1e-4, 1e-3]}}, "trials": 8}, {}, 6),
        ({"space": {"student.shape": SHAPES}, "search": "grid", "rerun_best": {"count": 1, "seeds": 3}}, {}, 4),
        ({"space": {"student.shape": SHAPES, "train.epochs": [1, 2]}, "search": "grid", "seeds": 2}, {}, 8),
        ({"space": {"student.init": ["teacher", "random"]}, "search": "grid"}, {}, 1),
        ({"space": {"distill.temperature": [1, 4]}, "search": "grid", "controls": False}, {}, 0),
    ],
)
def test_as_many_controls_are_planned_as_there_will_be(
    sweep: dict[str, Any], data: dict[str, Any], count: int, tmp_path: Path, counted: dict[str, int]
) -> None:
    experiment = base(tmp_path, sweep, data=data, distill={"hard_label_weight": 0.5})
    assert planned_controls(experiment) == count
    conductor = conductor_of(experiment, steps_of=prepare.control_steps())
    jobs = drive(conductor, lambda job: 0.8)
    assert sum(job.role != CANDIDATE for job in jobs) == count

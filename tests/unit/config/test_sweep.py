"""The `sweep` section: how spaces are written, what is refused, and that every corner is built before anything runs."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from raybrew.config import Experiment
from raybrew.config.loading import build_experiment, load_experiment
from raybrew.config.space import (
    CORNER_LIMIT,
    apply_values,
    corner_count,
    corners,
    is_excluded,
    space_cautions,
    space_notes,
)
from raybrew.config.values import show_value_of
from raybrew.errors import ConfigError

BASE: dict[str, Any] = {
    "name": "s",
    "data": {"train": "a", "eval": "b"},
    "teacher": {"model": "hub/teacher"},
    "student": {"shape": "T3"},
}


def build(sweep: dict[str, Any], **sections: Any) -> Experiment:
    return build_experiment({**BASE, **sections, "sweep": sweep}, check_files=False)


def problems(sweep: dict[str, Any], **sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build(sweep, **sections)
    return str(caught.value)


def values_of(experiment: Experiment) -> list[dict[str, Any]]:
    assert experiment.sweep is not None
    return corners(experiment.sweep)


def test_the_ways_to_write_a_parameter() -> None:
    space = {
        "distill.temperature": [1, 4.5],
        "train.learning_rate": {"loguniform": [1e-5, 1e-3]},
        "train.warmup": {"uniform": [0, 0.2]},
        "train.epochs": {"int": [1, 3]},
    }
    sweep = build({"space": space, "search": "random", "scheduler": "asha"}).sweep
    assert sweep is not None
    assert {key: parameter.kind for key, parameter in sweep.space.items()} == {
        "distill.temperature": "choice",
        "train.learning_rate": "loguniform",
        "train.warmup": "uniform",
        "train.epochs": "int",
    }
    assert (sweep.search.kind, sweep.scheduler.kind) == ("random", "asha")


def test_overrides_make_nested_keys(tmp_path: Any) -> None:
    import yaml

    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump(BASE))
    found = load_experiment(path, ["sweep.space.distill.temperature=[1,2]", "sweep.trials=3"], check_files=False)
    assert found.sweep is not None
    assert list(found.sweep.space) == ["distill.temperature"]


def test_a_dump_reads_back_to_an_equal_experiment(tmp_path: Any) -> None:
    experiment = build(
        {
            "space": {
                "student.shape": ["T3", {"layers": 4, "hidden": 256, "heads": 4}],
                "student.init": {"choice": ["random", "auto"], "when": {"student.shape": "T3"}},
                "distill.matches": [[], [{"loss": "hidden_mse"}]],
            },
            "exclude": [{"student.shape": "T3", "distill.matches": [[]]}],
        }
    )
    path = tmp_path / "e.yaml"
    path.write_text(experiment.to_yaml())
    assert load_experiment(path, check_files=False) == experiment


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ({}, "sweep.space: empty"),
        ({"space": {"distill.temperature": {"chioce": [1]}}}, "did you mean 'choice'?"),
        ({"space": {"distill.temperature": {"choice": [1], "grid": [2]}}}, "exactly one of choice"),
        ({"space": {"distill.temperature": []}}, "at least one value"),
        ({"space": {"distill.temperature": [1, 1]}}, "differ from one another"),
        ({"space": {"distill.temperature": {"uniform": [4, 1]}}}, "two numbers that rise"),
        ({"space": {"train.learning_rate": {"loguniform": [0, 1]}}}, "above 0"),
        ({"space": {"train.epochs": {"int": [1, 2.5]}}}, "whole numbers"),
        ({"space": {"train.seed": [1, 2]}}, "sweep.seeds"),
        ({"space": {"task.metric": ["mcc", "accuracy"]}}, "judged by one metric"),
        ({"space": {"store.path": ["a", "b"]}}, "sweep.space.store.path: cannot vary"),
        ({"space": {"distil.temperature": [1]}}, "did you mean 'distill'?"),
        ({"space": {"distill.temprature": [1, 2]}}, "did you mean 'temperature'?"),
        ({"space": {"distill": [{"temperature": 2}], "distill.temperature": [1]}}, "one holds the other"),
        ({"space": {"distill.temperature": [1]}, "exclude": [{"distill.temprature": 1}]}, "no key of the space"),
        ({"space": {"distill.temperature": {"uniform": [1, 2]}}, "search": "grid"}, "sweep.search.kind: given 'grid'"),
        ({"space": {"distill.temperature": [1]}, "budget": {"money": 3}}, "sweep.budget.price_per_hour: required"),
        ({"space": {"distill.temperature": [1]}, "trials": 0}, "sweep.trials"),
        ({"space": {"distill.temperature": [1]}, "search": "hyperopt"}, "random, grid, optuna"),
        (
            {"space": {"distill.temperature": [1]}, "search": {"kind": "optuna", "objectives": ["quality", "latency"]},
             "scheduler": "asha"},
            "with several objectives",
        ),
        ({"space": {"distill.temperature": [1]}, "scheduler": "hyperband"}, "none, asha, median"),
        (
            {"space": {"student.init": {"choice": ["random"], "when": {"student.shape": "T3"}}}},
            "student.init.when: keys of the space",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(sweep: dict[str, Any], words: str) -> None:
    assert words in problems(sweep)


def test_fractions_of_a_gpu_are_for_one_worker() -> None:
    sweep = {"space": {"distill.temperature": [1]}, "resources": {"gpus": 0.5}}
    build(sweep)
    assert "trials of one worker only" in problems(sweep, train={"workers": 2})


def test_impossible_corners_are_listed_together_with_their_values() -> None:
    space = {
        "distill.temperature": [1, 4],
        "train.precision": ["fp32", "fp16"],
        "train.device": ["cpu"],
        "train.micro_batch_size": [8, 64],
    }
    text = problems({"space": space})
    assert "2 problems" in text
    assert "impossible with train.precision=fp16 (4 of 8 corners): train.precision: given 'fp16' with device" in text
    assert "impossible with train.micro_batch_size=64 (4 of 8 corners)" in text
    excluded = [{"train.precision": "fp16"}, {"train.micro_batch_size": 64}]
    found = values_of(build({"space": space, "exclude": excluded}))
    assert [values["distill.temperature"] for values in found] == [1, 4]
    assert "leaves nothing" in problems(
        {"space": {"distill.temperature": [1]}, "exclude": [{"distill.temperature": 1}]}
    )


def test_conditions() -> None:
    space = {
        "student.shape": ["T3", "T4-tiny", "T6"],
        "student.init": {"choice": ["random", "teacher"], "when": {"student.shape": ["T3", "T6"]}},
    }
    found = values_of(build({"space": space}))
    assert len(found) == 5
    assert {"student.shape": "T4-tiny"} in found
    assert not any(values["student.shape"] == "T4-tiny" and "student.init" in values for values in found)


def test_a_large_space_is_sampled_with_every_value_in_it() -> None:
    space: dict[str, Any] = {
        "distill.temperature": [float(value) for value in range(1, 31)],
        "distill.kd_weight": [0.1 * value for value in range(1, 31)],
        "train.batch_size": [8, 16, 32],
    }
    experiment = build({"space": space})
    assert experiment.sweep is not None
    assert corner_count(experiment.sweep) == 2700
    found = corners(experiment.sweep)
    assert found == corners(experiment.sweep)
    assert len(found) <= CORNER_LIMIT
    assert all({values[key] for values in found} == set(space[key]) for key in space)
    assert "of 2700 corners were checked" in space_notes(experiment)[0]
    assert "distill.kd_weight: given -1" in problems({"space": {**space, "distill.kd_weight": [1.0, -1.0]}})


def test_values_take_the_place_of_old_ones_and_sections_are_laid_over() -> None:
    plain = build({"space": {"distill.temperature": [1]}}, distill={"matches": ["L3_hidden_mse"]}).plain()
    found = apply_values(
        plain,
        {
            "distill": {"temperature": 2.0},
            "student.shape": {"layers": 2, "hidden": 64},
            "distill.matches.0.weight": 3.0,
            "task.max_length": 16,
        },
    )
    assert "sweep" not in found
    experiment = build_experiment(found, check_files=False)
    assert experiment.sweep is None
    assert experiment.distill.temperature == 2.0
    assert experiment.distill.matches[0].weight == 3.0
    assert experiment.task.max_length == 16
    assert plain["student"]["shape"] == "T3", "the base must not change"
    with pytest.raises(ConfigError, match="the list has 1 entries"):
        apply_values(plain, {"distill.matches.4.weight": 1.0})


def test_exclusion_needs_all_its_keys() -> None:
    sweep = build({"space": {"distill.temperature": [1, 2], "train.epochs": [1, 2]},
                   "exclude": [{"distill.temperature": 1, "train.epochs": [2, 3]}]}).sweep  # fmt: skip
    assert sweep is not None
    for temperature, epochs in itertools.product([1, 2], [1, 2]):
        wanted = (temperature, epochs) == (1, 2)
        assert is_excluded(sweep, {"distill.temperature": temperature, "train.epochs": epochs}) is wanted


def test_confounded_temperature_is_pointed_out() -> None:
    sweep = {"space": {"distill.temperature": [1, 4]}}
    assert not any("confounded" in note for note in space_cautions(build(sweep)))
    unscaled = build(sweep, distill={"scale_by_temperature_squared": False})
    assert any("confounded" in note for note in space_cautions(unscaled))
    varied = build({"space": {"distill.temperature": [1, 4], "distill.scale_by_temperature_squared": [True, False]}})
    assert any("confounded" in note for note in space_cautions(varied))


def test_a_sweep_is_no_part_of_a_runs_identity() -> None:
    experiment = build({"space": {"distill.temperature": [1, 4]}})
    assert experiment.run_id("distill") == build_experiment(BASE, check_files=False).run_id("distill")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("T3", "T3"),
        (None, "none"),
        (1e-4, "0.0001"),
        ([], "none"),
        ([{"loss": "hidden_mse", "layers": "last", "weight": 2.0}, {"loss": "mmd"}], "hidden_mse last x2 + mmd"),
        ({"loss": "mmd", "layers": [[0, 0]], "weight": 1}, "mmd 1 pair"),
        ({"loss": "mmd", "layers": None, "weight": "much"}, "mmd None xmuch"),  # shown where it is refused
        ({"layers": 4, "hidden": 312}, "4x312"),
        ({"layers": 3}, "3 layers"),
        ({"temperature": 2, "kd_weight": 0.5}, "temperature=2, kd_weight=0.5"),
    ],
)
def test_values_in_a_few_characters(value: Any, text: str) -> None:
    assert show_value_of(value) == text


def test_a_temperature_that_cancels_out_is_told() -> None:
    def notes(task: str, **distill: Any) -> list[str]:
        sweep = {"space": {"distill.temperature": [1, 4]}}
        return [
            note for note in space_cautions(build(sweep, task={"kind": task}, distill=distill)) if "cancels" in note
        ]

    assert notes("regression")
    assert notes("classification", kd_loss={"kind": "mse"})
    assert not notes("classification")
    assert not notes("regression", scale_by_temperature_squared=False), "then it scales the loss, which is told as well"

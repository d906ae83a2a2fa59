"""Rules of experiment files that depend on the kind of task: columns, losses, metrics, sizes."""

from __future__ import annotations

from typing import Any

import pytest

from raybrew.catalog.metrics import METRICS
from raybrew.catalog.tasks import TASKS
from raybrew.config import TASK_CONFIGS
from raybrew.config.kinds import kd_losses_for
from raybrew.config.loading import build_experiment
from raybrew.config.template import experiment_template
from raybrew.errors import ConfigError
from raybrew.tasks.base import build_task
from tests.told import told


def problems(task: Any, **sections: Any) -> ConfigError:
    values = {"name": "x", "teacher": {"model": "some/model"}, "task": task, **sections}
    with pytest.raises(ConfigError) as caught:
        build_experiment(values, check_files=False)
    return caught.value


@pytest.mark.parametrize(
    ("task", "sections", "problem"),
    [
        ({"kind": "tag"}, {}, "task.kind: unknown"),
        ({"kind": 3}, {}, "task.kind: unknown"),
        ([1], {}, "task: value"),
        ({"kind": "qa", "scheme": "bio"}, {}, "task.scheme: unknown"),
        ({"kind": "tagging", "scheme": "none"}, {}, "task.metric: value"),
        (
            {"kind": "tagging"},
            {"data": {"columns": {"text": "sentence"}}},
            "data.columns.text: unused",
        ),
        (
            {"kind": "qa"},
            {"data": {"columns": {"question": "context"}}},
            "data.columns: duplicate",
        ),
        (
            {"kind": "classification"},
            {"data": {"format": "conll"}},
            "data.format: conflict",
        ),
        (
            {"kind": "tagging"},
            {"data": {"format": "jsonl", "columns": {"tags": -1}}},
            "data.columns.tags: unused",
        ),
        (
            {"kind": "tagging"},
            {"data": {"format": "conll", "columns": {"tags": "ner"}}},
            "data.columns.tags: unused",
        ),
        ({"kind": "qa", "max_length": 100, "stride": 60}, {}, "task.stride: value"),
        (
            {"kind": "regression"},
            {"distill": {"kd_loss": {"kind": "ce"}}},
            "distill.kd_loss.kind: value",
        ),
        (
            {"kind": "multilabel"},
            {"distill": {"kd_loss": {"kind": "kl"}}},
            "distill.kd_loss.kind: value",
        ),
        (
            {"kind": "classification"},
            {"distill": {"kd_loss": {"kind": "bce"}}},
            "distill.kd_loss.kind: value",
        ),
        (
            {"kind": "qa"},
            {"distill": {"temperature_schedule": {"kind": "flsw"}}},
            "distill.temperature_schedule: conflict",
        ),
        (
            {"kind": "regression"},
            {"distill": {"kd_loss": {"kind": "mse"}, "probability_shift": True}},
            "distill.probability_shift: conflict",
        ),
        (
            {"kind": "qa"},
            {"teacher": {"members": {"a": {"model": "x/a"}, "b": {"model": "x/b"}}, "average": "probabilities"}},
            "teacher.average: conflict",
        ),
    ],
)  # fmt: skip
def test_rules_of_tasks(task: Any, sections: dict[str, Any], problem: str) -> None:
    found = problems(task, **sections)
    assert problem in told(found), found


def test_a_control_needs_no_kd_loss_of_its_task() -> None:
    values = {"name": "x", "task": {"kind": "regression"}, "distill": {"kd_weight": 0, "hard_label_weight": 1}}
    assert build_experiment(values, check_files=False).task.kind == "regression"


def test_problems_of_a_task_among_several_name_its_own_keys() -> None:
    part = {"data": {"train": "x.jsonl"}, "teacher": {"model": "some/model"}}
    tasks = {
        "ner": {**part, "task": {"kind": "tagging", "label": 1}},
        "sts": {**part, "task": {"kind": "regres"}},
    }
    with pytest.raises(ConfigError) as caught:
        build_experiment({"name": "x", "task": {"kind": "multi", "tasks": tasks}}, check_files=False)
    assert told(caught.value) == ["task.tasks.ner.task.label: unknown", "task.tasks.sts.task.kind: unknown"]
    assert str(caught.value).endswith("did you mean 'regression'?")


@pytest.mark.parametrize("kind", TASK_CONFIGS)
def test_the_template_of_every_task_is_valid_and_shows_its_columns(kind: str) -> None:
    import yaml

    text = experiment_template("x.yaml", kind)
    experiment = build_experiment(yaml.safe_load(text), check_files=False)
    assert experiment.task.kind == kind
    assert kd_losses_for(kind)[0] == build_task(experiment.task).head.kd_loss, "what `auto` stands for"
    (columns,) = [line for line in text.splitlines() if line.startswith("  # columns:")]
    assert all(f"{name}:" in columns for name in TASKS[kind].columns)


def test_every_metric_of_a_task_is_explained() -> None:
    from typing import get_args

    used = {name for config in TASK_CONFIGS.values() for name in get_args(config.model_fields["metric"].annotation)}
    assert used == set(METRICS)

"""Rules of experiment files that depend on the kind of task: columns, losses, metrics, sizes."""

from __future__ import annotations

from typing import Any

import pytest

from raybrew.catalog.tasks import TASKS
from raybrew.config import TASK_CONFIGS
from raybrew.config.loading import build_experiment
from raybrew.config.task import METRICS, kd_losses_for
from raybrew.config.template import experiment_template
from raybrew.errors import ConfigError
from raybrew.tasks.base import build_task


def problems(task: Any, **sections: Any) -> tuple[str, ...]:
    values = {"name": "x", "teacher": {"model": "some/model"}, "task": task, **sections}
    with pytest.raises(ConfigError) as caught:
        build_experiment(values, check_files=False)
    return caught.value.problems


@pytest.mark.parametrize(
    ("task", "sections", "problem"),
    [
        ({"kind": "tag"}, {}, "task.kind: given 'tag'; allowed: classification, multilabel, regression, tagging, qa"),
        ({"kind": 3}, {}, "task.kind: given 3; allowed: classification"),
        ([1], {}, "task: given [1]; allowed: a section of keys"),
        ({"kind": "qa", "scheme": "bio"}, {}, "task.scheme: unknown key (given 'bio'); allowed: kind, scoring"),
        ({"kind": "tagging", "scheme": "none"}, {}, "task.metric: given 'f1'; allowed: accuracy, macro_f1"),
        (
            {"kind": "tagging"},
            {"data": {"columns": {"text": "sentence"}}},
            "data.columns.text: given 'sentence', but task.kind 'tagging' reads tokens, tags",
        ),
        (
            {"kind": "qa"},
            {"data": {"columns": {"question": "context"}}},
            "data.columns: given context, context, answers; each column must be another one",
        ),
        (
            {"kind": "classification"},
            {"data": {"format": "conll"}},
            "data.format: given 'conll', which task.kind tagging reads",
        ),
        (
            {"kind": "tagging"},
            {"data": {"format": "jsonl", "columns": {"tags": -1}}},
            "data.columns.tags: given -1; numbers are for columns of CoNLL files",
        ),
        (
            {"kind": "tagging"},
            {"data": {"format": "conll", "columns": {"tags": "ner"}}},
            "data.columns.tags: given 'ner'; columns of CoNLL files have numbers",
        ),
        ({"kind": "qa", "max_length": 100, "stride": 60}, {}, "task.stride: given 60; allowed: at most half"),
        (
            {"kind": "regression"},
            {"distill": {"kd_loss": {"kind": "ce"}}},
            "distill.kd_loss.kind: given 'ce'; allowed for task.kind 'regression': auto, mse",
        ),
        (
            {"kind": "multilabel"},
            {"distill": {"kd_loss": {"kind": "kl"}}},
            "distill.kd_loss.kind: given 'kl'; allowed for task.kind 'multilabel': auto, bce, mse",
        ),
        (
            {"kind": "classification"},
            {"distill": {"kd_loss": {"kind": "bce"}}},
            "distill.kd_loss.kind: given 'bce'; allowed for task.kind 'classification': auto, ce",
        ),
        (
            {"kind": "qa"},
            {"distill": {"temperature_schedule": {"kind": "flsw"}}},
            "distill.temperature_schedule: given for task.kind 'qa'",
        ),
        (
            {"kind": "regression"},
            {"distill": {"kd_loss": {"kind": "mse"}, "probability_shift": True}},
            "distill.probability_shift: given for task.kind 'regression', which has no single true class",
        ),
        (
            {"kind": "qa"},
            {"teacher": {"members": {"a": {"model": "x/a"}, "b": {"model": "x/b"}}, "average": "probabilities"}},
            "teacher.average: given 'probabilities'; allowed for task.kind 'qa': logits",
        ),
    ],
)  # fmt: skip
def test_rules_of_tasks(task: Any, sections: dict[str, Any], problem: str) -> None:
    found = problems(task, **sections)
    assert any(text.startswith(problem) for text in found), found


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
    unknown, kind = caught.value.problems
    assert unknown.startswith("task.tasks.ner.task.label: unknown key (given 1); allowed: labels, kind, scheme")
    assert kind.startswith("task.tasks.sts.task.kind: given 'regres'; allowed: classification")
    assert kind.endswith("did you mean 'regression'?")


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

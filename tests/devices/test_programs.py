"""Whole trainings of every kind on the pretend accelerator: the host's weights, no waits in steps, float32 losses.

A GPU has its whole command in `test_gpu.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from commands import CPU, LABELS, Project, distil_on, refuse_waits, watch, weights_of
from machines import half_precision
from tiny_runs import gap

from raybrew.catalog.methods import METHODS
from raybrew.catalog.tasks import TASKS
from raybrew.config import Experiment, TrainConfig

Build = Callable[[Project], Experiment]

#: Where students run.
MODELS = ("models/forward.py:forward", "models/composite.py:__call__")
EMD = "distillers/emd.py:distance"  # the flow between layers is a linear program, solved on the host


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("programs"))


def of_task(task: str, source: str) -> Build:
    """Logits, labels and layers."""
    distill = {"hard_label_weight": 0.5, "matches": [{"loss": "hidden_mse"}, {"loss": "attention_mse"}]}
    return lambda project: project.experiment(
        task, teacher={"model": project.teacher(task), "source": source, "precision": "fp32"}, distill=distill
    )


def of_method(method: str) -> Build:
    return lambda project: project.experiment(distill={"method": method})


def members(average: str, **sources: str) -> Build:
    """Teachers of different width and depth, of which one has no part in the average."""

    def build(project: Project) -> Experiment:
        families = {"big": "bert", "small": "minilm", "layers": "bert"}
        found = {
            name: {
                "model": project.teacher("classification", families[name], seed),
                "source": source,
                "precision": "fp32",
                "weight": {"big": 2.0, "small": 1.0, "layers": 0.0}[name],
            }
            for seed, (name, source) in enumerate(sources.items())
        }
        matches = [{"loss": "hidden_mse", "teacher": "layers"}, {"loss": "cos", "layers": "last", "teacher": "small"}]
        return project.experiment(
            teacher={"members": found, "average": average}, distill={"temperature": 2.0, "matches": matches}
        )

    return build


def several_tasks(*tasks: str, members: bool = False, **distill: Any) -> Build:
    """One student with a head and a teacher for each task, of the first one two if `members`."""

    def build(project: Project) -> Experiment:
        parts = {task: project.part(task) | {"weight": 1.0 + place} for place, task in enumerate(tasks)}
        if members:
            parts[tasks[0]]["teacher"] = {
                "members": {
                    name: {"model": project.teacher(tasks[0], seed=seed), "source": source, "precision": "fp32"}
                    for seed, (name, source) in enumerate({"one": "live", "two": "auto"}.items())
                }
            }
        return project.experiment(
            task={"kind": "multi", "tasks": parts},
            data={},
            teacher={},
            student={"shape": {"layers": 2}, "teacher": tasks[1]},
            distill=distill,
            train={"max_steps": 3 * len(tasks)},
        )

    return build


def trained_by(student: Mapping[str, Any] | None = None, **train: Any) -> Build:
    return lambda project: project.experiment(
        distill={"hard_label_weight": 0.5, "matches": [{"loss": "hidden_mse"}]},
        train=train,
        **({} if student is None else {"student": student}),
    )


STAGES = [
    {
        "share": 0.4,
        "kd_weight": 0.0,
        "hard_label_weight": 0.0,
        "matches": [{"loss": "hidden_mse"}, {"loss": "mmd", "layers": "last"}],
    },
    {"share": 0.3, "learning_rate": 5e-3, "emd": {"hidden": 1.0, "attention": 0.5}},
    {"hard_label_weight": 1.0},
]

#: Values of `train` that change what happens on the device, in few trainings.
TRAININGS: Mapping[str, dict[str, Any]] = {
    "in parts": {
        "micro_batch_size": 2,
        "layer_lr_decay": 0.8,
        "schedule": "cosine",
        "weight_decay": 0.1,
        "max_grad_norm": 0.05,
        "gradient_checkpointing": True,
        "changes": [{"at": 0.4, "values": {"distill.temperature": 2.0, "distill.kd_weight": 0.5}}],
    },
    "by tokens": {
        "batch_tokens": 96,
        "micro_batch_tokens": 48,
        "max_grad_norm": None,
        "warmup": 0.0,
        "schedule": "constant",
        "early_stopping": {"patience": 9},
    },
}
#: What of `train` is tested elsewhere, or changes nothing on the device, and where or why.
ELSEWHERE = {
    "precision": "test_losses_are_float32",
    "compile": "test_gpu.py; a pretend device has nothing to compile for",
    "workers parallel": "two workers have a CPU each in tests/trajectories",
    "eval_steps eval_epochs checkpoint_steps checkpoint_epochs checkpoint_minutes log_steps": "test_steps.py",
    "device launcher threads cpus_per_worker max_failures keep_checkpoints": "of the host",
    "epochs max_steps batch_size learning_rate seed": "in all trainings here",
}

PROGRAMS: Mapping[str, Build] = {
    **{f"{task}, live": of_task(task, "live") for task in TASKS},
    **{f"{task}, stored": of_task(task, "auto") for task in TASKS if task != "masked_lm"},
    **{f"method {method}": of_method(method) for method in METHODS},
    "live members": members("logits", big="live", small="live", layers="live"),
    "live and stored members": members("probabilities", big="live", small="auto", layers="live"),
    "several tasks": several_tasks(
        *(task for task in TASKS if task != "masked_lm"),
        members=True,
        hard_label_weight=0.5,
        matches=[{"loss": "cos", "teacher": name} for name in ("classification/one", "tagging", "qa")],
    ),
    "several tasks in stages": several_tasks("classification", "tagging", stages=STAGES),
    "stages": lambda project: project.experiment(distill={"stages": STAGES}),
    **{f"trained {name}": trained_by(**train) for name, train in TRAININGS.items()},
    "trimmed vocabulary": trained_by({"shape": {"layers": 2}, "vocabulary": {}}),
    "temperatures": lambda project: project.experiment(
        distill={"temperature_schedule": {"kind": "flsw"}, "probability_shift": False, "kd_loss": {"kind": "js"}}
    ),
}


def waits_in_steps(name: str) -> set[str]:
    return {EMD} if name == "method emd" or "stages" in name else set()


def test_everything_is_covered() -> None:
    assert set(LABELS) == set(TASKS)
    known = {key for train in TRAININGS.values() for key in train} | {key for keys in ELSEWHERE for key in keys.split()}
    assert known == set(TrainConfig.model_fields)


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(project: Project, name: str) -> None:
    experiment = PROGRAMS[name](project)
    expected = weights_of(distil_on(CPU, experiment))
    watched = watch(experiment)
    found = weights_of(watched.run)
    assert found.keys() == expected.keys()
    largest, mean = gap(found, expected)
    assert largest < 1e-3  # a gradient near 0 may round to the other sign, and AdamW takes the sign
    assert mean < 1e-7
    refuse_waits(watched, waits_in_steps(name))


#: Stored signals, several tasks' steps and ways to train have the losses of the others.
@pytest.mark.parametrize("name", [name for name in PROGRAMS if not name.endswith("stored") and "trained" not in name])
def test_losses_are_float32(project: Project, name: str) -> None:
    experiment = PROGRAMS[name](project)
    few = {} if experiment.distill.stages else {"max_steps": 2}
    train = experiment.train.model_copy(update={"precision": "bf16", **few})
    watched = watch(experiment.model_copy(update={"train": train}), watch_types=True)
    seen = watched.accelerator.seen
    assert not half_precision(seen) | half_precision(seen, "tasks/heads.py")
    students = {kind for each in seen if each.site in MODELS and each.operation == "addmm" for kind in each.types}
    assert torch.bfloat16 in students
    assert {kind for each in seen if "adam" in each.operation for kind in each.types} == {torch.float32}

"""Whole trainings next to TextBrewer's from equal weights and batches: all losses of all steps, and the last logits."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from plain_models import (
    batches,
    examples_adaptor,
    logits_adaptor,
    student,
    tags_adaptor,
    teacher,
)
from torch import nn

import raybrew
from raybrew.textbrewer.program import TrainingOutput
from raybrew.training.streams import TaskOrder

STEPS = 30
Curve = list[dict[str, float]]

HIDDEN = [
    {"layer_T": 0, "layer_S": 0, "feature": "hidden", "loss": "hidden_mse", "weight": 1, "proj": ["linear", 8, 12]},
    {
        "layer_T": 4, "layer_S": 2, "feature": "hidden", "loss": "hidden_mse", "weight": 0.5,
        "proj": ["tanh", 8, 12, {"lr": 3e-3}],
    },
    {"layer_T": [4, 4], "layer_S": [2, 2], "feature": "hidden", "loss": "mmd", "weight": 2},
    {"layer_T": [0, 2], "layer_S": [0, 1], "feature": "hidden", "loss": "fsp", "weight": 1, "proj": ["relu", 8, 12]},
    {"layer_T": 2, "layer_S": 1, "feature": "hidden", "loss": "cos", "weight": 1, "proj": ["linear", 8, 12]},
    {"layer_T": 3, "layer_S": 1, "feature": "hidden", "loss": "pkd", "weight": 1, "proj": ["linear", 8, 12]},
]  # fmt: skip
ATTENTION = [
    {"layer_T": 3, "layer_S": 1, "feature": "attention", "loss": loss, "weight": 0.1}
    for loss in ("attention_mse", "attention_mse_sum", "attention_ce", "attention_ce_mean")
]

#: DistillationConfig of each training, and how many optimizer steps one checkpoint schedule step means.
GENERAL: dict[str, dict[str, Any]] = {
    "logits": {"temperature": 8},
    "mse and labels": {"kd_loss_type": "mse", "hard_label_weight": 0.7, "kd_loss_weight": 2},
    "hidden": {"temperature": 8, "intermediate_matches": HIDDEN},
    "attention": {"temperature": 2, "intermediate_matches": ATTENTION, "hard_label_weight": 1},
    "weight schedules": {
        "kd_loss_weight_scheduler": "linear_decay",
        "hard_label_weight": 1,
        "hard_label_weight_scheduler": "linear_decay",
    },
    "flsw": {"temperature_scheduler": ["flsw", 1, 2]},
    "cwsm": {"temperature_scheduler": ["cwsm", 1]},
    "probability shift": {"probability_shift": True},
}


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> Curve:
    """Losses that our trainings log, under TextBrewer's names."""
    curve: Curve = []

    def log(self: TrainingOutput, record: dict[str, Any]) -> None:
        if record["kind"] == "train":
            losses = {tag: record[f"loss/{name}"] for name, tag in self.tags.items() if f"loss/{name}" in record}
            curve.append({"total": record["loss"], **losses})

    monkeypatch.setattr(TrainingOutput, "log", log)
    return curve


@pytest.fixture
def theirs(textbrewer: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Curve:
    """Losses that TextBrewer writes."""
    from textbrewer.distiller_basic import BasicDistiller

    curve: Curve = []

    def write_loss(self: Any, total: torch.Tensor, step: int, losses: dict[str, Any]) -> None:
        curve.append({"total": total.item(), **{name: value.item() for name, value in losses.items()}})

    monkeypatch.setattr(BasicDistiller, "write_loss", write_loss)
    return curve


def configs(package: Any, folder: Path, values: dict[str, Any], **training: Any) -> tuple[Any, Any]:
    """Both configurations of `package`; matches are copied, since TextBrewer changes what it is given."""
    import copy

    folder = folder / package.__name__
    more = {"log_steps": 1} if package is raybrew else {}
    train = package.TrainingConfig(output_dir=str(folder), device="cpu", **training, **more)
    return train, package.DistillationConfig(**copy.deepcopy(values))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def schedule() -> dict[str, Any]:
    return {
        "scheduler_class": torch.optim.lr_scheduler.LambdaLR,
        "scheduler_args": {"lr_lambda": lambda step: 1 - step / (STEPS + 1)},
    }


def same(ours: Curve, theirs: Curve, first: nn.Module, second: nn.Module) -> None:
    assert len(ours) == len(theirs) == STEPS
    assert abs(ours[0]["total"] - ours[-1]["total"]) > 1e-3, "training moved nothing"
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert mine.keys() == other.keys()
        for name in mine:
            assert mine[name] == pytest.approx(other[name], abs=1e-5, rel=1e-5), (step, name)
    # Not the weights: Adam makes steps out of the rounding in gradients that are zero, those of the keys' biases.
    with torch.no_grad():
        mine_out, other_out = (model.eval()(**batches(1, seed=99)[0]) for model in (first, second))
    torch.testing.assert_close(mine_out["logits"], other_out["logits"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", GENERAL)
def test_general(kind: str, ours: Curve, theirs: Curve, tmp_path: Path) -> None:
    import textbrewer

    students: list[nn.Module] = []
    projections: list[Any] = []
    for package in (textbrewer, raybrew):
        train_config, distill_config = configs(package, tmp_path, GENERAL[kind])
        pupil = student()
        adaptors = (examples_adaptor, examples_adaptor)
        distiller = package.GeneralDistiller(train_config, distill_config, teacher(), pupil, *adaptors)
        if students:  # the trained maps start where TextBrewer's did
            for mine, other in zip(distiller.projs, projections, strict=True):
                if mine is not None:
                    mine.load_state_dict(other)
        else:
            projections = [
                None if proj is None else {name: value.clone() for name, value in proj.state_dict().items()}
                for proj in distiller.projs
            ]
        with distiller:
            distiller.train(optimizer_of(pupil), batches(10), num_epochs=3, callback=None, **schedule())
        students.append(pupil)
    same(ours, theirs, students[1], students[0])


def test_general_without_masks(ours: Curve, theirs: Curve, tmp_path: Path) -> None:
    import textbrewer

    def bare(batch: Any, outputs: Any) -> dict[str, Any]:
        return {"logits": outputs["logits"], "hidden": outputs["hidden"], "attention": outputs["attention"]}

    matches = [match for match in HIDDEN if "proj" not in match] + ATTENTION
    students = []
    for package in (textbrewer, raybrew):
        train_config, distill_config = configs(package, tmp_path, {"intermediate_matches": matches})
        pupil = student()
        distiller = package.GeneralDistiller(train_config, distill_config, teacher(), pupil, bare, bare)
        with distiller:
            distiller.train(optimizer_of(pupil), batches(10), num_epochs=3, **schedule())
        students.append(pupil)
    same(ours, theirs, students[1], students[0])


def test_tokens_with_a_mask_by_steps(ours: Curve, theirs: Curve, tmp_path: Path) -> None:
    import textbrewer

    students = []
    for package in (textbrewer, raybrew):
        train_config, distill_config = configs(package, tmp_path, {"temperature": 3}, ckpt_steps=10)
        pupil = student()
        distiller = package.BasicDistiller(train_config, distill_config, teacher(), pupil, tags_adaptor, tags_adaptor)
        with distiller:
            distiller.train(optimizer_of(pupil), batches(7), num_epochs=None, num_steps=STEPS, **schedule())
        students.append(pupil)
    same(ours, theirs, students[1], students[0])
    written = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("textbrewer", "raybrew")]
    assert written[0] == written[1] == ["gs10.pkl", "gs20.pkl", "gs30.pkl"]


@pytest.mark.parametrize("values", [{"temperature": 8}, {"probability_shift": True, "hard_label_weight": 1}])
def test_multi_teacher(values: dict[str, Any], ours: Curve, theirs: Curve, tmp_path: Path) -> None:
    import textbrewer

    students = []
    for package in (textbrewer, raybrew):
        train_config, distill_config = configs(package, tmp_path, values)
        pupil = student()
        teachers = [teacher(), teacher(3, 10, seed=5), teacher(seed=6)]
        adaptors = [examples_adaptor, logits_adaptor, logits_adaptor]
        distiller = package.MultiTeacherDistiller(
            train_config, distill_config, teachers, pupil, adaptors, examples_adaptor
        )
        with distiller:
            distiller.train(optimizer_of(pupil), batches(10), num_epochs=3, **schedule())
        students.append(pupil)
    same(ours, theirs, students[1], students[0])


def test_multi_task(ours: Curve, theirs: Curve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import textbrewer

    data = {"examples": batches(8), "tags": batches(3, seed=9)}
    adaptors = {"examples": examples_adaptor, "tags": tags_adaptor}
    order = TaskOrder({"examples": 8, "tags": 3}, 0.5, seed=4)
    drawn = [order(index) for index in range(STEPS)]
    assert set(drawn) == set(data)
    monkeypatch.setattr(np.random, "choice", lambda names, p: drawn.pop(0))
    values = {"temperature": 8, "hard_label_weight": 0.5}
    students = []
    for package in (textbrewer, raybrew):
        train_config, distill_config = configs(package, tmp_path, values, ckpt_steps=STEPS)
        pupil = student()
        teachers = {"examples": teacher(), "tags": teacher(seed=7)}
        distiller = package.MultiTaskDistiller(train_config, distill_config, teachers, pupil, adaptors, adaptors)
        seed = {"seed": 4} if package is raybrew else {}
        with distiller:
            distiller.train(optimizer_of(pupil), data, num_steps=STEPS, tau=0.5, **schedule(), **seed)
        students.append(pupil)
    # Ours names the task of each loss, and only those of the step's task; TextBrewer has the kd loss alone where a task
    # gives no losses of its own.
    for mine in ours:
        for name in [name for name in mine if "/" in name]:
            tag = name.split("/")[1]
            mine[tag] = mine.get(tag, 0.0) + mine.pop(name)
    for curve in (ours, theirs):
        for values_of_step in curve:
            values_of_step.setdefault("unweighted_hard_label_loss", 0.0)
    same(ours, theirs, students[1], students[0])

"""Every match of layers between real models on a device: the host's losses and gradients, no waits, float32 losses."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from machines import device_of, half_precision, on_host, on_machine, refuse_others, waits_by_site
from tiny_runs import Rows, model
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from raybrew.catalog.layer_rules import LAYER_RULES
from raybrew.catalog.losses import MATCH_LOSSES, names_of
from raybrew.catalog.projections import PROJECTIONS
from raybrew.config.loading import build_experiment
from raybrew.data.loader import collate
from raybrew.distillers.teachers import LiveTeacher
from raybrew.losses.term import LossTerm
from raybrew.models.loading import ModelSource
from raybrew.pipeline.objective import objective_of
from raybrew.pipeline.resolve import resolve
from raybrew.training.encoded import Trainee
from raybrew.training.optim import Precision

#: Sites that make the host wait, and why that is right.
LISTED = {"losses/own.py:__call__": "the count of a user's function is checked, in its first call"}
OWN = f"{__name__}:own_loss"
MODULES = {"student_module": "bert.encoder.layer.0.output", "teacher_module": "bert.encoder.layer.2.output"}


def own_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> LossTerm:
    """The difference of the means of any two signals, for each item that is counted."""
    error = (student.float().mean() - teacher.float().mean()).square()
    count = mask.sum().float()
    return LossTerm(error * count, count)


def cases() -> dict[str, dict[str, Any]]:
    """Name -> a match."""
    found: dict[str, dict[str, Any]] = {}
    for loss in names_of(MATCH_LOSSES):
        needs = MATCH_LOSSES[loss].needs
        if needs == "pooled":
            found[loss] = {"loss": loss}
            continue
        for rule in LAYER_RULES:
            found[f"{loss} {rule}"] = {"loss": loss, "layers": rule}
        found[f"{loss} pairs"] = {"loss": loss, "layers": [[1, 3], [2, 3], [2, 1]]}
    for loss in (name for name in names_of(MATCH_LOSSES) if MATCH_LOSSES[name].needs in ("hidden", "pooled")):
        where = {} if MATCH_LOSSES[loss].needs == "pooled" else {"layers": "final"}
        for projection in PROJECTIONS:
            found[f"{loss} through {projection}"] = {"loss": loss, **where, "projection": projection}
    relations = ["query", "key", "value", "attention"]
    found["relation_kl all"] = {"loss": "relation_kl", "layers": "last", "relations": relations, "relation_heads": 2}
    for feature in ("hidden", "query", "key", "value"):
        found[f"own {feature}"] = {"loss": OWN, "layers": "last", "feature": feature}
    for loss in ("hidden_mse", "cos", OWN):
        found[f"{loss.rpartition(':')[2]} of modules"] = {"loss": loss, **MODULES}
    return found


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, tuple[Any, ModelSource]]:
    """Teachers of four layers with two and with four heads, and folders with their configs."""
    found = {}
    for heads in (2, 4):
        torch.manual_seed(heads)
        config = BertConfig(**{**model(4, 12, seed=2).config.to_dict(), "num_attention_heads": heads})
        folder: Path = tmp_path_factory.mktemp("teacher")
        config.save_pretrained(folder)
        found[heads] = BertForSequenceClassification(config).eval(), ModelSource(str(folder))
    return found


def teacher_for(match: Mapping[str, Any], teachers: Mapping[int, Any]) -> Any:
    """One with other heads than the student's where the loss can do with that."""
    entry = MATCH_LOSSES.get(match["loss"])
    return teachers[2 if entry is None or entry.same_width or entry.needs == "qkv" else 4]


def stepped(
    device: torch.device, precision: str, match: Mapping[str, Any], teacher: tuple[Any, ModelSource], watched: Any
) -> tuple[Tensor, Tensor, dict[str, Tensor], Tensor]:
    """Sums, counts, gradients of one step on `device`, and the counts that are known beforehand."""
    network, source = teacher
    student = model(2, 8, seed=1)
    experiment = build_experiment(
        {
            "name": "match",
            "teacher": {"model": source.model, "source": "live"},
            "student": {"shape": {"layers": 2}},
            "distill": {"kd_weight": 0.0, "matches": [match]},
        },
        check_files=False,
    )
    objective = objective_of(resolve(experiment).tasks[0], student.config, {"": source})
    trainee = Trainee(student, objective).to(device)
    batch = collate(np.arange(8), Rows(), 0, None)
    known = torch.tensor(objective.denominators(objective.counts(batch.inputs)))
    live = LiveTeacher(
        copy.deepcopy(network).to(device), objective.teacher_request, Precision(precision, device).autocast
    )
    micro = batch.to(device)
    if watched is not None:
        watched.waits.clear()
    targets = live.signals(micro)
    with Precision(precision, device).autocast():
        sums, counts = trainee(micro.inputs, targets)
    (sums / counts).sum().backward()
    gradients = {name: each.grad for name, each in trainee.named_parameters() if each.grad is not None}
    return sums, counts, gradients, known


@pytest.mark.parametrize("name", cases())
def test_matches_of_models(machine: str, teachers: Any, name: str) -> None:
    match = cases()[name]
    teacher = teacher_for(match, teachers)
    sums, counts, gradients, known = stepped(torch.device("cpu"), "fp32", match, teacher, None)
    assert len(gradients) > 3
    assert sums.isfinite().all()
    assert (sums.detach() != 0).all()
    torch.testing.assert_close(counts.double(), known.double())
    with on_machine(machine) as watched:
        found = stepped(device_of(machine), "fp32", match, teacher, watched)
    torch.testing.assert_close(on_host(found[0]), sums.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(on_host(found[1]), counts)
    assert found[2].keys() == gradients.keys()
    for key, gradient in found[2].items():
        assert gradient.device == device_of(machine)
        torch.testing.assert_close(on_host(gradient), gradients[key], rtol=1e-3, atol=1e-5)
    refuse_others(waits_by_site(watched), LISTED)


#: Which layers are compared changes no type.
@pytest.mark.parametrize("name", [name for name in cases() if name.rpartition(" ")[2] not in LAYER_RULES])
def test_losses_of_models_are_float32(machine: str, teachers: Any, name: str) -> None:
    match = cases()[name]
    teacher = teacher_for(match, teachers)
    with on_machine(machine, watch_types=True) as watched:
        sums, counts, _, _ = stepped(device_of(machine), "bf16", match, teacher, watched)
    assert sums.dtype is counts.dtype is torch.float32
    assert not half_precision(watched.seen)
    sites = {each.site.partition("/")[0] for each in watched.seen}
    assert {"losses", "models"} <= sites
    products = [each.types for each in watched.seen if each.operation == "addmm" and each.site.startswith("models/")]
    assert {kind for types in products for kind in types} == {torch.bfloat16}

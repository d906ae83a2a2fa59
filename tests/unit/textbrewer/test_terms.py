"""The losses of a DistillationConfig over what adaptors return, and custom matches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from plain_models import (
    CLASSES,
    HIDDEN,
    batches,
    distiller,
    examples_adaptor,
    logits_adaptor,
    settings,
    sgd,
    spans_adaptor,
    student,
    tags_adaptor,
    teacher,
    weights_of,
)
from torch import Tensor, nn

import raybrew
from raybrew import (
    DistillationConfig,
    GeneralDistiller,
)
from raybrew.errors import ConfigError, LossError, ModelError


def test_two_masked_logits_of_three_dimensions(tmp_path: Path) -> None:
    """Start and end logits under one mask: the sum of both means over unmasked positions."""
    batch, by_hand, pupil = batches(1)[0], student(), student()
    real = batch["attention_mask"].bool()
    assert not bool(real.all())
    with torch.no_grad():
        wanted = [logits[real] for logits in spans_adaptor(batch, teacher()(**batch))["logits"]]
    given = [logits[real] for logits in spans_adaptor(batch, by_hand(**batch))["logits"]]
    losses = [
        -((t / 2).softmax(-1) * (s / 2).log_softmax(-1)).sum(-1).mean() for s, t in zip(given, wanted, strict=True)
    ]
    (losses[0] + losses[1]).backward()
    sgd(by_hand).step()
    distiller(tmp_path, pupil, spans_adaptor, temperature=2).train(sgd(pupil), [batch], num_epochs=1)
    torch.testing.assert_close(weights_of(pupil), weights_of(by_hand))


def test_every_option_of_kd_trains(tmp_path: Path) -> None:
    """All losses by name, with masks and per-token temperatures."""
    for kind in ("ce", "mse", "bce", "kl", "reverse_kl", ["js", {"beta": 0.3}], "skew_kl", "skew_reverse_kl", "tv"):
        pupil = student()
        one = distiller(tmp_path, pupil, tags_adaptor, kd_loss_type=kind, temperature_scheduler=["cwsm", 0.5])
        before = weights_of(pupil)
        one.train(sgd(pupil), batches(2), num_epochs=1)
        assert not torch.equal(weights_of(pupil), before), kind


def test_losses_of_ones_own_see_unmasked_items(tmp_path: Path) -> None:
    """As TextBrewer's: functions that know no mask are given what is left of the logits."""
    shapes: list[tuple[int, ...]] = []

    def own_loss(given: Tensor, wanted: Tensor, temperature: float) -> Tensor:
        shapes.append(tuple(given.shape))
        return (given - wanted).abs().mean() / temperature

    raybrew.register_new("kd_loss", "own_of_test", own_loss)
    try:
        pupil, data = student(), batches(3)
        distiller(tmp_path, pupil, tags_adaptor, kd_loss_type="own_of_test").train(sgd(pupil), data, num_epochs=1)
        assert shapes[-1] == (int(data[-1]["attention_mask"].sum()), CLASSES)
    finally:
        del raybrew.KD_LOSS_MAP["own_of_test"]


def test_custom_matches_between_any_modules(tmp_path: Path) -> None:
    """By module and by name, with a loss of one's own, a trained map, and no hook left behind."""
    pupil, wise = student(), teacher()
    proj = nn.Linear(8, 12)
    masks: list[Any] = []

    def distance(mine: Tensor, other: Tensor, mask_S: Tensor, mask_T: Tensor) -> Tensor:
        masks.append((mask_S.shape, mask_T.shape))
        return (mine - other).square().mean()

    matches = [
        {"module_T": wise.pooler, "module_S": pupil.pooler, "weight": 2.0, "loss": distance, "proj_func": proj},
        raybrew.CustomMatch("mixes.3", "mixes.1", 1.0, "mmd"),
    ]
    one = GeneralDistiller(
        settings(tmp_path),
        DistillationConfig(kd_loss_weight=0),
        wise,
        pupil,
        examples_adaptor,
        examples_adaptor,
        matches,
    )
    hooks: list[int] = []
    before, map_before = weights_of(pupil.pooler), proj.weight.detach().clone()
    optimizer = sgd(pupil)
    one.train(
        optimizer, batches(2), num_epochs=2, callback=lambda model, step: hooks.append(len(model.pooler._forward_hooks))
    )
    assert hooks == [0, 0]
    assert not wise.pooler._forward_hooks
    assert masks
    assert not torch.equal(weights_of(pupil.pooler), before)
    assert not torch.equal(proj.weight, map_before)
    assert len(optimizer.param_groups) == 2

    # One step by hand: twice the gradient of the distance.
    pupil, proj = student(), nn.Linear(8, 12)
    batch = batches(1)[0]
    with torch.no_grad():
        wanted = wise.pooler(wise(**batch)["hidden"][-1][:, 0])
    (2.0 * (proj(pupil.pooler(pupil(**batch)["hidden"][-1][:, 0])) - wanted).square().mean()).backward()
    gradient = proj.weight.grad
    match = {"module_T": wise.pooler, "module_S": pupil.pooler, "weight": 2.0, "loss": distance, "proj_func": proj}
    start = proj.weight.detach().clone()
    one = GeneralDistiller(
        settings(tmp_path),
        DistillationConfig(kd_loss_weight=0),
        wise,
        pupil,
        examples_adaptor,
        examples_adaptor,
        [match],
    )
    one.train(sgd(pupil, lr=1.0), [batch], num_epochs=1)
    torch.testing.assert_close(start - proj.weight, gradient)


def test_custom_matches_name_what_is_wrong(tmp_path: Path) -> None:
    pupil, wise = student(), teacher()

    def made(**changes: Any) -> GeneralDistiller:
        match = {"module_T": wise.pooler, "module_S": pupil.pooler, "weight": 1.0, "loss": "hidden_mse"} | changes
        adaptors = (logits_adaptor, logits_adaptor)
        return GeneralDistiller(settings(tmp_path), DistillationConfig(), wise, pupil, *adaptors, [match])

    with pytest.raises(ConfigError, match="module_S, a Linear, is no part of its model"):
        made(module_S=wise.pooler)
    with pytest.raises(ConfigError, match="module_T 'poolr'"):
        made(module_T="poolr")
    with pytest.raises(ConfigError, match=r"weigth: unknown key.*did you mean 'weight'"):
        made(weigth=1)
    with pytest.raises(ConfigError, match="given 'hidden_mes'"):
        made(loss="hidden_mes")
    with pytest.raises(LossError, match=r"custom.0: hidden_mse: student \(4, 8\) and teacher \(4, 12\)"):
        made().train(sgd(pupil), batches(1), num_epochs=1)
    pupil.unused = nn.Embedding(2, 2)
    with pytest.raises(ModelError, match="module_S, a Embedding, did not run"):
        made(module_S=pupil.unused).train(sgd(pupil), batches(1), num_epochs=1)


def test_a_loss_without_weight_may_be_nan(tmp_path: Path) -> None:
    def adaptor(batch: Any, outputs: Any) -> dict[str, Any]:
        return {"logits": outputs["logits"], "losses": outputs["loss"] * float("nan")}

    pupil = student()
    distiller(tmp_path, pupil, adaptor).train(sgd(pupil), batches(2), num_epochs=1)
    assert bool(weights_of(pupil).isfinite().all())


def test_layers_count_from_the_end_as_lists_do(tmp_path: Path) -> None:
    found = []
    for layer_T, layer_S in ((4, 2), (-1, -1)):
        pupil = student()
        one = distiller(tmp_path, pupil, intermediate_matches=[{**HIDDEN, "layer_T": layer_T, "layer_S": layer_S}])
        one.train(sgd(pupil), batches(2), num_epochs=1)
        found.append(weights_of(pupil))
    assert torch.equal(*found)


def test_temperature_squared_is_an_option(tmp_path: Path) -> None:
    """Off: the gradient falls with T^2. On: it stays of one order."""
    norms = []
    for temperature, scaled in ((1, False), (8, False), (8, True)):
        pupil = student()
        start = weights_of(pupil)
        one = distiller(tmp_path, pupil, logits_adaptor, temperature=temperature, scale_by_temperature_squared=scaled)
        one.train(sgd(pupil, lr=1.0), batches(1), num_epochs=1)
        norms.append(float((weights_of(pupil) - start).norm()))
    assert norms[2] == pytest.approx(64 * norms[1], rel=1e-3)
    assert norms[0] / norms[1] > 15
    assert 0.3 < norms[0] / norms[2] < 3

"""FLSW and CWSM against loops and against TextBrewer."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor

from raybrew.catalog.losses import TEMPERATURES
from raybrew.errors import LossError
from raybrew.losses import temperatures
from raybrew.losses.logits import ce

SHAPES = [(6, 3), (1, 4), (3, 5, 4)]


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2


def weight(name: str, s: list[float], t: list[float], gamma: float) -> float:
    if name == "cwsm":
        total = sum(math.exp(value) for value in s)
        return 1 / (max(math.exp(value) / total for value in s) + 1e-3)
    norm_s, norm_t = (math.sqrt(sum(value**2 for value in row)) + 1e-4 for row in (s, t))
    return (1 - sum(a * b for a, b in zip(s, t, strict=True)) / (norm_s * norm_t)) ** gamma


def options(name: str) -> dict[str, float]:
    return {"beta": 0.7, "gamma": 1.5} if name == "flsw" else {"beta": 0.7}


@pytest.mark.parametrize("name", ["flsw", "cwsm"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_against_loops(name: str, shape: tuple[int, ...], masked: bool) -> None:
    student, teacher = draw(shape, 1), draw(shape, 2)
    mask = torch.ones(shape[:-1])
    if masked and mask.numel() > 1:
        mask.view(-1)[1::3] = 0
    student[mask == 0], teacher[mask == 0] = math.nan, math.inf
    items = list(
        zip(student.flatten(0, -2).tolist(), teacher.flatten(0, -2).tolist(), mask.flatten().tolist(), strict=True)
    )
    weights = [weight(name, s, t, 1.5) if real else None for s, t, real in items]
    real = [value for value in weights if value is not None]
    mean = sum(real) / len(real)
    expected = [4.0 if value is None else 4.0 + (mean - value) * 0.7 for value in weights]
    found = TEMPERATURES[name].load()(student, teacher, 4.0, **options(name), mask=mask if masked else None)
    assert found.shape == shape[:-1]
    torch.testing.assert_close(found.flatten(), torch.tensor(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("beta", "gamma"), [(1, 1), (0.5, 2), (2, 0.5)])
def test_flsw_against_textbrewer(shape: tuple[int, ...], beta: float, gamma: float, textbrewer: ModuleType) -> None:
    student, teacher = draw(shape, 1), draw(shape, 2)
    theirs = textbrewer.TEMPERATURE_SCHEDULER[["flsw", beta, gamma]](student, teacher, 8)
    torch.testing.assert_close(temperatures.flsw(student, teacher, 8, beta, gamma), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("beta", [1, 0.25])
def test_cwsm_against_textbrewer(shape: tuple[int, ...], beta: float, textbrewer: ModuleType) -> None:
    student, teacher = draw(shape, 1), draw(shape, 2)
    theirs = textbrewer.TEMPERATURE_SCHEDULER[["cwsm", beta]](student, teacher, 8)
    torch.testing.assert_close(temperatures.cwsm(student, teacher, 8, beta), theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", TEMPERATURES)
def test_result_is_detached_float32_and_fits_the_losses(name: str) -> None:
    student, teacher = draw((4, 6, 3), 1).bfloat16().requires_grad_(), draw((4, 6, 3), 2).requires_grad_()
    mask = torch.ones(4, 6)
    mask[:, 4:] = 0
    found = TEMPERATURES[name].load()(student, teacher, 3.0, **(options(name) if name != "constant" else {}), mask=mask)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert torch.isfinite(ce(student, teacher, mask, temperature=found).sum)


@pytest.mark.parametrize("name", ["flsw", "cwsm"])
def test_stays_above_the_minimum(name: str) -> None:
    logits = torch.tensor([[9.0, 0.0, 0.0], [0.0, 0.01, 0.0], [0.0, -9.0, 3.0]])
    harsh = {"beta": 50.0, "gamma": 2.0} if name == "flsw" else {"beta": 50.0}
    found = TEMPERATURES[name].load()(logits, -logits.flip(0), 1.0, **harsh, minimum=0.25)
    assert float(found.min()) == 0.25


def test_equal_logits_of_fractional_power_are_no_nan() -> None:
    logits = draw((500, 3), 1) * 1e4
    assert torch.isfinite(temperatures.flsw(logits, logits, 4.0, 1.0, 0.5)).all()


@pytest.mark.parametrize("name", TEMPERATURES)
def test_base_must_be_positive(name: str) -> None:
    logits = draw((2, 3), 1)
    with pytest.raises(LossError, match=r"base temperature must be > 0, got 0"):
        TEMPERATURES[name].load()(logits, logits, 0, **(options(name) if name != "constant" else {}))

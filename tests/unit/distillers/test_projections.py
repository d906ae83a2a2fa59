"""Projections: shapes, initialisation, reproducibility, and what TextBrewer's compute with the same weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from raybrew.catalog.projections import PROJECTIONS
from raybrew.errors import LossError

ACTIVATIONS = {"linear": lambda values: values, "relu": F.relu, "tanh": torch.tanh}


@pytest.mark.parametrize("name", PROJECTIONS)
def test_affine_map_then_activation(name: str) -> None:
    projection = PROJECTIONS[name].load()(6, 4)
    weight, bias = projection.parameters()
    assert weight.shape == (4, 6)
    with torch.no_grad():
        bias.copy_(torch.randn(4))
    states = torch.randn(2, 3, 6)
    expected = ACTIVATIONS[name](states @ weight.T + bias)
    torch.testing.assert_close(projection(states), expected)
    assert all(parameter.requires_grad for parameter in projection.parameters())


@pytest.mark.parametrize("name", PROJECTIONS)
def test_starts_small_and_without_bias(name: str) -> None:
    weight, bias = PROJECTIONS[name].load()(312, 768, generator=torch.Generator().manual_seed(1)).parameters()
    assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert abs(float(weight.detach().mean())) < 1e-4
    assert not bias.any()


@pytest.mark.parametrize("name", PROJECTIONS)
def test_randomness_is_the_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    one, other = (PROJECTIONS[name].load()(5, 7, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", PROJECTIONS)
def test_against_textbrewer(name: str) -> None:
    reason = "needs textbrewer==0.2.1.post1, the peer that projections are compared with"
    presets = pytest.importorskip("textbrewer.presets", reason=reason, exc_type=ImportError)
    theirs = presets.PROJ_MAP[name](312, 768)
    ours = PROJECTIONS[name].load()(312, 768)
    weight, bias = theirs.parameters()
    assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.02)
    assert not bias.any()
    ours.load_state_dict(theirs.state_dict())
    states = torch.randn(2, 3, 312)
    assert torch.equal(ours(states), theirs(states))


@pytest.mark.parametrize("dims", [(0, 4), (4, 0)])
def test_empty_widths_are_refused(dims: tuple[int, int]) -> None:
    with pytest.raises(LossError, match=r"must be >= 1, got 0"):
        PROJECTIONS["tanh"].load()(*dims)

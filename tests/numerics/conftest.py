"""What the numeric comparisons share: the peer to compare with, and one way to compare value and gradient."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

Check = Callable[..., None]


@pytest.fixture(scope="session")
def textbrewer() -> ModuleType:
    """The original package, with its presets loaded."""
    reason = "needs textbrewer==0.2.1.post1, the peer that losses are compared with"
    pytest.importorskip("textbrewer", reason=reason, exc_type=ImportError)
    return pytest.importorskip("textbrewer.presets", reason=reason, exc_type=ImportError)


@pytest.fixture(scope="session")
def same_value_and_gradient() -> Check:
    """Asserts that two functions of the student's tensors have one value and one gradient.

    `mine` returns a LossTerm, `other` the mean loss as a scalar. `precision` is the type `other` computes in: float64
    for references written as loops.
    """

    def check(
        mine: Callable[..., object],
        other: Callable[..., Tensor],
        *students: Tensor,
        tolerance: float = 1e-6,
        precision: torch.dtype = torch.float32,
    ) -> None:
        ours = [student.clone().requires_grad_() for student in students]
        theirs = [student.to(precision).clone().requires_grad_() for student in students]
        term = mine(*ours)
        loss = term.sum / term.count  # type: ignore[attr-defined]
        expected = other(*theirs)
        loss.backward()
        expected.backward()
        torch.testing.assert_close(loss.detach(), expected.detach().float(), rtol=tolerance, atol=tolerance)
        for ours_one, theirs_one in zip(ours, theirs, strict=True):
            assert ours_one.grad is not None
            assert theirs_one.grad is not None
            torch.testing.assert_close(ours_one.grad, theirs_one.grad.float(), rtol=tolerance, atol=tolerance)

    return check

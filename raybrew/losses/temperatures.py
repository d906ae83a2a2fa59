"""Temperatures that follow the difficulty of an example: FLSW and CWSM of "Preparing Lessons" (arXiv:1911.07471).

Both lower the temperature of items that are harder than the mean: base + (mean(w) - w) * beta. Logits (batch,
classes) or (batch, length, classes); the result has one value per item, float32 and without gradient, for the
`temperature` of a KD loss. The mean is over the real items of the tensors given, so unlike the losses these depend on
how a step's batch is cut into micro-batches.

A large beta can push the formula through zero, where softmaxes turn upside down; values stop at `minimum`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raybrew.errors import LossError
from raybrew.losses.masking import check_same_shape, full_precision, real_items

__all__ = ["constant", "cwsm", "flsw"]

#: Keeps norms and probabilities off zero. Part of TextBrewer's definitions: both shift the result visibly.
_NORM_EPSILON = 1e-4
_PROBABILITY_EPSILON = 1e-3


@full_precision
def constant(student: Tensor, teacher: Tensor, base: float, mask: Tensor | None = None) -> Tensor:
    """`base` for every item, as a scalar tensor."""
    _check_base("constant", base)
    return torch.full((), base, dtype=torch.float32, device=student.device)


@full_precision
@torch.no_grad()
def flsw(
    student: Tensor,
    teacher: Tensor,
    base: float,
    beta: float,
    gamma: float,
    mask: Tensor | None = None,
    *,
    minimum: float = 0.1,
) -> Tensor:
    """Focal loss style: w = (1 - cos(student, teacher)) ** gamma, with 1e-4 added to each norm."""
    _check_base("flsw", base)
    check_same_shape("flsw", student, teacher, "teacher and student must have the same classes")
    real = real_items("flsw", mask, student, student.dim() - 1)
    units = []
    for logits in (student, teacher):
        logits = logits.float().masked_fill(~real.unsqueeze(-1), 0.0)
        units.append(logits / (logits.norm(dim=-1, keepdim=True) + _NORM_EPSILON))
    # Rounding can lift a cosine above 1, and a negative base of a fractional power is NaN.
    weights = (1.0 - (units[0] * units[1]).sum(dim=-1)).clamp_min(0.0).pow(gamma)
    return _shifted(weights, real, base, beta, minimum)


@full_precision
@torch.no_grad()
def cwsm(
    student: Tensor,
    teacher: Tensor,
    base: float,
    beta: float,
    mask: Tensor | None = None,
    *,
    minimum: float = 0.1,
) -> Tensor:
    """Confidence weighted by student max: w = 1 / (max softmax(student) + 1e-3). The teacher is not used."""
    _check_base("cwsm", base)
    real = real_items("cwsm", mask, student, student.dim() - 1)
    logits = student.float().masked_fill(~real.unsqueeze(-1), 0.0)
    weights = 1.0 / (logits.softmax(dim=-1).amax(dim=-1) + _PROBABILITY_EPSILON)
    return _shifted(weights, real, base, beta, minimum)


def _shifted(weights: Tensor, real: Tensor, base: float, beta: float, minimum: float) -> Tensor:
    weights = weights.masked_fill(~real, 0.0)
    mean = weights.sum() / real.sum().clamp_min(1)
    return (base + (mean - weights) * beta).clamp_min(minimum).masked_fill(~real, base)


def _check_base(name: str, base: float) -> None:
    if not base > 0.0:
        raise LossError(f"{name}: the base temperature must be > 0, got {base}")

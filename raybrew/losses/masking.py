"""Steps that every loss shares: float32 arithmetic, masks of real items, padding that cannot leak.

Padding may hold anything, inf and NaN included: it is replaced before the first non-linear operation, and the
replacement also blocks its gradient (zero, never NaN).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from raybrew.errors import LossError

__all__ = ["EXCLUDED", "Layers", "as_pair", "check_same_shape", "full_precision", "real_items", "squared_error"]

#: Score of what a softmax must not see. Finite, because 0 * inf is NaN and 0 * 1e30 is not.
EXCLUDED = -1e30

#: One layer, or two layers whose relation is compared.
Layers = Tensor | Sequence[Tensor]

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Runs a loss outside autocast, which would turn the float32 of its matrix products into half precision."""

    @functools.wraps(function)
    def outside_autocast(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0] if args else kwargs["student"]
        while isinstance(first, (list, tuple)):
            first = first[0]
        if not isinstance(first, Tensor):
            raise LossError(f"{function.__name__}: expected a tensor as first argument, got {type(first).__name__}")
        with torch.autocast(device_type=first.device.type, enabled=False):
            return function(*args, **kwargs)

    return outside_autocast


def real_items(name: str, mask: Tensor | None, states: Tensor, num_dims: int) -> Tensor:
    """Which items count: `mask` as bool over the first `num_dims` dimensions of `states`.

    Args:
        name: Of the loss, for errors.
        mask: (batch,) or (batch, length), not 0 for items that count; None: all count.
        states: What is masked, such as hidden states (batch, length, dim).
        num_dims: Dimensions of the mask.

    Raises:
        LossError: The mask has another shape.

    Example:
        >>> real_items("x", torch.tensor([[1, 1, 0]]), torch.zeros(1, 3, 8), 2)
        tensor([[ True,  True, False]])
    """
    shape = states.shape[:num_dims]
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=states.device)
    if mask.shape != shape:
        raise LossError(
            f"{name}: mask of shape {tuple(mask.shape)} does not fit values of shape {tuple(states.shape)}; "
            f"expected {tuple(shape)} with 1 for real items"
        )
    return mask.to(device=states.device) != 0


def check_same_shape(name: str, student: Tensor, teacher: Tensor, fix: str) -> None:
    """Raises LossError with both shapes and `fix` unless student and teacher have one shape."""
    if student.shape != teacher.shape:
        raise LossError(
            f"{name}: student {tuple(student.shape)} and teacher {tuple(teacher.shape)} differ in shape; {fix}"
        )


def as_pair(name: str, layers: Layers) -> tuple[Tensor, Tensor]:
    """Two layers as they are, one layer as the pair of itself with itself."""
    if isinstance(layers, Tensor):
        return layers, layers
    if len(layers) != 2:
        raise LossError(f"{name}: expected one layer or two, got {len(layers)}")
    return layers[0], layers[1]


def squared_error(student: Tensor, teacher: Tensor, padding: Tensor | None = None) -> Tensor:
    """Sum of squared differences where `padding` (bool, broadcast) is not set; gradient to the student alone.

    One kept tensor and one pass in the backward, half the time of the same steps under autograd: hidden states of many
    matched layers make this the largest part of an objective.
    """
    total: Tensor = _SquaredError.apply(student, teacher, padding)  # type: ignore[no-untyped-call]
    return total


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, padding: Tensor | None) -> Tensor:
        difference = student - teacher
        if padding is not None:
            difference.masked_fill_(padding, 0.0)
        ctx.save_for_backward(difference)
        return difference.square().sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (difference,) = ctx.saved_tensors
        return difference * (2.0 * gradient), None, None

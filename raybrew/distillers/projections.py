"""Trainable maps from the student's width to the teacher's, for matches between hidden states of different size.

All have a bias. Weights start normal with standard deviation 0.02, biases at zero (TextBrewer's initialisation). Both
the modules and their state names follow TextBrewer: `weight`, `bias` for `linear`, `0.weight`, `0.bias` for the others.
"""

from __future__ import annotations

import torch
from torch import nn

from raybrew.errors import LossError

__all__ = ["linear", "relu", "tanh"]

_INITIAL_DEVIATION = 0.02


def linear(student_dim: int, teacher_dim: int, *, generator: torch.Generator | None = None) -> nn.Module:
    """An affine map. Without `generator` the weights come from torch's global one, as TextBrewer draws them."""
    for name, dim in (("student_dim", student_dim), ("teacher_dim", teacher_dim)):
        if dim < 1:
            raise LossError(f"projection: {name} must be >= 1, got {dim}")
    if generator is None:
        layer = nn.Linear(student_dim, teacher_dim)
    else:  # on the meta device first: the default initialisation draws from the global generator
        layer = nn.Linear(student_dim, teacher_dim, device="meta").to_empty(device="cpu")
    with torch.no_grad():
        layer.weight.normal_(mean=0.0, std=_INITIAL_DEVIATION, generator=generator)
        layer.bias.zero_()
    return layer


def relu(student_dim: int, teacher_dim: int, *, generator: torch.Generator | None = None) -> nn.Module:
    """An affine map followed by a ReLU."""
    return nn.Sequential(linear(student_dim, teacher_dim, generator=generator), nn.ReLU())


def tanh(student_dim: int, teacher_dim: int, *, generator: torch.Generator | None = None) -> nn.Module:
    """An affine map followed by a tanh."""
    return nn.Sequential(linear(student_dim, teacher_dim, generator=generator), nn.Tanh())

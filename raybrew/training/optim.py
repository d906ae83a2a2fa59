"""AdamW with proper weight-decay groups, and learning rates as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from raybrew.config.train import TrainConfig

__all__ = ["build_optimizer", "learning_rate_factor", "trained_parameters"]


def trained_parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """All parameters of `modules` that get gradients."""
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]


def build_optimizer(modules: Iterable[nn.Module], config: TrainConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW over `modules`: weight decay for matrices, none for vectors (biases, normalisation weights)."""
    parameters = trained_parameters(modules)
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def learning_rate_factor(step: int, num_steps: int, warmup: float, schedule: str) -> float:
    """Factor on the peak learning rate in `step` (from 0): a linear rise, then the schedule down to zero."""
    warmup_steps = math.ceil(num_steps * warmup)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))

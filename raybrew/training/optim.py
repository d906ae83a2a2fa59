"""AdamW with proper weight-decay groups, and learning rates as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from raybrew.config.train import TrainConfig
from raybrew.errors import ModelError
from raybrew.training.parallel import whole

__all__ = ["build_optimizer", "clip_gradients", "layer_scales", "learning_rate_factor", "trained_parameters"]


def trained_parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """All parameters of `modules` that get gradients."""
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]


def build_optimizer(
    modules: Iterable[nn.Module], config: TrainConfig, student: nn.Module | None = None
) -> torch.optim.AdamW:
    """AdamW over `modules`: weight decay for matrices, none for vectors (biases, normalisation weights).

    With `config.layer_lr_decay` below 1 each group holds the parameters of one depth of `student`, and its `lr_scale`
    says which share of the learning rate they have. ModelError if the student's layers are not found.
    """
    scales = layer_scales(student, config.layer_lr_decay) if student is not None and config.layer_lr_decay < 1 else {}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in trained_parameters(modules):
        # A sharded parameter keeps its dimensions.
        groups.setdefault((scales.get(id(parameter), 1.0), parameter.dim() >= 2), []).append(parameter)
    ordered = sorted(groups.items(), key=lambda entry: (-entry[0][0], not entry[0][1]))
    return torch.optim.AdamW(
        [
            {"params": parameters, "weight_decay": config.weight_decay if decays else 0.0, "lr_scale": scale}
            for (scale, decays), parameters in ordered
        ],
        lr=config.learning_rate,
        fused=True,
    )


def layer_scales(student: nn.Module, decay: float) -> dict[int, float]:
    """id of a student's parameter -> share of the learning rate that it has: `decay` to the number of layers above it.

    Layers are the entries of the longest list of modules that is numbered in parameter names. What comes before them
    (embeddings) is one deeper than the first, what comes after (pooler, head) has the full rate (ULMFiT's
    discriminative fine-tuning, arXiv 1801.06146; the value per layer is ELECTRA's, arXiv 2003.10555).
    """
    lists = {name: len(module) for name, module in student.named_modules() if isinstance(module, nn.ModuleList)}
    if not lists:
        raise ModelError(
            f"train.layer_lr_decay: {type(student).__name__} has no list of layers; set it to 1 for one rate for all"
        )
    stack, depth = max(lists.items(), key=lambda entry: entry[1])
    scales, reached = {}, False
    for name, parameter in student.named_parameters():
        inside = name.startswith(f"{stack}.")
        reached = reached or inside
        above = depth - 1 - int(name[len(stack) + 1 :].split(".")[0]) if inside else 0 if reached else depth
        scales[id(parameter)] = decay**above
    return scales


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float | None) -> Tensor:
    """The norm of all gradients; those of a larger norm than `max_norm` are scaled down to it. Waits for no device.

    As torch's `clip_grad_norm_`, but gradients that need no scaling are not multiplied by 1 where it is known for free.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = whole(nn.utils.get_total_norm(gradients))
    if max_norm is not None and not (norm.device.type == "cpu" and norm <= max_norm):
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def learning_rate_factor(step: int, num_steps: int, warmup: float, schedule: str) -> float:
    """Factor on the peak learning rate in `step` (from 0): a linear rise, then the schedule down to zero."""
    warmup_steps = math.ceil(num_steps * warmup)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))

"""AdamW and its learning rates, mixed precision, and what the loss of each term is multiplied by."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raybrew.config.train import TrainConfig
from raybrew.errors import ModelError
from raybrew.training.parallel import whole

__all__ = [
    "Precision",
    "build_optimizer",
    "clip_gradients",
    "factors_of",
    "layer_scales",
    "learning_rate_factor",
    "sent",
    "trained_parameters",
]


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


_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """`fp32`, `bf16` or `fp16` on one device. Weights stay float32."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device = device
        # DDP averages gradients before they are unscaled, so an overflow on one rank is seen by all of them; what
        # `unscale_` finds in parts of divided gradients is exchanged by torch.
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    @property
    def scale(self) -> float | None:
        """What losses are multiplied by in float16; None in other types. Waits for the device."""
        return self.scaler.get_scale() if self.scaler.is_enabled() else None

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Context in which matrix products run in the reduced type."""
        if self.name == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=_TYPES[self.name])


def sent(values: Sequence[float], device: torch.device) -> Tensor:
    """`values` on `device`, float64."""
    return torch.tensor(values, dtype=torch.float64).to(device, non_blocking=True)


def factors_of(weights: Tensor, counts: Tensor, shares: Sequence[float] | None, world_size: int) -> Tensor:
    """What each term's sum is multiplied by, float32, beside `weights`. `counts` may be on the host.

    DDP and FSDP average over ranks; multiplying by their number makes it the sum that the one division expects.
    """
    per_item = torch.where(counts > 0, world_size / counts, 0.0)
    if shares is not None:
        per_item = per_item * sent(shares, counts.device)
    return weights.float() * per_item.to(weights.device, torch.float32, non_blocking=True)

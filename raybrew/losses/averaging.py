"""One teacher's logits out of several teachers'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from raybrew.errors import LossError
from raybrew.losses.masking import check_same_shape

__all__ = ["average_logits"]


@torch.no_grad()
def average_logits(
    logits: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    *,
    average: Literal["logits", "probabilities"] = "logits",
    temperature: float = 1.0,
) -> Tensor:
    """The weighted mean of `logits`, all of one shape (..., classes), in float32; weights are normalised to sum to 1.

    `average="probabilities"` averages the softmaxes at `temperature` instead, and returns the logits whose softmax at
    `temperature` is that mean: a mixture keeps what single teachers are sure of, a mean of logits smooths it away.
    """
    for other in logits[1:]:
        check_same_shape("average_logits", logits[0], other, "all teachers must have the same classes")
    shares = [1.0] * len(logits) if weights is None else list(weights)
    if len(shares) != len(logits) or min(shares) < 0.0 or not sum(shares) > 0.0:
        raise LossError(f"average_logits: {len(logits)} teachers need as many weights >= 0, not all 0; got {shares}")
    total = sum(shares)
    logits = [each.float() for each in logits]
    if average == "logits":
        if weights is None:
            return torch.stack(logits).mean(dim=0)
        return torch.stack([share / total * each for share, each in zip(shares, logits, strict=True)]).sum(dim=0)
    if average != "probabilities":
        raise LossError(f"average_logits: average must be 'logits' or 'probabilities', got {average!r}")
    parts = [
        (each / temperature).log_softmax(dim=-1) + torch.tensor(share / total).log()
        for share, each in zip(shares, logits, strict=True)
    ]
    return temperature * torch.stack(parts).logsumexp(dim=0)

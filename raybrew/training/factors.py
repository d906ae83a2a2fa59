"""What the loss of each term is multiplied by, on the device of training. The host never waits for that device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["factors_of", "sent"]


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

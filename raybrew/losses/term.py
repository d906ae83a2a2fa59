"""`LossTerm`: what every loss returns, a sum over real items and how many there were.

Sums and counts are added over micro-batches and ranks before one division, so that the gradient of a step does not
depend on how its batch is cut (the micro-batch mean of masked losses does; see NVIDIA-NeMo/RL
docs/design-docs/loss-functions.md).
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from torch import Tensor

__all__ = ["LossTerm", "Per", "count_items"]


class LossTerm(NamedTuple):
    """What a loss returns: `sum / count` is its value.

    Attributes:
        sum: Float32 scalar with gradient, over the items that count.
        count: Float32 scalar without gradient: how many these are.
    """

    sum: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count, which nobody calls on a loss


class Per(enum.Enum):
    """What one item of a loss is. The count of each follows from the mask alone, before any forward pass."""

    ROW = "row"  #: one per unmasked example
    TOKEN = "token"  #: one per unmasked token
    PAIR = "pair"  #: one per ordered pair of unmasked tokens of one example: length ** 2


def count_items(per: Per, mask: Tensor) -> Tensor:
    """Number of items in `mask`, 0/1 of shape (batch,) for rows or (batch, length) for tokens, as a float32 scalar.

    A row of a (batch, length) mask counts as an example if any of its tokens does.

    Example:
        >>> mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
        >>> [float(count_items(per, mask)) for per in (Per.ROW, Per.TOKEN, Per.PAIR)]
        [1.0, 2.0, 4.0]
    """
    mask = mask.float()
    if per is Per.ROW:
        return mask.sum() if mask.dim() == 1 else mask.amax(dim=1).sum()
    if mask.dim() == 1:
        return mask.sum()
    if per is Per.TOKEN:
        return mask.sum()
    return mask.sum(dim=1).square().sum()

"""Losses as pure functions: tensors in, `LossTerm(sum, count)` out; and what one of your own is made of.

An experiment file names a loss of your own as `package.module:function`: `distill.kd_loss: {kind: mine:focal}` one on
logits, `distill.matches: [{loss: mine:relative, feature: hidden}]` one between layers.

Example:
    >>> from raybrew.losses import KDInputs, LossTerm, Per, count_items, kd_loss, log_probs, real_items
    >>> @kd_loss()
    ... def focal(inputs: KDInputs) -> torch.Tensor:
    ...     log_student, log_teacher = log_probs(inputs)
    ...     hard = (1 - log_student.exp()).square()
    ...     return -(log_teacher.exp() * hard * log_student).sum(dim=-1)
    >>> term = focal(torch.zeros(2, 4), torch.zeros(2, 4), temperature=2.0)
    >>> round(float(term.sum / term.count), 3)
    0.78

    >>> def relative(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> LossTerm:
    ...     real = real_items("relative", mask, student, 2)
    ...     error = (student.float() - teacher.float()).square().sum(-1) / teacher.float().square().sum(-1)
    ...     return LossTerm(error.masked_fill(~real, 0.0).sum(), count_items(Per.TOKEN, real))
    >>> relative(torch.zeros(1, 3, 2), torch.ones(1, 3, 2), torch.tensor([[1, 1, 0]]))
    LossTerm(sum=tensor(2.), count=tensor(2.))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raybrew.losses.kd import KDInputs, KDLoss, kd_loss, log_probs, mean_over_classes
    from raybrew.losses.masking import EXCLUDED, check_same_shape, full_precision, real_items, squared_error
    from raybrew.losses.own import MatchLoss
    from raybrew.losses.term import LossTerm, Per, count_items

#: Name -> its module, loaded on first use: what only lists losses needs no torch.
_WHERE = {
    **dict.fromkeys(("KDInputs", "KDLoss", "kd_loss", "log_probs", "mean_over_classes"), "kd"),
    **dict.fromkeys(("EXCLUDED", "check_same_shape", "full_precision", "real_items", "squared_error"), "masking"),
    "MatchLoss": "own",
    **dict.fromkeys(("LossTerm", "Per", "count_items"), "term"),
}

__all__ = [
    "EXCLUDED",
    "KDInputs",
    "KDLoss",
    "LossTerm",
    "MatchLoss",
    "Per",
    "check_same_shape",
    "count_items",
    "full_precision",
    "kd_loss",
    "log_probs",
    "mean_over_classes",
    "real_items",
    "squared_error",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)

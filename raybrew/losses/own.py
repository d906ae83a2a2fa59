"""Losses that are functions of the user's, `package.module:function` in an experiment file.

They take what the losses of the tables take and return a LossTerm: between layers `f(student, teacher, mask)`, between
logits `f(student, teacher, mask, *, temperature, scale_by_temperature_squared)`, and `class_mask` where items have
classes of their own (question answering).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from raybrew.errors import ConfigError, LossError
from raybrew.losses.term import LossTerm, Per, count_items

__all__ = ["MatchLoss", "OwnLoss", "check_signature"]


class MatchLoss(Protocol):
    """How a loss between layers is called; `KDLoss` is the same for logits.

    `student` and `teacher` are what `feature` of the match says, after a projection to one width: hidden states (batch,
    length, dim), attention scores (batch, heads, length, length), queries, keys and values (batch, heads, length, dim),
    or pooled vectors (batch, dim). `mask` is (batch, length), 1 for real tokens; of pooled vectors (batch,).
    """

    def __call__(self, student: Tensor, teacher: Tensor, mask: Tensor) -> LossTerm: ...


class OwnLoss:
    """A function of the user's as a loss: what it returns is checked, its count once against `per`, a value of Per.

    A step is divided by counts that follow from masks, so a function that counts something else would weigh wrongly.
    """

    def __init__(self, name: str, function: Callable[..., Any], per: str) -> None:
        self.name = name
        self.function = function
        self.per = per
        self._is_checked = False

    def __call__(self, student: Any, teacher: Any, mask: Tensor, **options: Any) -> LossTerm:
        term: Any = self.function(student, teacher, mask, **options)
        if not isinstance(term, LossTerm) or term.sum.dim() != 0 or term.count.dim() != 0:
            raise LossError(
                f"{self.name}: {self.function.__module__}:{self.function.__name__} must return LossTerm(sum, count) of "
                f"two scalar tensors, it returned {type(term).__name__}"
            )
        if not self._is_checked:
            counted, wanted = float(term.count), float(count_items(Per(self.per), mask))
            if counted != wanted:
                raise LossError(
                    f"{self.name}: the function counted {counted:g} items, but the mask has {wanted:g} ({self.per}s); "
                    "sum and count are over unmasked items; `per` of a match says which"
                )
            self._is_checked = True
        return term


def check_signature(
    function: Callable[..., Any], target: str, key: str, arguments: Sequence[str], options: Sequence[str] = ()
) -> None:
    """ConfigError, which names `key`, if `function` cannot be called as f(*arguments, **options)."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have none
        return
    try:
        signature.bind(*arguments, **dict.fromkeys(options))
    except TypeError as error:
        wanted = ", ".join([*arguments, *(["*"] if options else []), *options])
        raise ConfigError.of(key, f"given {target!r}, whose signature is {signature}; wanted: ({wanted})") from error

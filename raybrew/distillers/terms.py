"""The two kinds of terms that compare student and teacher: logits, and layers. Every objective is made of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from raybrew.catalog.losses import TEMPERATURES
from raybrew.errors import LossError
from raybrew.losses.logits import probability_shift
from raybrew.losses.masking import Layers
from raybrew.losses.term import LossTerm

__all__ = ["KDTerm", "MatchTerm", "TemperatureRule", "temperature_rule"]

#: f(student, teacher, base, mask) -> a temperature, or one per item.
TemperatureRule = Callable[[Tensor, Tensor, float, Tensor | None], float | Tensor]


def temperature_rule(name: str, **options: float) -> TemperatureRule:
    """The rule of this name in TEMPERATURES, with its options."""
    function = TEMPERATURES[name].load()

    def rule(student: Tensor, teacher: Tensor, base: float, mask: Tensor | None) -> float | Tensor:
        temperature: float | Tensor = function(student, teacher, base, **options, mask=mask)
        return temperature

    return rule


class KDTerm:
    """A loss between student and teacher logits at a temperature, with TextBrewer's probability shift."""

    def __init__(
        self,
        name: str,
        loss: Callable[..., LossTerm],
        temperature: float,
        options: Mapping[str, Any],
        rule: TemperatureRule | None = None,
        shift: bool = False,
    ) -> None:
        self.name = name
        self.loss = loss
        self.temperature = temperature
        self.options = options
        self.rule = rule
        self.shift = shift

    def __call__(
        self,
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None,
        labels: Tensor | None = None,
        class_mask: Tensor | None = None,
    ) -> LossTerm:
        """Logits (batch, classes) or (batch, length, classes); `labels` only serve the probability shift.

        `class_mask` takes classes out, where an item may not have all.
        """
        if student.shape != teacher.shape:
            raise LossError(
                f"{self.name}: student logits {tuple(student.shape)} and teacher logits {tuple(teacher.shape)} differ; "
                "both models need the same classes"
            )
        if self.shift:
            if labels is None:
                raise LossError(f"{self.name}: probability_shift needs labels, and there are none")
            teacher = probability_shift(teacher, labels, class_mask=class_mask)
        temperature: float | Tensor = self.temperature
        if self.rule is not None:
            temperature = self.rule(student, teacher, self.temperature, mask)
        options = self.options if class_mask is None else {**self.options, "class_mask": class_mask}
        return self.loss(student, teacher, mask, temperature=temperature, **options)


class MatchTerm:
    """A loss between layers of the student, projected where a projection is given, and layers of the teacher."""

    def __init__(self, name: str, loss: Callable[..., LossTerm], projection: Callable[[Tensor], Tensor] | None) -> None:
        self.name = name
        self.loss = loss
        self.projection = projection

    def __call__(self, student: Layers, teacher: Layers, mask: Tensor | None, *more: Any) -> LossTerm:
        """One layer of each, or two of each for losses that relate two layers; `more` is what the loss takes beside."""
        if self.projection is not None:
            student = (
                self.projection(student)
                if isinstance(student, Tensor)
                else [self.projection(layer) for layer in student]
            )
        try:
            return self.loss(student, teacher, mask, *more)
        except LossError as error:
            raise LossError(f"{self.name}: {error}") from error

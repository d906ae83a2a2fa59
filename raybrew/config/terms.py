"""Sections within `distill`: the loss between logits, its temperatures, and what needs no pairs of layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from pydantic import Field

from raybrew.catalog.losses import KD_LOSSES, TEMPERATURES, names_of
from raybrew.config.base import MAX_TEMPERATURE, MAX_WEIGHT, MIN_TEMPERATURE, Section
from raybrew.config.matches import ProjectionName
from raybrew.config.outside import FunctionName

__all__ = ["EMDConfig", "KDLossConfig", "TemperatureScheduleConfig", "TheseusConfig"]

#: Names of the catalogue, as types: what a value is checked against, and what its error lists.
if TYPE_CHECKING:
    KDLossName: TypeAlias = str
    TemperatureName: TypeAlias = str
else:
    KDLossName = Literal[("auto", *names_of(KD_LOSSES))]
    TemperatureName = Literal[tuple(name for name in names_of(TEMPERATURES) if TEMPERATURES[name].options)]


class KDLossConfig(Section):
    """The loss between student and teacher logits, and its options. Its kind may stand for the section.

    Example:
        >>> raybrew.KDLoss("kl")
        KDLoss(kind='kl')
    """

    short: ClassVar[str] = "kind"
    kind: KDLossName | FunctionName = "auto"
    """Which loss; `raybrew list losses` explains each. `auto`: ce, but bce for multilabel and mse for regression."""
    beta: float = Field(default=0.5, gt=0, lt=1)
    """Weight of the teacher in the mixture of `js`."""
    alpha: float = Field(default=0.1, gt=0, lt=1)
    """Skew of `skew_kl` and `skew_reverse_kl`: how much of the first distribution is mixed into the second."""


class TemperatureScheduleConfig(Section):
    """A temperature for each example, lower for those that are harder than the mean (arXiv 1911.07471)."""

    kind: TemperatureName
    """`flsw`: hard is where student and teacher logits point apart; `cwsm`: where the student is unsure."""
    beta: float = Field(default=1.0, gt=0, le=1000)
    """How far temperatures move from `distill.temperature`."""
    gamma: float | None = Field(default=None, gt=0, le=1000)
    """Exponent of the distance in `flsw`; not set: 1."""


class EMDConfig(Section):
    """All layers of the student against all of the teacher, by the earth mover's distance (BERT-EMD, arXiv 2010.06133).

    Layers that are cheap to match gain weight as training goes on, so that no layers need be paired.
    """

    hidden: float = Field(default=1.0, ge=0, le=MAX_WEIGHT)
    """Weight for hidden states, and for the embeddings, which are matched apart."""
    attention: float = Field(default=0.0, ge=0, le=MAX_WEIGHT)
    """Weight for attention scores; both models need as many heads."""
    projection: ProjectionName = "auto"
    """Trained map of each layer to the teacher's width; `auto`: linear where widths differ."""
    update_weights: bool = True
    """Move the weights of layers after each forward pass; they stay equal otherwise (as in TextBrewer's example)."""
    temperature: float | None = Field(default=None, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)
    """New weights go through a softmax at this temperature; not set: proportional to inverse costs."""


class TheseusConfig(Section):
    """Layers of the student take the places of the teacher's by chance, more and more of them (arXiv 2002.02925).

    Each stands for as many teacher layers as there are for each. The teacher is frozen, without dropout; the student
    has its width, embeddings and head. Evaluated is the student alone.
    """

    start: float = Field(default=0.3, ge=0, le=1)
    """Probability of each layer to be replaced in the first step; it rises in a straight line. One always is."""
    full_at: float = Field(default=1.0, gt=0, le=1)
    """Share of the stage's steps after which all layers are replaced."""

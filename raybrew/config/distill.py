"""`distill`: what the student imitates, and how much each part weighs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raybrew.config.base import Many, Section

__all__ = ["LAYER_MAPS", "DistillConfig", "KDLossConfig", "MatchConfig"]

#: Rules that pair student layers with teacher layers; a list of [student, teacher] pairs does as well (0 = embeddings).
LAYER_MAPS = {
    "even": "embeddings, and student layer i with teacher layer i * teacher depth / student depth (TinyBERT)",
    "last": "the student's layers with the teacher's last ones, in order (PKD-last)",
    "skip": "student layer i with teacher layer i * (teacher depth // student depth), the last left out (PKD-skip)",
    "final": "only the last layer of each",
}


class KDLossConfig(Section):
    """The loss between student and teacher logits, and its options."""

    kind: Literal["ce", "mse", "kl", "reverse_kl", "js", "skew_kl", "skew_reverse_kl", "tv"] = "ce"
    """Which loss; `raybrew list losses` explains each."""
    beta: float = Field(default=0.5, gt=0, lt=1)
    """Weight of the teacher in the mixture of `js`."""
    alpha: float = Field(default=0.1, gt=0, lt=1)
    """Skew of `skew_kl` and `skew_reverse_kl`: how much of the first distribution is mixed into the second."""


class MatchConfig(Section):
    """One loss between intermediate layers, over all pairs of layers that `layers` names."""

    loss: Literal["hidden_mse", "cos", "pkd", "gram", "mmd"]
    """Which loss; `raybrew list losses` explains each."""
    layers: Literal["even", "last", "skip", "final"] | Many[Many[int]] = "even"
    """A rule (`raybrew list matches`) or [student layer, teacher layer] pairs, 0 being the embeddings."""
    weight: float = Field(default=1.0, ge=0)
    """Weight of each pair."""
    projection: Literal["auto", "none", "linear", "relu", "tanh"] = "auto"
    """Trained map from the student's width to the teacher's; `auto`: linear where the loss needs equal widths."""


class DistillConfig(Section):
    """Total = kd_weight * KD + hard_label_weight * label loss + sum over pairs of weight * match."""

    temperature: float = Field(default=4.0, gt=0)
    """Temperature of both softmaxes in the KD loss."""
    kd_loss: KDLossConfig = KDLossConfig()
    """Loss between logits."""
    kd_weight: float = Field(default=1.0, ge=0)
    """Weight of the KD loss."""
    hard_label_weight: float = Field(default=0.0, ge=0)
    """Weight of the loss against labels; rows without a label do not count."""
    scale_by_temperature_squared: bool = True
    """Multiply the KD loss by T^2, so that its gradient does not shrink as T grows (arXiv 1503.02531, section 2)."""
    matches: Many[MatchConfig] = ()
    """Losses between intermediate layers."""

"""`tracking`: mirrors of metrics.jsonl. The file itself is always written."""

from __future__ import annotations

from typing import Literal

from raybrew.config.base import Many, Section

__all__ = ["TrackingConfig", "WandbConfig"]


class WandbConfig(Section):
    """Weights & Biases; keys come from the environment or netrc, never from here."""

    mode: Literal["auto", "online", "offline"] = "auto"
    """`auto`: online when a key is found, otherwise offline with a line that says how to sync."""
    project: str = "raybrew"
    """W&B project."""
    entity: str | None = None
    """W&B team or user."""
    group: str | None = None
    """W&B group. Default: the experiment's name."""
    tags: Many[str] = ()
    """W&B tags."""


class TrackingConfig(Section):
    """Where metrics are mirrored to; a tracker that fails never stops training.

    Example:
        >>> raybrew.Tracking()
        Tracking()
    """

    tensorboard: bool = False
    """Write TensorBoard event files into the run folder."""
    wandb: WandbConfig | None = None
    """Mirror to Weights & Biases; `{}` is enough."""

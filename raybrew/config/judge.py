"""What chooses among checkpoints: a metric of the task, or the evaluation loss where nothing trains the head."""

from __future__ import annotations

import math

__all__ = ["LOSS", "quality", "value_of_quality"]

#: Stands for the evaluation loss where a metric is named. No task has a metric of this name.
LOSS = "loss"


def quality(judge: str, value: float) -> float:
    """`value` of a metric or of LOSS as a number of which more is better; a value that is not a number is the worst."""
    if math.isnan(value):
        return -math.inf
    return -value if judge == LOSS else value


def value_of_quality(judge: str, quality: float) -> float:
    """The value that `quality` was made of, as people read it."""
    return -quality if judge == LOSS else quality

"""Weight schedules: pure functions from the progress of training, in [0, 1], to a factor on the configured weight.

The factor multiplies the weight (5 with `linear_decay` starts at 5), it never replaces it.

Progress counts optimizer steps, not micro-batches: a step that follows k finished ones of N in all has progress k / N,
so the first step has 0, the last (N - 1) / N, and 1 is only reached after training. TextBrewer evaluates its schedulers
at the same points from the second step on; in the first it uses the configured weight as it stands.
"""

from __future__ import annotations

import math

from raybrew.errors import LossError

__all__ = [
    "constant",
    "cosine_decay",
    "cosine_growth",
    "linear_decay",
    "linear_growth",
    "progress_of",
]


def progress_of(finished_steps: int, total_steps: int) -> float:
    """Progress of the step that follows `finished_steps` optimizer steps, cut off at 1."""
    if total_steps < 1 or finished_steps < 0:
        raise LossError(
            f"a schedule needs total_steps >= 1 and finished_steps >= 0, got {total_steps} and {finished_steps}"
        )
    return min(1.0, finished_steps / total_steps)


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def linear_decay(progress: float) -> float:
    """From 1 to 0 in a straight line."""
    return 1.0 - progress


def linear_growth(progress: float) -> float:
    """From 0 to 1 in a straight line."""
    return progress


def cosine_decay(progress: float) -> float:
    """From 1 to 0 along half a cosine: flat at both ends."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def cosine_growth(progress: float) -> float:
    """From 0 to 1 along half a cosine: flat at both ends."""
    return 0.5 * (1.0 - math.cos(math.pi * progress))

"""When which layers of a student stand in its teacher: by chance, more and more of them (BERT-of-Theseus)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raybrew.config.distill import TheseusConfig
from raybrew.data.draws import uniform
from raybrew.models.theseus import Hybrid
from raybrew.training.stages import Stages

__all__ = ["Theseus", "probability", "replaced_at"]


def probability(config: TheseusConfig, place: int, num_steps: int) -> float:
    """Of a layer to be replaced in step `place` of `num_steps`: a straight line from `start` up to 1."""
    whole = max(1.0, config.full_at * num_steps - 1)
    return min(1.0, config.start + (1 - config.start) * place / whole)


def replaced_at(chance: float, num_modules: int, seed: int, step: int) -> tuple[bool, ...]:
    """Which layers are replaced in `step`, each with probability `chance`; the same on every worker.

    Without any there would be nothing to train, so the one that was closest is replaced then.
    """
    drawn = uniform([seed, step, 0x7E5E05], num_modules)
    replaced = drawn < chance
    replaced[np.argmin(drawn)] = True
    return tuple(bool(each) for each in replaced)


class Theseus:
    """The hybrid of a training, and how it is used in each of its stages; None where the student is alone."""

    def __init__(self, hybrid: Hybrid, configs: Sequence[TheseusConfig | None], seed: int) -> None:
        self.hybrid = hybrid
        self.configs = tuple(configs)
        self.seed = seed

    def runs_in(self, stage: int) -> bool:
        """Whether the student trains inside its teacher in this stage."""
        return self.configs[stage] is not None

    def start_step(self, step: int, stages: Stages) -> None:
        """Choose the layers of `step`."""
        config = self.configs[stages.at(step)]
        if config is None:
            return
        first, num_steps = stages.span(step)
        chance = probability(config, step - first, num_steps)
        self.hybrid.choose(replaced_at(chance, self.hybrid.num_modules, self.seed, step))

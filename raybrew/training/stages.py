"""How the steps of a run divide into stages, and which layers of a student stand in its teacher in each (Theseus)."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from raybrew.config.distill import DistillConfig
from raybrew.config.stages import stage_ends, stage_names
from raybrew.config.terms import TheseusConfig
from raybrew.data.draws import uniform
from raybrew.models.composite import Hybrid

__all__ = ["Stages", "Theseus", "probability", "replaced_at"]


@dataclasses.dataclass(frozen=True)
class Stages:
    """Steps count from 0. A run without stages is one stage without a name."""

    ends: tuple[int, ...]  #: finished steps at the end of each stage
    names: tuple[str, ...] = ()
    learning_rates: tuple[float | None, ...] = (None,)  #: of each stage, None for that of the run

    @classmethod
    def of(cls, distill: DistillConfig, num_steps: int) -> Stages:
        """Those of `distill.stages` in a run of so many steps; ConfigError if they do not fit."""
        if not distill.stages:
            return cls((num_steps,))
        rates = tuple(stage.learning_rate for stage in distill.stages)
        return cls(stage_ends(distill.stages, num_steps), tuple(stage_names(distill)), rates)

    def at(self, step: int) -> int:
        """The stage of `step`, from 0."""
        return min(bisect.bisect_right(self.ends, step), len(self.ends) - 1)

    def span(self, step: int) -> tuple[int, int]:
        """First step of the stage of `step`, and the number of its steps."""
        stage = self.at(step)
        first = self.ends[stage - 1] if stage else 0
        return first, self.ends[stage] - first

    def begins_at(self, step: int) -> bool:
        """Whether a stage begins with `step`, after another one."""
        return step in self.ends[:-1]

    def is_last(self, step: int) -> bool:
        """Whether `step` is of the last stage."""
        return self.at(step) == len(self.ends) - 1

    def name_of(self, step: int) -> dict[str, Any]:
        """What records of `step` say of its stage; nothing without stages."""
        return {"stage": self.names[self.at(step)]} if self.names else {}


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

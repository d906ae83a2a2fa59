"""How the steps of a run divide into stages, each with losses and a learning rate of its own."""

from __future__ import annotations

import bisect
import dataclasses
from typing import Any

from raybrew.config.distill import DistillConfig
from raybrew.config.stages import stage_ends, stage_names

__all__ = ["Stages"]


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

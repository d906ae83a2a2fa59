"""Which trials of a sweep are cut short or replaced: `sweep.scheduler.kind`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["SCHEDULERS", "Scheduler"]


@dataclasses.dataclass(frozen=True)
class Scheduler:
    """One scheduler. One of your own is such a row, named as `package.module:Name`.

    Ray Tune's schedulers are given reports with `percent`, the share of a trial's steps times 100, and `quality`, which
    is better the larger it is.
    """

    summary: str
    target: str = ""
    """module:function, f(SchedulerConfig) -> a scheduler of Ray Tune. Empty: nothing stops a trial, or the sweep itself
    decides its rounds."""
    options: tuple[str, ...] = ()  #: keys of `sweep.scheduler` that it reads
    rounds: bool = False  #: trials are members of a population, which go on from one another's students

    @property
    def ranks(self) -> bool:
        """Whether it compares trials while they run, for which there is one objective only."""
        return self.rounds or bool(self.target)


#: Name -> scheduler.
SCHEDULERS: Mapping[str, Scheduler] = MappingProxyType(
    {
        "none": Scheduler("every trial runs to its end"),
        "asha": Scheduler(
            "at rungs of `grace` x `reduction_factor`^k of a trial's steps, only the best 1 / `reduction_factor` go on",
            "raybrew.sweeps.schedulers:asha",
            ("grace", "reduction_factor"),
        ),
        "median": Scheduler(
            "a trial stops when its best is below the median of the others' averages up to the same share of steps",
            "raybrew.sweeps.schedulers:median",
            ("grace", "min_trials"),
        ),
        "pbt": Scheduler(
            "population based training: at every `interval` the worst members go on from the best ones' students, with "
            "other temperatures, loss weights or learning rates",
            options=("interval", "quantile", "resample", "mutations"),
            rounds=True,
        ),
    }
)

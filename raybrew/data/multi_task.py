"""Steps of several tasks: which task each step is of, and its batch, as pure functions of the seed.

Neither depends on the number of workers, on timing, or on where a run was resumed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from raybrew.data.loader import MicroBatch, StepBatch, StepLoader, prefetched
from raybrew.data.sampler import num_batches

__all__ = ["MultiTaskLoader", "TaskSchedule", "TaskStep"]


class TaskSchedule:
    """The task of each step, drawn with probability proportional to the task's rows ** tau.

    An epoch has as many steps as all tasks have batches together. With tau 1 each task's rows are then seen once in
    it on average; smaller ones bring small tasks up. The draws of an epoch depend on (seed, epoch) alone.
    """

    def __init__(self, rows: Mapping[str, int], batch_size: int, tau: float, seed: int) -> None:
        self.tasks = list(rows)
        weights = np.array(list(rows.values()), dtype=np.float64) ** tau
        self.shares = weights / weights.sum()
        self.seed = seed
        self.steps_per_epoch = sum(num_batches(count, batch_size) for count in rows.values())

    def epoch(self, epoch: int) -> list[str]:
        """The task of each step of `epoch`."""
        # The third number keeps these draws apart from those of the tasks' own batches.
        random = np.random.Generator(np.random.PCG64([self.seed, epoch, len(self.tasks)]))
        places = np.searchsorted(np.cumsum(self.shares), random.random(self.steps_per_epoch), side="right")
        return [self.tasks[min(int(place), len(self.tasks) - 1)] for place in places]

    def steps(self, start: int, end: int) -> Iterator[tuple[int, str]]:
        """(step, task) from step `start` up to `end`, counted over all epochs."""
        step = start
        while step < end:
            epoch, offset = divmod(step, self.steps_per_epoch)
            for task in self.epoch(epoch)[offset:]:
                if step >= end:
                    return
                yield step, task
                step += 1

    def before(self, step: int) -> dict[str, int]:
        """How many steps of each task there are before `step`."""
        counts = dict.fromkeys(self.tasks, 0)
        for _, task in self.steps(0, step):
            counts[task] += 1
        return counts


@dataclasses.dataclass
class TaskStep:
    """One worker's part of one optimizer step, all of it of one task."""

    step: int
    task: str
    batch: StepBatch

    @property
    def micro_batches(self) -> list[MicroBatch]:
        return self.batch.micro_batches

    @property
    def amounts(self) -> tuple[int, int, int]:
        """Rows, tokens and tokens with padding of this worker's part."""
        return self.batch.amounts


class MultiTaskLoader:
    """The steps of one worker from `start_step` on. Each task's own loader begins where its earlier steps ended."""

    def __init__(
        self, loaders: Mapping[str, StepLoader], schedule: TaskSchedule, num_steps: int, start_step: int = 0
    ) -> None:
        self.loaders = loaders
        self.schedule = schedule
        self.num_steps = num_steps
        self.start_step = start_step
        self.steps_per_epoch = schedule.steps_per_epoch
        self.depth = 4

    def __iter__(self) -> Iterator[TaskStep]:
        return prefetched(self.steps(), self.depth)

    def steps(self) -> Iterator[TaskStep]:
        """The same steps without a thread."""
        batches = {task: loader.steps() for task, loader in self.loaders.items()}
        for step, task in self.schedule.steps(self.start_step, self.num_steps):
            yield TaskStep(step, task, next(batches[task]))

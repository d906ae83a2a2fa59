"""Steps of several tasks: which task each step is of, and its batch, as pure functions of the seed.

Neither depends on the number of workers, on timing, or on where a run was resumed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from raybrew.data.draws import uniform
from raybrew.data.loader import MicroBatch, StepBatch, StepLoader, prefetched
from raybrew.data.sampler import Order

__all__ = ["MultiTaskLoader", "TaskSchedule", "TaskStep"]


class TaskSchedule:
    """The task of each step, drawn with probability proportional to the task's rows ** tau.

    An epoch has as many steps as all tasks have batches together in their first one. With tau 1 each task's rows are
    then seen once in it on average; smaller ones bring small tasks up. Draws depend on (seed, epoch) alone.
    """

    def __init__(self, orders: Mapping[str, Order], tau: float, seed: int) -> None:
        self.tasks = list(orders)
        weights = np.array([len(order.lengths) for order in orders.values()], dtype=np.float64) ** tau
        self.shares = weights / weights.sum()
        self.seed = seed
        self.steps_per_epoch = sum(order.first_step(1) for order in orders.values())

    def first_step(self, epoch: int) -> int:
        """Steps of all epochs before `epoch`."""
        return epoch * self.steps_per_epoch

    def epoch_of(self, step: int) -> int:
        """The epoch that `step`, counted from 0 over all epochs, belongs to."""
        return step // self.steps_per_epoch

    def progress(self, finished_steps: int) -> float:
        """Epochs that `finished_steps` steps make, with the part of the last one."""
        return finished_steps / self.steps_per_epoch

    def epoch(self, epoch: int) -> list[str]:
        """The task of each step of `epoch`."""
        # The third number keeps these draws apart from those of the tasks' own batches.
        drawn = uniform([self.seed, epoch, len(self.tasks)], self.steps_per_epoch)
        places = np.searchsorted(np.cumsum(self.shares), drawn, side="right")
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
        self.order = schedule
        self.num_steps = num_steps
        self.start_step = start_step
        self.depth = 4

    def __iter__(self) -> Iterator[TaskStep]:
        return prefetched(self.steps(), self.depth)

    def example_ids(self, step: int) -> list[str]:
        """Ids of the global batch of `step`."""
        ((_, task),) = self.order.steps(step, step + 1)
        loader = self.loaders[task]
        rows = loader.order.batch(self.order.before(step)[task])
        return loader.data.names(rows)

    def steps(self) -> Iterator[TaskStep]:
        """The same steps without a thread."""
        batches = {task: loader.steps() for task, loader in self.loaders.items()}
        for step, task in self.order.steps(self.start_step, self.num_steps):
            yield TaskStep(step, task, next(batches[task]))

"""What the loop trains with several tasks: one student, an objective for each task, each step of one task.

Terms of all tasks stand side by side in one objective, whose weights, schedules and projections the loop and the
optimizer see; a step has those of its task alone, the others count nothing in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raybrew.config.train import TrainConfig
from raybrew.data.loader import MicroBatch, Payload
from raybrew.data.multi_task import MultiTaskLoader, TaskStep
from raybrew.distillers.objective import Objective, StageTerms
from raybrew.distillers.teachers import Teacher
from raybrew.losses.term import LossTerm
from raybrew.models.composite import MultiTaskStudent
from raybrew.models.forward import forward
from raybrew.signals import LOGITS, Signal
from raybrew.training.encoded import EncodedProgram
from raybrew.training.stages import Stages

__all__ = ["MultiTaskProgram", "MultiTaskTrainee", "joint_objective"]


def joint_objective(objectives: Mapping[str, Objective], weights: Mapping[str, float]) -> Objective:
    """All terms of all tasks, named `<task>.<term>` and weighed by the task's weight; their projections are shared.

    Stages are those of all tasks alike.
    """
    projections = {
        f"{task}_{name}": module
        for task, objective in objectives.items()
        for name, module in objective.projections.items()
    }
    stages = [
        _joint_stage(dict(zip(objectives, of_tasks, strict=True)), weights)
        for of_tasks in zip(*(objective.stages for objective in objectives.values()), strict=True)
    ]
    first, *_ = stages
    joint = Objective(first.terms, first.student_request, first.teacher_request, projections)
    joint.stages = tuple(stages)
    return joint


def _joint_stage(of_tasks: Mapping[str, StageTerms], weights: Mapping[str, float]) -> StageTerms:
    terms = tuple(
        dataclasses.replace(term, name=f"{task}.{term.name}", weight=term.weight * weights[task])
        for task, stage in of_tasks.items()
        for term in stage.terms
    )
    student = frozenset().union(*(stage.student_request for stage in of_tasks.values()))
    teacher = frozenset().union(*(stage.teacher_request for stage in of_tasks.values()))
    projections = frozenset(f"{task}_{name}" for task, stage in of_tasks.items() for name in stage.projections)
    return StageTerms(terms, student, teacher, projections)


class MultiTaskTrainee(nn.Module):
    """Student and objective as one module, so that DDP sees one forward pass, of one task."""

    theseus = None  # of one task only

    def __init__(
        self,
        student: MultiTaskStudent,
        objectives: Mapping[str, Objective],
        weights: Mapping[str, float],
        runs: Mapping[str, Callable[..., Any]] | None = None,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.objective = joint_objective(objectives, weights)
        self.runs = runs or {}  #: stand in for calling the models of tasks
        self.share_of = shares or dict.fromkeys(objectives, 1.0)  #: of the steps, for each task
        # Not modules of this one: their projections are the joint objective's.
        self._objectives = dict(objectives)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self._objectives)

    @property
    def spans(self) -> dict[str, slice]:
        """Where the terms of each task are among those of the present stage."""
        starts = [0]
        for task in self.tasks:
            starts.append(starts[-1] + len(self.of_task(task).terms))
        return {task: slice(*starts[index : index + 2]) for index, task in enumerate(self.tasks)}

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of the steps that each term has a part in."""
        return tuple(self.share_of[task] for task in self.tasks for _ in self.of_task(task).terms)

    def of_task(self, task: str) -> Objective:
        """The objective of one task, in the stage of the joint one."""
        objective = self._objectives[task]
        objective.enter(self.objective.stage)
        return objective

    def forward(self, inputs: TaskInputs, teacher: Mapping[Signal, Payload]) -> tuple[Tensor, Tensor]:
        """Sum and count of every task's terms; 0 for those of other tasks than that of `inputs`."""
        objective = self.of_task(inputs.task)
        outputs = forward(
            self.student[inputs.task], inputs.batch, objective.student_request, self.runs.get(inputs.task)
        )
        return self._among_all(inputs.task, objective(outputs, teacher, inputs.batch))

    def measure_task(
        self, task: str, inputs: Mapping[str, Tensor], teacher: Mapping[Signal, Payload]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the task's student, and every task's terms as `forward` gives them, by one forward pass."""
        objective = self.of_task(task)
        outputs = forward(self.student[task], inputs, objective.student_request | {LOGITS})
        return outputs[LOGITS], *self._among_all(task, objective(outputs, teacher, inputs))

    def _among_all(self, task: str, terms: Sequence[LossTerm]) -> tuple[Tensor, Tensor]:
        span = self.spans[task]
        around = span.start, len(self.objective.terms) - span.stop
        sums, counts = (torch.stack(values) for values in zip(*terms, strict=True))
        return nn.functional.pad(sums, around), nn.functional.pad(counts, around)


@dataclasses.dataclass
class TaskInputs:
    """A micro-batch's inputs and the task they are of."""

    task: str
    batch: dict[str, Tensor]


@dataclasses.dataclass
class _TaskMicro:
    task: str
    micro: MicroBatch

    @property
    def inputs(self) -> TaskInputs:
        return TaskInputs(self.task, self.micro.inputs)

    def to(self, device: torch.device) -> _TaskMicro:
        return _TaskMicro(self.task, self.micro.to(device))


@dataclasses.dataclass
class _Step:
    """A step as the loop takes it."""

    step: int
    task: str
    micro_batches: list[_TaskMicro]
    amounts: tuple[int, int, int]


class MultiTaskProgram(EncodedProgram):
    """A student of several tasks on their encoded rows; order, rates and dropout are those of any experiment."""

    trainee: MultiTaskTrainee  # type: ignore[assignment]  # as EncodedProgram's, with a task in its inputs
    loader: MultiTaskLoader  # type: ignore[assignment]

    def __init__(
        self,
        trainee: MultiTaskTrainee,
        teachers: Mapping[str, Teacher | Sequence[Teacher]],
        loader: MultiTaskLoader,
        config: TrainConfig,
        judge: str,
        stages: Stages | None = None,
    ) -> None:
        super().__init__(trainee, (), loader, config, judge, stages)  # type: ignore[arg-type]
        self.teachers_of = {task: _for_each_stage(teachers[task]) for task in trainee.tasks}
        self._places = {task: place for place, task in enumerate(trainee.tasks)}
        self.find_unused = True  # the other tasks' heads

    def steps(self) -> Any:
        return map(_as_step, self.loader)

    def example_ids(self, step: int) -> Sequence[str]:
        return self.loader.example_ids(step)

    def counts(self, batch: Any) -> Tensor:
        # A row for each task, so that a step says how many items there are of its own, and 0 of the others.
        objective = self.trainee.of_task(batch.task)
        own = torch.stack([objective.counts(micro.inputs.batch) for micro in batch.micro_batches]).sum(dim=0)
        rows = torch.zeros(len(self.teachers_of), len(own), dtype=own.dtype)
        rows[self._places[batch.task]] = own
        return rows.flatten()

    def denominators(self, counts: Tensor) -> Tensor:
        found: list[float] = []
        for task, own in zip(self.teachers_of, counts.reshape(len(self.teachers_of), -1), strict=True):
            found += self.trainee.of_task(task).denominators(own)
        return torch.tensor(found, dtype=torch.float64)

    def shares(self, batch: Any) -> list[float]:  # type: ignore[override]  # there it is None: one task
        span = self.trainee.spans[batch.task]
        return [float(span.start <= index < span.stop) for index in range(len(self.trainee.objective.terms))]

    def targets(self, micro: Any) -> Mapping[Signal, Payload]:
        return self.teachers_of[micro.task][self.trainee.objective.stage].signals(micro.micro)


def _for_each_stage(given: Teacher | Sequence[Teacher]) -> tuple[Teacher, ...]:
    return tuple(given) if isinstance(given, Sequence) else (given,)


def _as_step(found: TaskStep) -> _Step:
    micros = [_TaskMicro(found.task, micro) for micro in found.micro_batches]
    return _Step(found.step, found.task, micros, found.amounts)

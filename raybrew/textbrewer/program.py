"""What the loop trains in distillers: a student under adaptors, with counts that come out of its forward pass.

A step of one micro-batch costs one forward pass of teacher and student. With `gradient_accumulation_steps` k > 1 the
counts of all k must be known before the first backward pass, or masked losses would depend on how a batch is cut. So
the teacher's k forward passes come first and what they said is held, and the student runs forward once more, without
gradient and dropout, to have its masks counted: about a third more time for the student and, beside the teacher's
matched layers, no more memory than one micro-batch. Batches without masks and labels are counted once for each shape.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raybrew.distillers.objective import Objective
from raybrew.errors import DataError, LossError
from raybrew.textbrewer.adaptors import Adapted, Adaptor, Wanted, adapt, teacher_name
from raybrew.textbrewer.batches import (
    AdaptorMicro,
    AdaptorStep,
    BatchStream,
    StudentInputs,
    TaskOrder,
    call,
    random_states,
    set_random_states,
)
from raybrew.textbrewer.taps import tapped
from raybrew.training.context import Context
from raybrew.training.stages import Stages

__all__ = ["AdaptorProgram", "AdaptorTrainee", "Pace", "StudentSide", "TeacherSide"]


@contextlib.contextmanager
def evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within, these modules, not those in them, are in evaluation mode."""
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


class StudentSide:
    """The student with its adaptors: from a batch to what is compared."""

    def __init__(
        self,
        student: nn.Module,
        adaptors: Mapping[str, Adaptor],
        wanted: Wanted,
        taps: Sequence[nn.Module],
        args: Mapping[str, Any],
        name: str = "adaptor_S",
    ) -> None:
        self.student = student
        self.adaptors = adaptors
        self.wanted = wanted
        self.taps = taps
        self.args = args
        self.name = name

    def __call__(self, inputs: StudentInputs) -> Adapted:
        with tapped(self.taps) as outputs:
            said = call(self.student, inputs.batch, self.args)
            taps = outputs("module_S")
        adapted = adapt(self.name, self.adaptors[inputs.task](inputs.batch, said), self.wanted)
        return dataclasses.replace(adapted, taps=taps)


class TeacherSide:
    """The teachers of each task with their adaptors; run without gradient, dropout and wrapper.

    `shared` are modules that the student has too, which trains them: only while a teacher runs are they in evaluation
    mode.
    """

    def __init__(
        self,
        teachers: Mapping[str, Sequence[nn.Module]],
        adaptors: Mapping[str, Sequence[Adaptor]],
        wanted: Sequence[Wanted],
        taps: Sequence[nn.Module],
        args: Mapping[str, Any],
        autocast: Callable[[], contextlib.AbstractContextManager[Any]],
        shared: Sequence[nn.Module] = (),
    ) -> None:
        self.teachers = teachers
        self.adaptors = adaptors
        self.wanted = wanted
        self.taps = taps
        self.args = args
        self.autocast = autocast
        self.shared = shared

    @torch.no_grad()
    def __call__(self, micro: AdaptorMicro) -> tuple[Adapted, ...]:
        teachers, adaptors = self.teachers[micro.task], self.adaptors[micro.task]
        batches = _one_for_each(micro.teacher, len(teachers))
        outputs = self._outputs(micro, batches)
        adapted = []
        for index, (adaptor, batch, (said, taps)) in enumerate(zip(adaptors, batches, outputs, strict=True)):
            side = adapt(teacher_name(index, len(teachers)), adaptor(batch, said), self.wanted[index])
            # A teacher's own losses and labels are used nowhere, and a cache need not hold them.
            adapted.append(dataclasses.replace(side, losses=(), labels=(), taps=taps))
        return tuple(adapted)

    def _outputs(self, micro: AdaptorMicro, batches: Sequence[Any]) -> list[tuple[Any, tuple[Tensor, ...]]]:
        teachers = self.teachers[micro.task]
        if micro.teacher_cache is not None:
            if self.taps:
                raise LossError("custom match 0: a batch with teacher_cache runs no teacher, so module_T gives nothing")
            cached = _one_for_each(micro.teacher_cache, len(teachers))
            return [(each, ()) for each in cached]
        found = []
        for model, batch in zip(teachers, batches, strict=True):
            with evaluating(self.shared), self.autocast(), tapped(self.taps) as outputs:
                said = call(model, batch, self.args)
                found.append((said, outputs("module_T")))
        return found


def _one_for_each(value: Any, count: int) -> Sequence[Any]:
    """`value` for each of `count` teachers, or its items if it is a list of as many batches."""
    lists = isinstance(value, (list, tuple)) and len(value) == count > 1
    if lists and all(isinstance(item, (Mapping, list, tuple)) for item in value):
        items: Sequence[Any] = value
        return items
    return [value] * count


class AdaptorTrainee(nn.Module):
    """Student and objective as one module, so that DDP sees one forward pass. Returns sum and count of each term."""

    def __init__(self, student: nn.Module, objective: Objective, side: StudentSide) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.side = side

    def forward(self, inputs: StudentInputs, teachers: Sequence[Adapted]) -> tuple[Tensor, Tensor]:
        terms = self.objective(self.side(inputs), teachers, inputs)
        return torch.stack([term.sum for term in terms]), torch.stack([term.count for term in terms])


@dataclasses.dataclass(frozen=True)
class Pace:
    """How long training goes on, and when something is due."""

    num_steps: int
    steps_per_epoch: int
    by_epochs: bool  #: epochs of `steps_per_epoch` steps, rather than one endless run through the data
    log_steps: int
    save_steps: frozenset[int]


class AdaptorProgram:
    """One `train()` of a distiller."""

    judge = ""
    save_seconds = float("inf")

    def __init__(
        self,
        trainee: AdaptorTrainee,
        teachers: TeacherSide | None,
        streams: Mapping[str, BatchStream],
        order: TaskOrder | None,
        owners: Sequence[str],
        optimizer: torch.optim.Optimizer,
        scheduler: Any,
        pace: Pace,
        num_micro: int,
        max_grad_norm: float | None,
        find_unused: bool,
        device: torch.device,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]],
    ) -> None:
        self.trainee = trainee
        self.teachers = teachers
        self.streams = streams
        self.order = order
        self.owners = owners  #: the task of each term
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.pace = pace
        self.num_micro = num_micro
        self.num_steps = pace.num_steps
        self.stages = Stages((pace.num_steps,))
        self.steps_per_epoch = pace.steps_per_epoch
        self.max_grad_norm = max_grad_norm
        self.find_unused = find_unused
        self.device = device
        self.autocast = autocast
        self.done = 0  #: steps
        self._counts_of_shapes: dict[tuple[Any, ...], Tensor] = {}

    def steps(self) -> Iterator[AdaptorStep]:
        while self.done < self.num_steps:
            first = self.done * self.num_micro
            micros = [self.streams[self.task_at(first + index)].next() for index in range(self.num_micro)]
            yield AdaptorStep(self.done, micros)
            self.done += 1
            if self.pace.by_epochs and self.done % self.steps_per_epoch == 0:
                for stream in self.streams.values():
                    stream.end_epoch()

    def epochs_after(self, step: int) -> float:
        return step / self.steps_per_epoch

    def example_ids(self, step: int) -> Sequence[str]:
        return ()  # what the batches of a dataloader are made of is the script's

    def task_at(self, index: int) -> str:
        """The task of the micro-batch with this number, counted over the whole run."""
        return next(iter(self.streams)) if self.order is None else self.order(index)

    def counts(self, batch: AdaptorStep) -> Tensor | None:
        if len(batch.micro_batches) == 1:
            return None
        return torch.stack([self._counts_of(micro) for micro in batch.micro_batches]).sum(dim=0)

    @torch.no_grad()
    def _counts_of(self, micro: AdaptorMicro) -> Tensor:
        known = self._counts_of_shapes.get(micro.shapes)
        if known is not None:
            return known
        moved = micro.to(self.device)
        targets = self.targets(moved)
        self.trainee.eval()  # draws no random numbers, and leaves running statistics alone
        with self.autocast():
            student = self.trainee.side(moved.inputs)
            terms = self.trainee.objective(student, targets, moved.inputs)
        self.trainee.train()
        counts = torch.stack([term.count.double() for term in terms])
        if not student.is_masked and not any(teacher.is_masked for teacher in targets):
            self._counts_of_shapes[micro.shapes] = counts
        return counts

    def denominators(self, counts: Tensor) -> Tensor:
        return counts

    def shares(self, batch: AdaptorStep) -> list[float] | None:
        if self.order is None:
            return None
        tasks = [micro.task for micro in batch.micro_batches]
        return [tasks.count(owner) / len(tasks) for owner in self.owners]

    def targets(self, micro: AdaptorMicro) -> tuple[Adapted, ...]:
        if self.teachers is None:
            return ()
        if micro.said:
            return tuple(side.to(self.device) for side in micro.said[0])
        said = self.teachers(micro)
        if self.streams[micro.task].keep:
            micro.said.append(tuple(side.to("cpu") for side in said))
        elif self.num_micro > 1:
            micro.said.append(said)
        return said

    def start_step(self, step: int, rank: int) -> None:
        return None  # random numbers and learning rates are the script's

    def end_step(self) -> None:
        if self.scheduler is not None:
            self.scheduler.step()

    def logs_at(self, step: int) -> bool:
        # What is about to be saved is checked for NaN first.
        return step % self.pace.log_steps == 0 or self.saves_at(step)

    def evaluates_at(self, step: int) -> bool:
        return False

    def saves_at(self, step: int) -> bool:
        return step in self.pace.save_steps

    def gives_up(self, quality: float | None) -> bool:
        return False

    def state_dict(self, context: Context) -> dict[str, Any]:
        own = {"random": random_states(), "streams": {task: s.state_dict() for task, s in self.streams.items()}}
        return {
            "done": self.done + 1,
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "ranks": context.gather(own),
        }

    def load_state_dict(self, state: Mapping[str, Any], rank: int) -> None:
        own = state["ranks"][rank]
        self.done = state["done"]
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        for task, stream in self.streams.items():
            stream.load_state_dict(own["streams"][task])
        set_random_states(own["random"])
        if self.pace.by_epochs and self.done % self.steps_per_epoch == 0:
            for stream in self.streams.values():
                stream.end_epoch()
        if self.done > self.num_steps:
            raise DataError(f"the checkpoint is of step {self.done}, and training ends at {self.num_steps}")

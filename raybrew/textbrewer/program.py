"""What the loop trains in distillers, a student under adaptors whose forward pass tells the counts, and its files.

A step of one micro-batch costs one forward pass of teacher and student. With `gradient_accumulation_steps` k > 1 the
counts of all k must be known before the first backward pass, or masked losses would depend on how a batch is cut. So
the teacher's k forward passes come first and what they said is held, and the student runs forward once more, without
gradient and dropout, to have its masks counted: about a third more time for the student and, beside the teacher's
matched layers, no more memory than one micro-batch. Batches without masks and labels are counted once for each shape.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raybrew.errors import CheckpointError, ConfigError, DataError, EnvironmentProblem
from raybrew.files import replacing
from raybrew.textbrewer.adaptors import Adapted, AdaptorMicro, AdaptorTrainee, TeacherSide
from raybrew.textbrewer.configs import TrainingConfig
from raybrew.tracking.tensorboard import EventWriter
from raybrew.training.checkpoints import Checkpoints
from raybrew.training.context import Context
from raybrew.training.evaluation import Evaluation, modes_of
from raybrew.training.stages import Stages
from raybrew.training.streams import BatchStream, TaskOrder, known_size, random_states, set_random_states, size_of

__all__ = ["AdaptorProgram", "Callback", "Pace", "TrainingOutput", "pace_of"]

log = logging.getLogger(__name__)

#: callback(model=student, step=global_step) after each checkpoint, on rank 0.
Callback = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class AdaptorStep:
    """One optimizer step: `gradient_accumulation_steps` batches."""

    step: int
    micro_batches: Sequence[AdaptorMicro]

    @property
    def amounts(self) -> tuple[int, int, int]:
        return sum(micro.num_rows for micro in self.micro_batches), 0, 0


@dataclasses.dataclass(frozen=True)
class Pace:
    """How long training goes on, and when something is due."""

    num_steps: int
    steps_per_epoch: int
    by_epochs: bool  #: epochs of `steps_per_epoch` steps, rather than one endless run through the data
    log_steps: int
    save_steps: frozenset[int]


def pace_of(
    config: TrainingConfig, dataloaders: Mapping[str, Iterable[Any]], num_epochs: int | None, num_steps: int | None
) -> Pace:
    """What `train` was asked for, in steps; dataloaders by task."""
    num_micro = config.gradient_accumulation_steps
    loader = next(iter(dataloaders.values()))
    if num_steps is not None:
        total = _positive("num_steps", num_steps)
        every = config.ckpt_steps or total
        saves = {*range(every, total + 1, every), total}
        size = size_of(loader) if len(dataloaders) == 1 else None
        return Pace(total, max(1, (size or total * num_micro) // num_micro), False, config.log_steps, frozenset(saves))
    if num_epochs is None:
        raise ConfigError("train: give num_epochs or num_steps")
    epochs = _positive("num_epochs", num_epochs)
    size = known_size(loader, "num_epochs (num_steps does without)")
    per_epoch = size // num_micro
    if per_epoch == 0:
        raise ConfigError(
            f"gradient_accumulation_steps: given {num_micro}, but an epoch has only {size} batches, less than one step"
        )
    if left := size % num_micro:
        log.info("%d of %d batches at the end of each epoch make no whole step and are left out", left, size)
    saves = set()
    for epoch in range(epochs):
        if (epoch + 1) % config.ckpt_epoch_frequency == 0 or epoch + 1 == epochs:
            parts = [int(per_epoch * part / config.ckpt_frequency) for part in range(config.ckpt_frequency)]
            saves |= {epoch * per_epoch + (part or per_epoch) for part in parts}
    return Pace(epochs * per_epoch, per_epoch, True, config.log_steps, frozenset(saves))


def _positive(key: str, value: Any) -> int:
    with contextlib.suppress(TypeError, ValueError):
        if int(value) >= 1:
            return int(value)
    raise ConfigError(f"{key}: given {value!r}; allowed: a whole number, at least 1")


class AdaptorProgram:
    """One `train()` of a distiller."""

    judge = ""
    save_seconds = float("inf")

    def __init__(
        self,
        *,
        trainee: AdaptorTrainee,
        teachers: TeacherSide | None,
        streams: Mapping[str, BatchStream[AdaptorMicro]],
        order: TaskOrder | None,
        optimizer: torch.optim.Optimizer,
        pace: Pace,
        num_micro: int,
        max_grad_norm: float | None,
        device: torch.device,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]],
    ) -> None:
        self.trainee = trainee
        self.teachers = teachers
        self.streams = streams
        self.order = order
        self.optimizer = optimizer
        self.scheduler: Any = None
        self.pace = pace
        self.num_micro = num_micro
        self.num_steps = pace.num_steps
        self.stages = Stages((pace.num_steps,))
        self.steps_per_epoch = pace.steps_per_epoch
        self.max_grad_norm = max_grad_norm
        self.find_unused = len(streams) > 1  # the other tasks' heads
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
            counts = self.trainee.compare(student, targets, moved.inputs)[1].double()
        self.trainee.train()
        if not student.is_masked and not any(teacher.is_masked for teacher in targets):
            self._counts_of_shapes[micro.shapes] = counts
        return counts

    def denominators(self, counts: Tensor) -> Tensor:
        return counts

    def shares(self, batch: AdaptorStep) -> list[float] | None:
        if self.order is None:
            return None
        tasks = [micro.task for micro in batch.micro_batches]
        return [tasks.count(owner) / len(tasks) for owner in self.trainee.owners]

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


class TrainingOutput:
    """The loop's hooks of one `train()`. Files and folders are made when the first thing is written to them."""

    def __init__(
        self,
        config: TrainingConfig,
        student: nn.Module,
        tags: Mapping[str, str],
        num_steps: int,
        callback: Callback | None,
        identity: str,
    ) -> None:
        self.config = config
        self.student = student
        self.tags = tags  #: name of a term -> its name in TensorBoard
        self.num_steps = num_steps
        self.callback = callback
        self.folder = Path(config.output_dir)
        self.states = Checkpoints(self.folder / "state", keep=1)
        self.identity = hashlib.sha256(identity.encode()).hexdigest()
        self.resumed = False
        self._writer: EventWriter | None = None

    def newest_state(self) -> dict[str, Any] | None:
        """The state to go on from, None to start; CheckpointError if it is of another training."""
        found = self.states.load_newest() if self.config.resume else None
        if found is None:
            return None
        step, state = found
        if state["identity"] != self.identity:
            raise CheckpointError(
                f"{self.states.folder} holds the state of a training with other settings, so it cannot go on here; "
                "choose another output_dir, or remove that folder"
            )
        log.info("resumed at step %d of %d", step, self.num_steps)
        self.resumed = True
        return state

    def log(self, record: dict[str, Any]) -> None:
        if record["kind"] != "train":
            return
        log.info("step %d of %d: loss %.6g", record["step"], self.num_steps, record["loss"])
        if self.config.log_dir is None:
            return
        if self._writer is None:
            self._writer = EventWriter(Path(self.config.log_dir), self.resumed)
        values = {"total_loss": record["loss"], "learning_rate": record["learning_rate"]}
        values["grad_norm"] = record["grad_norm"]
        for name, tag in self.tags.items():  # heads of one model share a tag, which shows their sum
            if f"loss/{name}" in record:  # a task without a step since the last line has none
                values[tag] = values.get(tag, 0.0) + record[f"loss/{name}"]
        self._writer.add(record["step"], {f"scalar/{tag}": value for tag, value in values.items()})

    def evaluate(self, trainee: Any) -> Evaluation:
        return Evaluation({}, {})

    def keep_best(self, student: nn.Module, best: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        return None

    def save(self, step: int, state: dict[str, Any]) -> None:
        path = self.folder / f"gs{step}.pkl"
        log.info("saving %s", path)
        _write(self.student.state_dict(), path)
        if self.config.resume:
            self.states.save(step, state | {"identity": self.identity})
        if self.callback is not None:
            with modes_of(self.student.modules()), _barriers_pass():
                self.callback(model=self.student, step=step)

    def close(self) -> None:
        self.states.wait()
        if self._writer is not None:
            self._writer.close()
            self._writer = None


@contextlib.contextmanager
def _barriers_pass() -> Iterator[None]:
    """Within, torch.distributed.barrier returns at once.

    Callbacks run on rank 0 alone while the others wait. TextBrewer runs them on every rank, so scripts evaluate on
    rank 0 and let the others wait at a barrier, where nobody would come.
    """
    if not (dist.is_available() and dist.is_initialized()):
        yield
        return
    barrier = dist.barrier
    dist.barrier = lambda *args, **options: None
    try:
        yield
    finally:
        dist.barrier = barrier


def _write(weights: Mapping[str, Any], path: Path) -> None:
    """Whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as new:
            torch.save(weights, new)
    except (OSError, RuntimeError) as error:  # torch wraps a failed write in RuntimeError
        raise EnvironmentProblem(f"cannot write {path}: {str(error).splitlines()[0]}") from error

"""What a distiller's training leaves: weights under TextBrewer's names, TensorBoard scalars, a state to resume from."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raybrew.errors import CheckpointError, EnvironmentProblem
from raybrew.files import replacing
from raybrew.textbrewer.configs import TrainingConfig
from raybrew.tracking.tensorboard import EventWriter
from raybrew.training.checkpoints import Checkpoints
from raybrew.training.evaluation import Evaluation

__all__ = ["Callback", "TrainingOutput"]

log = logging.getLogger(__name__)

#: callback(model=student, step=global_step) after each checkpoint, on rank 0.
Callback = Callable[..., Any]


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
            modes = {module: module.training for module in self.student.modules()}
            with _barriers_pass():
                self.callback(model=self.student, step=step)
            for module, mode in modes.items():
                module.training = mode

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

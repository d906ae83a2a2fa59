"""What the loop trains in experiments: encoded rows, targets from a store or a live teacher, AdamW."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raybrew.config.train import TrainConfig
from raybrew.data.loader import MicroBatch, StepBatch, StepLoader
from raybrew.data.sampler import num_batches
from raybrew.distillers.objective import Objective
from raybrew.distillers.teachers import Teacher
from raybrew.models.forward import forward
from raybrew.signals import Signal
from raybrew.training.context import Context
from raybrew.training.optim import build_optimizer, learning_rate_factor

__all__ = ["EncodedProgram", "Trainee", "total_steps"]


class Trainee(nn.Module):
    """Student and objective as one module, so that DDP sees one forward pass. Returns sum and count of each term."""

    def __init__(self, student: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self.objective = objective

    def forward(self, inputs: Mapping[str, Tensor], teacher: Mapping[Signal, Tensor]) -> tuple[Tensor, Tensor]:
        outputs = forward(self.student, inputs, self.objective.student_request)
        terms = self.objective(outputs, teacher, inputs)
        return torch.stack([term.sum for term in terms]), torch.stack([term.count for term in terms])


def total_steps(num_rows: int, config: TrainConfig) -> int:
    """Optimizer steps of a whole run."""
    steps = config.epochs * num_batches(num_rows, config.batch_size)
    return steps if config.max_steps is None else min(steps, config.max_steps)


class EncodedProgram:
    """A student on encoded rows: order and dropout are functions of the seed, counts are known before a step."""

    def __init__(
        self,
        trainee: Trainee,
        teacher: Teacher,
        loader: StepLoader,
        config: TrainConfig,
        metric: str,
        device: torch.device,
    ) -> None:
        self.trainee = trainee
        self.teacher = teacher
        self.loader = loader
        self.config = config
        self.metric = metric
        self.optimizer: torch.optim.Optimizer = build_optimizer([trainee], config, device)
        self.find_unused = not trainee.objective.uses_all_of_student
        self.num_steps = loader.num_steps
        self.steps_per_epoch = loader.steps_per_epoch
        self.max_grad_norm = config.max_grad_norm
        self.save_seconds = 60 * config.checkpoint_minutes

    def steps(self) -> Iterable[StepBatch]:
        return self.loader

    def counts(self, batch: StepBatch) -> Tensor:
        objective = self.trainee.objective
        return torch.stack([objective.counts(micro.inputs) for micro in batch.micro_batches]).sum(dim=0)

    def denominators(self, counts: Tensor) -> Tensor:
        return torch.tensor(self.trainee.objective.denominators(counts), dtype=torch.float64)

    def shares(self, batch: StepBatch) -> None:
        return None

    def targets(self, micro: MicroBatch) -> Mapping[Signal, Tensor]:
        return self.teacher.signals(micro)

    def start_step(self, step: int, rank: int) -> None:
        _seed_dropout(self.config.seed, step, rank)
        factor = learning_rate_factor(step, self.num_steps, self.config.warmup, self.config.schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * factor

    def end_step(self) -> None:
        return None

    def logs_at(self, step: int) -> bool:
        return step % self.config.log_steps == 0

    def evaluates_at(self, step: int) -> bool:
        every = self.config.eval_steps
        return step % every == 0 if every else step % self.steps_per_epoch == 0

    def saves_at(self, step: int) -> bool:
        every = self.config.checkpoint_steps
        return step % every == 0 if every else self.evaluates_at(step)

    def state_dict(self, context: Context) -> dict[str, Any]:
        return {}  # the step, which names the checkpoint, is all that order and rates depend on

    def load_state_dict(self, state: Mapping[str, Any], rank: int) -> None:
        return None


def _seed_dropout(seed: int, step: int, rank: int) -> None:
    """Dropout as a function of (seed, step, rank): a resumed run draws what the unbroken one drew."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) & (2**64 - 1)
    mixed ^= mixed >> 31
    torch.manual_seed(mixed & (2**63 - 1))

"""What the loop trains in experiments: encoded rows, targets from a store or a live teacher, AdamW."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from raybrew.config.changes import value_at, values_over
from raybrew.config.train import EarlyStoppingConfig, FinetuneConfig, TrainConfig
from raybrew.data.loader import MicroBatch, Payload, StepBatch, StepLoader
from raybrew.data.sampler import BatchSize, Order
from raybrew.distillers.objective import Objective
from raybrew.distillers.teachers import Teacher
from raybrew.errors import EnvironmentProblem, ModelError
from raybrew.models.devices import memory_of
from raybrew.models.forward import forward
from raybrew.models.shapes import dims_of, sizes_text
from raybrew.signals import LOGITS, Signal
from raybrew.tasks.base import Masking
from raybrew.training.context import Context
from raybrew.training.optim import build_optimizer, learning_rate_factor
from raybrew.training.stages import Stages, Theseus

__all__ = [
    "EncodedProgram",
    "Epochs",
    "Patience",
    "Trainee",
    "build_order",
    "check_room",
    "evaluation_steps",
    "total_steps",
]


class Trainee(nn.Module):
    """Student and objective as one module, so that DDP sees one forward pass. Returns sum and count of each term."""

    def __init__(
        self,
        student: nn.Module,
        objective: Objective,
        run: Callable[..., Any] | None = None,
        theseus: Theseus | None = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.run = run  #: stands in for calling the student
        self.theseus = theseus  #: so does its teacher with it inside, in some stages

    def forward(self, inputs: Mapping[str, Tensor], teacher: Mapping[Signal, Payload]) -> tuple[Tensor, Tensor]:
        run = self.run
        if self.theseus is not None and self.theseus.runs_in(self.objective.stage):
            run = self.theseus.hybrid
        outputs = forward(self.student, inputs, self.objective.student_request, run)
        return self._terms(outputs, teacher, inputs)

    def measure(self, inputs: Mapping[str, Tensor], teacher: Mapping[Signal, Payload]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the student alone, and sum and count of each term, by one forward pass."""
        outputs = forward(self.student, inputs, self.objective.student_request | {LOGITS})
        return outputs[LOGITS], *self._terms(outputs, teacher, inputs)

    def _terms(self, outputs: Any, teacher: Any, inputs: Any) -> tuple[Tensor, Tensor]:
        terms = self.objective(outputs, teacher, inputs)
        return torch.stack([term.sum for term in terms]), torch.stack([term.count for term in terms])

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of the steps that each term has a part in."""
        return (1.0,) * len(self.objective.terms)


def build_order(lengths: np.ndarray, config: TrainConfig, counts: Path | None = None) -> Order:
    """The order of training rows whose lengths in tokens these are; batches are counted once for the folder `counts`.

    That is the folder of these rows alone.
    """
    return Order(lengths, BatchSize(config.batch_size, config.batch_tokens, config.compile), config.seed, counts)


def check_room(
    model: Any, lengths: np.ndarray, config: TrainConfig, masking: Masking | None, device: torch.device, workers: int
) -> None:
    """EnvironmentProblem if one batch of rows of these `lengths` cannot fit: the system would end the process.

    Counted is what any training keeps at least: the ids of a batch, a vector for each token and layer of one forward
    pass in half precision, and the logits of those tokens that masked LM hides.
    """
    mean = float(lengths.mean())
    rows = config.batch_size if config.compile else min(config.batch_size, len(lengths))
    # Of batches by tokens a part may be padding.
    tokens = rows * mean if config.batch_tokens is None else min(config.batch_tokens, float(lengths.sum())) / 2
    tokens /= workers
    limits = (tokens, (config.micro_batch_size or rows) * mean, config.micro_batch_tokens or tokens)
    try:
        layers, hidden, *_ = dims_of(model.config)
    except ModelError:
        layers, hidden = 1, 1
    logits = 0.0 if masking is None else masking.rate * model.config.vocab_size
    needed = 8 * tokens + 2 * min(limits) * (layers * hidden + logits)
    there = memory_of(device)
    if needed > there:
        key = "teacher.finetune" if isinstance(config, FinetuneConfig) else "train"
        name = "batch_size" if config.batch_tokens is None else "batch_tokens"
        raise EnvironmentProblem(
            f"{key}.{name}: given {getattr(config, name)}; a batch of rows of {mean:.0f} tokens takes at least "
            f"{needed / 2**30:,.1f} GiB in training {sizes_text(model.config)}, and this machine has "
            f"{there / 2**30:,.1f} GiB of memory for it; set a smaller {key}.micro_{name}, or {key}.{name}"
        )


class Epochs(Protocol):
    """How the steps of a run divide into epochs."""

    def first_step(self, epoch: int) -> int: ...
    def epoch_of(self, step: int) -> int: ...
    def progress(self, finished_steps: int) -> float: ...


def total_steps(order: Epochs, config: TrainConfig) -> int:
    """Optimizer steps of a whole run."""
    if config.max_steps is None:
        return order.first_step(config.epochs)
    # Epochs are counted one after the other, as far as is needed: of batches by tokens each count takes time.
    ends = (order.first_step(epoch) for epoch in range(1, config.epochs + 1))
    end = next((end for end in ends if end >= config.max_steps), None)
    return order.first_step(config.epochs) if end is None else config.max_steps


def evaluation_steps(order: Epochs, config: TrainConfig) -> list[int]:
    """Steps after which a whole run is evaluated; the last one always is."""
    steps = total_steps(order, config)
    if config.eval_steps is not None:
        due = range(config.eval_steps, steps, config.eval_steps)
        return [*due, steps]
    every = config.eval_epochs or 1
    ends = (order.first_step(epoch) for epoch in range(every, config.epochs + 1, every))
    return [*itertools.takewhile(lambda end: end < steps, ends), steps]


class EncodedProgram:
    """A student on encoded rows: order and dropout are functions of the seed, counts are known before a step."""

    def __init__(
        self,
        trainee: Trainee,
        teacher: Teacher | Sequence[Teacher],
        loader: StepLoader,
        config: TrainConfig,
        judge: str,
        stages: Stages | None = None,
    ) -> None:
        self.trainee = trainee
        self.teachers = (teacher,) if not isinstance(teacher, Sequence) else tuple(teacher)  #: one for each stage
        self.loader = loader
        self.config = config
        self.judge = judge
        self.learning_rates = values_over("train.learning_rate", config.learning_rate, config.changes)
        self.optimizer: torch.optim.Optimizer = build_optimizer([trainee], config, trainee.student)
        # Layers that are not replaced, embeddings and heads get no gradient inside the teacher.
        self.theseus = trainee.theseus
        self.find_unused = self.theseus is not None or not trainee.objective.uses_all_parameters
        self.num_steps = loader.num_steps
        self.stages = stages or Stages((loader.num_steps,))
        self.order: Epochs = loader.order
        self.patience = None if config.early_stopping is None else Patience(config.early_stopping)
        self.max_grad_norm = config.max_grad_norm
        self.save_seconds = 60 * config.checkpoint_minutes

    def steps(self) -> Iterable[StepBatch]:
        return self.loader

    def epochs_after(self, step: int) -> float:
        return self.order.progress(step)

    def example_ids(self, step: int) -> Sequence[str]:
        return self.loader.data.names(self.loader.order.batch(step))

    def counts(self, batch: StepBatch) -> Tensor:
        objective = self.trainee.objective
        return torch.stack([objective.counts(micro.inputs) for micro in batch.micro_batches]).sum(dim=0)

    def denominators(self, counts: Tensor) -> Tensor:
        return torch.tensor(self.trainee.objective.denominators(counts), dtype=torch.float64)

    def shares(self, batch: StepBatch) -> None:
        return None

    def targets(self, micro: MicroBatch) -> Mapping[Signal, Payload]:
        return self.teachers[self.trainee.objective.stage].signals(micro)

    def start_step(self, step: int, rank: int) -> None:
        _seed_dropout(self.config.seed, step, rank)
        if self.theseus is not None:
            self.theseus.start_step(step, self.stages)
        self.trainee.objective.start_step(step / self.num_steps)
        first, num_steps = self.stages.span(step)
        factor = learning_rate_factor(step - first, num_steps, self.config.warmup, self.config.schedule)
        rate = self.stages.learning_rates[self.stages.at(step)] or value_at(self.learning_rates, step / self.num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * factor * group["lr_scale"]

    def end_step(self) -> None:
        return None

    def logs_at(self, step: int) -> bool:
        return step % self.config.log_steps == 0

    def evaluates_at(self, step: int) -> bool:
        return self._is_due(step, self.config.eval_steps, self.config.eval_epochs or 1)

    def saves_at(self, step: int) -> bool:
        every, epochs = self.config.checkpoint_steps, self.config.checkpoint_epochs
        return self._is_due(step, every, epochs) if every or epochs else self.evaluates_at(step)

    def _is_due(self, step: int, every: int | None, epochs: int | None) -> bool:
        if every is not None:
            return step % every == 0
        epoch = self.order.epoch_of(step)
        return step == self.order.first_step(epoch) and epoch % (epochs or 1) == 0

    def gives_up(self, quality: float | None) -> bool:
        return self.patience is not None and quality is not None and self.patience.ends_with(quality)

    def state_dict(self, context: Context) -> dict[str, Any]:
        # The step, which names the checkpoint, is all that order and rates depend on.
        return {} if self.patience is None else {"patience": self.patience.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], rank: int) -> None:
        if self.patience is not None:
            self.patience.load_state_dict(state["patience"])


class Patience:
    """Counts evaluations since the last one that was better by more than `min_delta`."""

    def __init__(self, config: EarlyStoppingConfig) -> None:
        self.config = config
        self.best: float | None = None
        self.waited = 0

    def ends_with(self, value: float) -> bool:
        """Take the quality of one more evaluation, higher being better; True when it is one too many."""
        if not math.isnan(value) and (self.best is None or value > self.best + self.config.min_delta):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.waited >= self.config.patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]


def _seed_dropout(seed: int, step: int, rank: int) -> None:
    """Dropout as a function of (seed, step, rank): a resumed run draws what the unbroken one drew."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) & (2**64 - 1)
    mixed ^= mixed >> 31
    torch.manual_seed(mixed & (2**63 - 1))

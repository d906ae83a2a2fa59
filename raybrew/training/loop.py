"""The training loop, read downwards: fetch, count, forward, backward, step, log, evaluate, save.

It serves every way to train: controls and distillation, one process or many, stored or live teacher. It knows neither
Ray nor files; what it needs of them comes in through `Context`, `Hooks` and the state it is given.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from raybrew.config.train import TrainConfig
from raybrew.data.loader import StepBatch, StepLoader
from raybrew.data.sampler import num_batches
from raybrew.distillers.objective import Objective
from raybrew.distillers.teachers import Teacher
from raybrew.errors import DivergenceError, Interrupted
from raybrew.models.forward import forward
from raybrew.signals import Signal
from raybrew.training.context import Context
from raybrew.training.optim import build_optimizer, learning_rate_factor, trained_parameters
from raybrew.training.precision import Precision

__all__ = ["Hooks", "Outcome", "Trainee", "total_steps", "train"]


class Hooks(Protocol):
    """What the loop tells the run. `log` and `save` are called on rank 0 only, `evaluate` on all ranks."""

    def log(self, record: dict[str, Any]) -> None:
        """One line of metrics."""
        ...

    def evaluate(self, student: nn.Module) -> dict[str, float]:
        """Metrics of the student, named without prefix; the same on every rank."""
        ...

    def keep_best(self, student: nn.Module, best: Mapping[str, Any]) -> None:
        """The student just became the best one (rank 0)."""
        ...

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Make `state` the newest checkpoint (rank 0)."""
        ...


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a finished training came to."""

    steps: int
    epochs: float
    seconds: float
    best: dict[str, Any] | None
    last: dict[str, float]


class Trainee(nn.Module):
    """Student and objective as one module, so that DDP sees one forward pass. Returns the sum of each term."""

    def __init__(self, student: nn.Module, objective: Objective) -> None:
        super().__init__()
        self.student = student
        self.objective = objective

    def forward(self, inputs: Mapping[str, Tensor], teacher: Mapping[Signal, Tensor]) -> Tensor:
        outputs = forward(self.student, inputs, self.objective.student_request)
        return torch.stack([term.sum for term in self.objective(outputs, teacher, inputs)])


def total_steps(num_rows: int, config: TrainConfig) -> int:
    """Optimizer steps of a whole run."""
    steps = config.epochs * num_batches(num_rows, config.batch_size)
    return steps if config.max_steps is None else min(steps, config.max_steps)


def train(
    trainee: Trainee,
    teacher: Teacher,
    loader: StepLoader,
    config: TrainConfig,
    metric: str,
    context: Context,
    precision: Precision,
    hooks: Hooks,
    state: Mapping[str, Any] | None = None,
) -> Outcome:
    """Train to the last step of `loader` and return the outcome.

    `state` is what `hooks.save` was last given; with it training goes on at the very next step. Interrupted is raised
    after a save when a worker was asked to stop; DivergenceError when the loss is no longer finite.
    """
    device = context.device
    num_steps, steps_per_epoch = loader.num_steps, num_batches(len(loader.data.lengths), config.batch_size)
    objective = trainee.objective
    optimizer = build_optimizer([trainee], config, device)
    parameters = trained_parameters([trainee])
    window = _Window(len(objective.terms), device)
    best: dict[str, Any] | None = None
    last_metrics: dict[str, float] = {}
    elapsed_before = 0.0
    if state is not None:
        trainee.load_state_dict(state["trainee"])
        optimizer.load_state_dict(state["optimizer"])
        precision.scaler.load_state_dict(state["scaler"])
        window.load(state["window"], on_this_rank=context.rank == 0)
        best, last_metrics, elapsed_before = state["best"], state["last_metrics"], state["seconds"]
    module = context.wrap(trainee, find_unused=not objective.uses_all_of_student)
    weights = torch.tensor([term.weight for term in objective.terms], device=device)
    started = saved_at = time.monotonic()
    trainee.train()

    def save(step: int) -> None:
        whole_window = window.over_all_ranks(context)
        if context.rank == 0:
            hooks.save(
                step,
                {
                    "trainee": trainee.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scaler": precision.scaler.state_dict(),
                    "window": whole_window,
                    "best": best,
                    "last_metrics": last_metrics,
                    "seconds": elapsed_before + time.monotonic() - started,
                },
            )

    for batch in loader:
        # Wishes of any rank travel with the counts, so that all ranks act on them in the same step.
        wishes = [context.stop_requested(), time.monotonic() - saved_at > 60 * config.checkpoint_minutes]
        summed = context.add_up(torch.cat([_counts(objective, batch), torch.tensor(wishes, dtype=torch.float64)]))
        counts, (stop, save_soon) = summed[:-2], summed[-2:].tolist()
        if stop:
            save(batch.step)
            raise Interrupted(f"stopped after step {batch.step} of {num_steps}; the state is saved")

        _seed_dropout(config.seed, batch.step, context.rank)
        learning_rate = config.learning_rate * learning_rate_factor(
            batch.step, num_steps, config.warmup, config.schedule
        )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        denominators = objective.denominators(counts)
        # DDP averages over ranks; multiplying by their number makes it the sum that the one division expects.
        factors = weights * torch.tensor(
            [context.world_size / count if count else 0.0 for count in denominators], device=device
        )
        sums = torch.zeros(len(objective.terms), device=device)
        for index, cpu_micro in enumerate(batch.micro_batches):
            micro = cpu_micro.to(device)
            last = index + 1 == len(batch.micro_batches)
            with contextlib.nullcontext() if last else _without_sync(module):
                signals = teacher.signals(micro)
                with precision.autocast():
                    micro_sums = module(micro.inputs, signals)
                precision.scaler.scale((micro_sums * factors).sum()).backward()
            sums += micro_sums.detach()
        precision.scaler.unscale_(optimizer)
        grad_norm = nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or math.inf)
        precision.scaler.step(optimizer)
        precision.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        window.add(sums, torch.tensor(denominators, dtype=torch.float64), batch)

        step = batch.step + 1
        at_end = step == num_steps
        position = {"step": step, "epoch": round(step / steps_per_epoch, 4)}
        if step % config.log_steps == 0 or at_end:
            record = window.record(objective, context, learning_rate, float(grad_norm), time.monotonic() - started)
            if not math.isfinite(record["loss"]):
                terms = {name: value for name, value in record.items() if name.startswith("loss/")}
                raise DivergenceError(
                    f"the loss is no longer finite at step {step}: {terms}; lower train.learning_rate"
                )
            if context.rank == 0:
                hooks.log(position | {"kind": "train", "time": elapsed_before + time.monotonic() - started} | record)
        due = step % config.eval_steps == 0 if config.eval_steps else step % steps_per_epoch == 0
        if due or at_end:
            last_metrics = hooks.evaluate(trainee.student)
            is_best = bool(last_metrics) and (best is None or last_metrics[metric] > best["value"])
            if is_best:
                best = position | {"metric": metric, "value": last_metrics[metric], "metrics": last_metrics}
                if context.rank == 0:
                    hooks.keep_best(trainee.student, best)
            if context.rank == 0:
                named = {f"eval/{name}": value for name, value in last_metrics.items()}
                seconds = elapsed_before + time.monotonic() - started
                hooks.log(position | {"kind": "eval", "time": seconds} | named | {"best": is_best})
            context.report(position | last_metrics)
        every = config.checkpoint_steps
        if at_end or save_soon or (step % every == 0 if every else due):
            save(step)
            saved_at = time.monotonic()

    seconds = elapsed_before + time.monotonic() - started
    return Outcome(num_steps, num_steps / steps_per_epoch, seconds, best, last_metrics)


class _Window:
    """Sums since the last log line. They stay on the device until they are logged."""

    def __init__(self, num_terms: int, device: torch.device) -> None:
        self.sums = torch.zeros(num_terms, dtype=torch.float64, device=device)
        self.counts = torch.zeros(num_terms, dtype=torch.float64)
        self.amounts = torch.zeros(3, dtype=torch.float64)  # rows, tokens, padded tokens
        self.since = time.monotonic()

    def add(self, sums: Tensor, counts: Tensor, batch: StepBatch) -> None:
        self.sums += sums
        self.counts += counts
        mine = sum(int(micro.inputs["logits_mask"].sum()) for micro in batch.micro_batches)
        self.amounts += torch.tensor([mine, batch.tokens, batch.padded_tokens], dtype=torch.float64)

    def over_all_ranks(self, context: Context) -> dict[str, list[float]]:
        sums = context.add_up(self.sums)
        amounts = context.add_up(self.amounts)
        return {"sums": sums.tolist(), "counts": self.counts.tolist(), "amounts": amounts.tolist()}

    def load(self, saved: Mapping[str, list[float]], on_this_rank: bool) -> None:
        self.counts = torch.tensor(saved["counts"], dtype=torch.float64)
        if on_this_rank:  # sums and amounts are added over ranks when they are read
            self.sums.copy_(torch.tensor(saved["sums"], dtype=torch.float64))
            self.amounts = torch.tensor(saved["amounts"], dtype=torch.float64)

    def record(
        self, objective: Objective, context: Context, learning_rate: float, grad_norm: float, now: float
    ) -> dict[str, Any]:
        """The means since the last record, which start anew. All ranks call it."""
        whole = self.over_all_ranks(context)
        seconds = time.monotonic() - self.since
        rows, tokens, padded = whole["amounts"]
        means = [total / count if count else 0.0 for total, count in zip(whole["sums"], whole["counts"], strict=True)]
        record: dict[str, Any] = {
            "loss": sum(term.weight * mean for term, mean in zip(objective.terms, means, strict=True))
        }
        record |= {f"loss/{name}": mean for name, mean in zip(objective.names, means, strict=True)}
        record |= {
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "samples_per_second": round(rows / seconds, 2),
            "tokens_per_second": round(tokens / seconds, 1),
            "padding_share": round(1 - tokens / padded, 4) if padded else 0.0,
            "memory_bytes": _memory_bytes(context.device),
        }
        self.__init__(len(means), context.device)  # type: ignore[misc]
        return record


def _counts(objective: Objective, batch: StepBatch) -> Tensor:
    return torch.stack([objective.counts(micro.inputs) for micro in batch.micro_batches]).sum(dim=0)


def _without_sync(module: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Gradients of all but the last micro-batch stay on their worker."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        manager: contextlib.AbstractContextManager[Any] = module.no_sync()
        return manager
    return contextlib.nullcontext()


def _seed_dropout(seed: int, step: int, rank: int) -> None:
    """Dropout as a function of (seed, step, rank): a resumed run draws what the unbroken one drew."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) & (2**64 - 1)
    mixed ^= mixed >> 31
    torch.manual_seed(mixed & (2**63 - 1))


def _memory_bytes(device: torch.device) -> int:
    """Highest device memory so far, or this process's resident memory on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import psutil

    return int(psutil.Process().memory_info().rss)

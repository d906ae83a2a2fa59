"""The training loop, read downwards: fetch, count, forward, backward, step, log, evaluate, save.

It serves every way to train: controls and distillation, one process or many, stored or live teacher, encoded rows of an
experiment or any dataloader with adaptors. It knows neither Ray nor files nor what a batch is; what it needs of them
comes in through `Program`, `Context`, `Hooks` and the state it is given.

Each loss is divided once a step, by its count over all micro-batches and workers. A program that knows the counts of a
step says them before its first forward pass. Where they come out of the forward pass (adaptors return masks) and the
step has one micro-batch, they are exchanged between forward and backward instead.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from raybrew.distillers.objective import Objective
from raybrew.errors import DivergenceError, Interrupted
from raybrew.training.context import Context
from raybrew.training.optim import trained_parameters
from raybrew.training.precision import Precision

__all__ = ["Hooks", "Micro", "Outcome", "Program", "Step", "Trained", "train"]


class Micro(Protocol):
    """One forward pass. `inputs` are what the trainee takes."""

    @property
    def inputs(self) -> Any: ...
    def to(self, device: torch.device) -> Any: ...


class Step(Protocol):
    """One worker's part of one optimizer step; steps count from 0."""

    @property
    def step(self) -> int: ...
    @property
    def micro_batches(self) -> Sequence[Any]: ...
    @property
    def amounts(self) -> tuple[int, int, int]:
        """Rows, tokens and tokens with padding; 0 where tokens are unknown."""
        ...


class Trained(Protocol):
    """The module under training: student and objective; `(inputs, targets)` gives sum and count of each term."""

    @property
    def student(self) -> nn.Module: ...
    @property
    def objective(self) -> Objective: ...


class Program(Protocol):
    """What is trained, on what, and by which schedule."""

    @property
    def trainee(self) -> Any: ...  # an nn.Module that is Trained
    @property
    def optimizer(self) -> torch.optim.Optimizer: ...
    @property
    def find_unused(self) -> bool:
        """Whether some trained parameters get no gradient in some steps."""
        ...

    @property
    def metric(self) -> str:
        """Which metric the best student has the highest value of."""
        ...

    @property
    def num_steps(self) -> int: ...
    @property
    def steps_per_epoch(self) -> int: ...
    @property
    def max_grad_norm(self) -> float | None: ...
    @property
    def save_seconds(self) -> float:
        """Longest time between two checkpoints."""
        ...

    def steps(self) -> Iterable[Any]:
        """The steps that are still to be done, each a `Step`."""
        ...

    def counts(self, batch: Any) -> Tensor | None:
        """Items in this worker's part, float64. None, for a step of one micro-batch: its forward pass tells."""
        ...

    def denominators(self, counts: Tensor) -> Tensor:
        """The count of each term, float64, given `counts` summed over all workers."""
        ...

    def shares(self, batch: Any) -> list[float] | None:
        """Share of the step that each term stands for: below 1 where a step is of several tasks. None: all 1."""
        ...

    def targets(self, micro: Any) -> Any:
        """What the teacher says of a micro-batch."""
        ...

    def start_step(self, step: int, rank: int) -> None:
        """Learning rates and random numbers of the step."""
        ...

    def end_step(self) -> None:
        """After the optimizer's step."""
        ...

    def logs_at(self, step: int) -> bool: ...
    def evaluates_at(self, step: int) -> bool: ...
    def saves_at(self, step: int) -> bool: ...
    def state_dict(self, context: Context) -> dict[str, Any]:
        """What changes beside trainee and optimizer. All ranks call it."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], rank: int) -> None: ...


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


def train(
    program: Program, context: Context, precision: Precision, hooks: Hooks, state: Mapping[str, Any] | None = None
) -> Outcome:
    """Train to the last step of `program` and return the outcome.

    `state` is what `hooks.save` was last given; with it training goes on at the very next step. Interrupted is raised
    after a save when a worker was asked to stop; DivergenceError when the loss is no longer finite.
    """
    device = context.device
    trainee, optimizer, num_steps = program.trainee, program.optimizer, program.num_steps
    objective = trainee.objective
    parameters = trained_parameters([trainee])
    window = _Window(len(objective.terms), device)
    best: dict[str, Any] | None = None
    last_metrics: dict[str, float] = {}
    elapsed_before = 0.0
    if state is not None:
        trainee.load_state_dict(state["trainee"])
        optimizer.load_state_dict(state["optimizer"])
        precision.scaler.load_state_dict(state["scaler"])
        program.load_state_dict(state["program"], context.rank)
        window.load(state["window"], on_this_rank=context.rank == 0)
        best, last_metrics, elapsed_before = state["best"], state["last_metrics"], state["seconds"]
    module = context.wrap(trainee, find_unused=program.find_unused)
    weights = torch.tensor(objective.weights(0.0), dtype=torch.float64, device=device)
    started = saved_at = time.monotonic()
    trainee.train()

    def save(step: int) -> None:
        whole_window, program_state = window.over_all_ranks(context), program.state_dict(context)
        if context.rank == 0:
            hooks.save(
                step,
                {
                    "trainee": trainee.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scaler": precision.scaler.state_dict(),
                    "program": program_state,
                    "window": whole_window,
                    "best": best,
                    "last_metrics": last_metrics,
                    "seconds": elapsed_before + time.monotonic() - started,
                },
            )

    for batch in program.steps():
        known, denominators, save_soon = program.counts(batch), None, False
        if known is not None:
            # Wishes of any rank travel with the counts, so that all ranks act on them in the same step.
            wishes = [context.stop_requested(), time.monotonic() - saved_at > program.save_seconds]
            summed = context.add_up(torch.cat([known, torch.tensor(wishes, dtype=torch.float64, device=known.device)]))
            denominators = program.denominators(summed[:-2])
            stop, save_soon = summed[-2:].tolist()
            if stop:
                save(batch.step)
                raise Interrupted(f"stopped after step {batch.step} of {num_steps}; the state is saved")

        program.start_step(batch.step, context.rank)
        if objective.has_schedules:
            weights = torch.tensor(objective.weights(batch.step / num_steps), dtype=torch.float64, device=device)
        shares = program.shares(batch)
        factors: Tensor | None = None
        sums = torch.zeros(len(objective.terms), device=device)
        for index, cpu_micro in enumerate(batch.micro_batches):
            micro = cpu_micro.to(device)
            last = index + 1 == len(batch.micro_batches)
            with contextlib.nullcontext() if last else _without_sync(module):
                targets = program.targets(micro)
                with precision.autocast():
                    micro_sums, micro_counts = module(micro.inputs, targets)
                if denominators is None:
                    denominators = context.add_up(micro_counts.double())
                if factors is None:
                    factors = _factors(weights, denominators, shares, context.world_size)
                precision.scaler.scale((micro_sums * factors).sum()).backward()
            sums += micro_sums.detach()
        precision.scaler.unscale_(optimizer)
        grad_norm = nn.utils.clip_grad_norm_(parameters, program.max_grad_norm or math.inf)
        precision.scaler.step(optimizer)
        precision.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        assert denominators is not None  # a step has a micro-batch, which told them at the latest
        window.add(sums, weights, denominators, shares, batch)

        step = batch.step + 1
        at_end = step == num_steps
        position = {"step": step, "epoch": round(step / program.steps_per_epoch, 4)}
        if program.logs_at(step) or at_end:
            rate = optimizer.param_groups[0]["lr"]
            record = window.record(objective, context, rate, float(grad_norm), time.monotonic() - started)
            if not math.isfinite(record["loss"]):
                terms = {name: value for name, value in record.items() if name.startswith("loss/")}
                raise DivergenceError(
                    f"the loss is no longer finite at step {step}: {terms}; lower the learning rate "
                    "(train.learning_rate)"
                )
            if context.rank == 0:
                hooks.log(position | {"kind": "train", "time": elapsed_before + time.monotonic() - started} | record)
        program.end_step()
        due = program.evaluates_at(step)
        if due or at_end:
            last_metrics = hooks.evaluate(trainee.student)
            metric = program.metric
            is_best = bool(last_metrics) and (best is None or last_metrics[metric] > best["value"])
            if is_best:
                best = position | {"metric": metric, "value": last_metrics[metric], "metrics": last_metrics}
                if context.rank == 0:
                    hooks.keep_best(trainee.student, best)
            if context.rank == 0:
                named = {f"eval/{name}": value for name, value in last_metrics.items()}
                seconds = elapsed_before + time.monotonic() - started
                hooks.log(position | {"kind": "eval", "time": seconds} | named | {"best": is_best})
            if context.report(position | {"share": step / num_steps} | last_metrics) and not at_end:
                save(step)
                raise Interrupted(f"stopped after step {step} of {num_steps} by its launcher; the state is saved")
        if at_end or save_soon or program.saves_at(step):
            save(step)
            saved_at = time.monotonic()

    seconds = elapsed_before + time.monotonic() - started
    return Outcome(num_steps, num_steps / program.steps_per_epoch, seconds, best, last_metrics)


def _factors(weights: Tensor, counts: Tensor, shares: list[float] | None, world_size: int) -> Tensor:
    """What each term's sum is multiplied by, float32.

    DDP averages over ranks; multiplying by their number makes it the sum that the one division expects.
    """
    per_item = torch.where(counts > 0, world_size / counts, 0.0).to(weights.device, torch.float32)
    factors = weights.float() * per_item
    return factors if shares is None else factors * torch.tensor(shares, device=weights.device)


class _Window:
    """Sums since the last log line. They stay on the device until they are logged."""

    def __init__(self, num_terms: int, device: torch.device) -> None:
        self.sums = torch.zeros(2, num_terms, dtype=torch.float64, device=device)  # as they are, and weighted
        self.counts = torch.zeros(num_terms, dtype=torch.float64)
        self.shares = torch.zeros(num_terms, dtype=torch.float64)
        self.amounts = torch.zeros(3, dtype=torch.float64)  # rows, tokens, padded tokens
        self.num_steps = 0
        self.since = time.monotonic()

    def add(self, sums: Tensor, weights: Tensor, counts: Tensor, shares: list[float] | None, batch: Step) -> None:
        exact = sums.double()
        # A term that weighs nothing may be anything, NaN included.
        self.sums += torch.stack([exact, torch.where(weights == 0, 0.0, exact * weights)])
        self.counts = self.counts.to(counts.device) + counts
        self.shares += 1.0 if shares is None else torch.tensor(shares, dtype=torch.float64)
        self.amounts += torch.tensor(batch.amounts, dtype=torch.float64)
        self.num_steps += 1

    def over_all_ranks(self, context: Context) -> dict[str, Any]:
        sums = context.add_up(self.sums)
        amounts = context.add_up(self.amounts)
        return {
            "sums": sums.tolist(),
            "counts": self.counts.tolist(),
            "shares": self.shares.tolist(),
            "amounts": amounts.tolist(),
            "num_steps": self.num_steps,
        }

    def load(self, saved: Mapping[str, Any], on_this_rank: bool) -> None:
        self.counts = torch.tensor(saved["counts"], dtype=torch.float64)
        self.shares = torch.tensor(saved["shares"], dtype=torch.float64)
        self.num_steps = saved["num_steps"]
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
        means, weighted = (
            [total / count if count else 0.0 for total, count in zip(sums, whole["counts"], strict=True)]
            for sums in whole["sums"]
        )
        shares = [share / self.num_steps for share in whole["shares"]]
        record: dict[str, Any] = {"loss": sum(mean * share for mean, share in zip(weighted, shares, strict=True))}
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


def _without_sync(module: nn.Module) -> contextlib.AbstractContextManager[Any]:
    """Gradients of all but the last micro-batch stay on their worker."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        manager: contextlib.AbstractContextManager[Any] = module.no_sync()
        return manager
    return contextlib.nullcontext()


def _memory_bytes(device: torch.device) -> int:
    """Highest device memory so far, or this process's resident memory on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import psutil

    return int(psutil.Process().memory_info().rss)

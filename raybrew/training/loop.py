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

from raybrew.config.judge import quality
from raybrew.distillers.objective import Objective
from raybrew.errors import Interrupted
from raybrew.training.context import Context
from raybrew.training.evaluation import Evaluation
from raybrew.training.optim import Precision, clip_gradients, factors_of, sent, trained_parameters
from raybrew.training.parallel import (
    full_state,
    is_sharded,
    leaves_unused,
    load_full_state,
    load_optimizer_state,
    optimizer_state,
    without_sync,
)
from raybrew.training.stages import Stages
from raybrew.training.window import Window

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
    def judge(self) -> str:
        """What the best student has the highest value of: a metric; or LOSS, of which it has the lowest."""
        ...

    @property
    def num_steps(self) -> int: ...
    @property
    def stages(self) -> Stages:
        """Which steps have which losses; those of the objective in the same order."""
        ...

    @property
    def max_grad_norm(self) -> float | None: ...
    @property
    def save_seconds(self) -> float:
        """Longest time between two checkpoints."""
        ...

    def epochs_after(self, step: int) -> float:
        """Epochs that `step` finished steps make."""
        ...

    def example_ids(self, step: int) -> Sequence[str]:
        """Ids of the global batch of `step`, counted from 0; empty where they are unknown."""
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
    def gives_up(self, quality: float | None) -> bool:
        """Whether training ends with this evaluation, before its last step. Every rank gets the same quality.

        It is what `judge` says, higher being better; None where nothing was evaluated.
        """
        ...

    def state_dict(self, context: Context) -> dict[str, Any]:
        """What changes beside trainee and optimizer. All ranks call it."""
        ...

    def load_state_dict(self, state: Mapping[str, Any], rank: int) -> None: ...


class Hooks(Protocol):
    """What the loop tells the run. `log` and `save` are called on rank 0 only, `evaluate` on all ranks."""

    def log(self, record: dict[str, Any]) -> None:
        """One line of metrics."""
        ...

    def evaluate(self, trainee: Any) -> Evaluation:
        """Metrics and losses of the trainee's student, named without prefix; the same on every rank."""
        ...

    def keep_best(self, student: nn.Module, best: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """The student, with these weights, just became the best one (rank 0)."""
        ...

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Make `state` the newest checkpoint (rank 0). Its tensors change with the next step: copy them."""
        ...


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a finished training came to."""

    steps: int
    epochs: float
    seconds: float
    best: dict[str, Any] | None
    last: Evaluation
    judged: int = 0  #: evaluations that could have chosen the best student
    ended_by: str | None = None  #: `early_stopping`, if that ended it before its last step


def train(
    program: Program, context: Context, precision: Precision, hooks: Hooks, state: Mapping[str, Any] | None = None
) -> Outcome:
    """Train to the last step of `program`, or until it gives up, and return the outcome.

    `state` is what `hooks.save` was last given; with it training goes on at the very next step. Interrupted is raised
    after a save when a worker was asked to stop; DivergenceError when loss or gradient are no longer finite, before
    anything is evaluated or saved of that.
    A stage begins with a fresh optimizer, as a training of its own would. Evaluations before the last stage, of which
    heads may not have learnt anything, are logged, but neither choose the best student nor end training. Where the last
    stage trains no head either, its evaluation loss chooses (`Program.judge`).
    """
    device = context.device
    trainee, optimizer, num_steps, stages = program.trainee, program.optimizer, program.num_steps, program.stages
    objective = trainee.objective
    parameters = trained_parameters([trainee])
    # Up to the first step of the next stage what is logged belongs to the one before.
    objective.enter(stages.at(max(0, (state["step"] if state is not None else 0) - 1)))
    window = Window(objective.names, device)
    best: dict[str, Any] | None = None
    evaluated = Evaluation({}, {})
    ended_by: str | None = None
    num_judged = 0
    step, elapsed_before = 0, 0.0
    if state is not None:
        load_full_state(trainee, state["trainee"])
        load_optimizer_state(optimizer, state["optimizer"])
        precision.scaler.load_state_dict(state["scaler"])
        program.load_state_dict(state["program"], context.rank)
        if state["window"]["num_steps"]:
            window.load(state["window"], on_this_rank=context.rank == 0)
        best, elapsed_before = state["best"], state["seconds"]
        if best is not None and best["metric"] != program.judge:
            best = None  # of a version that judged otherwise, which does not compare
        evaluated = Evaluation(state["last_metrics"], state.get("last_losses", {}))
        step, ended_by, num_judged = state["step"], state["ended_by"], state.get("judged", 0)
    module: nn.Module | None = None
    weights = sent(objective.weights(0.0), device)
    started = saved_at = time.monotonic()
    trainee.train()

    def seconds() -> float:
        return elapsed_before + time.monotonic() - started

    def save(step: int) -> None:
        window.check(context, precision.scale, program.example_ids)
        parts = {
            "trainee": full_state(trainee),
            "optimizer": optimizer_state(optimizer),
            "program": program.state_dict(context),
            "window": window.over_all_ranks(context),
        }
        if context.rank == 0:
            own = {"scaler": precision.scaler.state_dict(), "best": best, "ended_by": ended_by, "judged": num_judged}
            last = {"last_metrics": evaluated.metrics, "last_losses": evaluated.losses}
            hooks.save(step, parts | own | last | {"step": step, "seconds": seconds()})

    for batch in program.steps() if ended_by is None else ():
        if stages.begins_at(batch.step):
            objective.enter(stages.at(batch.step))
            optimizer.state.clear()
            window = Window(objective.names, device)
            weights = sent(objective.weights(0.0), device)
        known, denominators, save_soon = program.counts(batch), None, False
        if known is not None:
            # All ranks act on wishes of any in the same step. With counts on a device the host would wait for them.
            wished = [context.stop_requested(), time.monotonic() - saved_at > program.save_seconds]
            wishes = torch.tensor(wished, dtype=torch.float64)
            if known.device == wishes.device:
                known, wishes = context.add_up(torch.cat([known, wishes])).tensor_split([len(known)])
            else:
                known, wishes = context.add_up(known), context.add_up(wishes)
            denominators = program.denominators(known)
            stop, save_soon = wishes.tolist()
            if stop:
                save(batch.step)
                raise Interrupted(f"stopped after step {batch.step} of {num_steps}; the state is saved")

        program.start_step(batch.step, context.rank)
        if module is None:
            find_unused = program.find_unused
            if context.world_size > 1 and not (find_unused or is_sharded(trainee)):
                micro = batch.micro_batches[0].to(device)
                unused = leaves_unused(trainee, micro.inputs, program.targets(micro), precision.autocast())
                find_unused = float(context.add_up(torch.tensor([float(unused)]))[0]) > 0
            module = context.wrap(trainee, find_unused)
        if objective.has_schedules:
            weights = sent(objective.weights(batch.step / num_steps), device)
        shares = program.shares(batch)
        factors: Tensor | None = None
        sums = torch.zeros(len(objective.terms), device=device)
        for index, cpu_micro in enumerate(batch.micro_batches):
            micro = cpu_micro.to(device)
            last = index + 1 == len(batch.micro_batches)
            with contextlib.nullcontext() if last else without_sync(module):
                targets = program.targets(micro)
                with precision.autocast():
                    micro_sums, micro_counts = module(micro.inputs, targets)
                if denominators is None:
                    denominators = context.add_up(micro_counts.double())
                if factors is None:
                    factors = factors_of(weights, denominators, shares, context.world_size)
                precision.scaler.scale((micro_sums * factors).sum()).backward()
            sums += micro_sums.detach()
        precision.scaler.unscale_(optimizer)
        grad_norm = clip_gradients(parameters, program.max_grad_norm)
        precision.scaler.step(optimizer)
        precision.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        assert denominators is not None  # a step has a micro-batch, which told them at the latest

        step = batch.step + 1
        window.add(step, sums, weights, denominators, shares, batch.amounts, grad_norm)
        at_end = step == num_steps
        position = {"step": step, "epoch": round(program.epochs_after(step), 4)}
        stage, judged = stages.name_of(batch.step), stages.is_last(batch.step)
        if program.logs_at(step) or at_end or stages.begins_at(step):
            window.check(context, precision.scale, program.example_ids)
            record = window.record(context, optimizer.param_groups[0]["lr"], float(grad_norm))
            if context.rank == 0:
                hooks.log(position | {"kind": "train", "time": seconds()} | stage | record)
        program.end_step()
        if program.evaluates_at(step) or at_end:
            window.check(context, precision.scale, program.example_ids)
            evaluated = hooks.evaluate(trainee)
            judge, value = program.judge, evaluated.value(program.judge)
            score = None if value is None else quality(judge, value)
            num_judged += judged and score is not None
            is_best = judged and score is not None and (best is None or _better(score, quality(judge, best["value"])))
            if is_best:
                best = position | {"metric": judge, "value": value}
                best |= {"metrics": evaluated.metrics, "losses": evaluated.losses}
                student_weights = full_state(trainee.student)
                if context.rank == 0:
                    hooks.keep_best(trainee.student, best, student_weights)
            if context.rank == 0:
                named = {f"eval/{name}": each for name, each in evaluated.named(judge).items()}
                chosen = {"judge": judge, "best": is_best}
                hooks.log(position | {"kind": "eval", "time": seconds()} | stage | named | chosen)
            if judged and program.gives_up(score) and not at_end:
                ended_by = "early_stopping"
            reported = position | {"share": step / num_steps, "quality": score} | evaluated.named(judge)
            if judged and context.report(reported) and not at_end:
                save(step)
                raise Interrupted(f"stopped after step {step} of {num_steps} by its launcher; the state is saved")
        if at_end or ended_by or save_soon or program.saves_at(step):
            save(step)
            saved_at = time.monotonic()
        if ended_by:
            break

    return Outcome(step, program.epochs_after(step), seconds(), best, evaluated, num_judged, ended_by)


def _better(score: float, best: float) -> bool:
    """Whether one quality is higher than the other; any number is better than none (NaN)."""
    return score > best or (math.isnan(best) and not math.isnan(score))

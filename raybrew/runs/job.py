"""The training job of one worker: builds student, objective, data and teacher from a spec, and trains.

It runs in this process or in each Ray Train worker alike; what it is given are paths and the resolved experiment.
"""

from __future__ import annotations

from typing import Any

import torch

from raybrew.config.judge import LOSS
from raybrew.errors import Interrupted
from raybrew.runs.hooks import RunHooks
from raybrew.runs.program import Parts, RunSpec, build_parts, build_program
from raybrew.training.checkpoints import Checkpoints
from raybrew.training.context import Context
from raybrew.training.loop import train
from raybrew.training.optim import Precision
from raybrew.training.parallel import full_state

__all__ = ["run_job"]


def run_job(spec: RunSpec, context: Context) -> dict[str, Any]:
    """Train by `spec` on this worker. The result tells how it ended: `status` is `done` or `interrupted`."""
    config, run = spec.config, spec.run
    precision = Precision(spec.precision, context.device)
    torch.manual_seed(config.seed)
    parts = build_parts(spec, context)
    if not spec.reads_again:
        spec.resolved.models.release()
    checkpoints = Checkpoints(run.checkpoints, config.keep_checkpoints)
    # Of a student that is divided each worker takes its part.
    start_step, state = newest_state(checkpoints, context, config.parallel == "fsdp" and context.world_size > 1)
    hooks = RunHooks(spec, checkpoints, parts, context, precision)
    with hooks.open(start_step, spec.num_steps):
        state = hooks.with_best(state)
        if parts.description is not None and start_step == 0:
            hooks.note(f"student: {parts.description}")
        try:
            program = build_program(spec, parts, start_step, context)
            if start_step == 0:
                for line in _how_judged(parts, program.judge, spec.resolved.experiment.task.metric):
                    hooks.note(line)
            outcome = train(program, context, precision, hooks, state)
            if outcome.best is None:
                # Without evaluation rows the last student is the one to keep.
                student = program.trainee.student
                weights = full_state(student)
                if context.rank == 0:
                    hooks.keep_best(student, {"step": outcome.steps}, weights)
                    hooks.best.settle(outcome.steps)
        except Interrupted as stop:
            return {"status": "interrupted", "message": str(stop)}
        checkpoints.wait()  # the thread that writes them would slow down what is timed
        latency = hooks.latency() if context.rank == 0 else None
    return {
        "status": "done",
        "steps": outcome.steps,
        "epochs": outcome.epochs,
        "seconds": outcome.seconds,
        "best": outcome.best,
        "last": outcome.last._asdict(),
        "judged": outcome.judged,
        "ended_by": outcome.ended_by,
        "workers": context.world_size,
        "precision": precision.name,
        "device": str(context.device),
        "latency": latency,
    }


def newest_state(checkpoints: Checkpoints, context: Context, mapped: bool = False) -> tuple[int, dict[str, Any] | None]:
    """Step and state to go on from; (0, None) to begin. Rank 0 chooses, so that all ranks take the same one."""
    found = checkpoints.load_newest(mapped) if context.rank == 0 else None
    step = context.gather(None if found is None else found[0])[0]
    if step is None:
        return 0, None
    return step, found[1] if found is not None else checkpoints.load(step, mapped)


def _how_judged(parts: Parts, judge: str, metric: str) -> list[str]:
    """What a user should know about how checkpoints are chosen and on how many rows losses are computed."""
    evaluated = {part.name: part.evaluated.rows for part in parts.tasks if part.evaluated is not None}
    lines = []
    if evaluated and judge == LOSS:
        lines.append(
            f"no loss of the last stage reads the student's logits, so its head is not trained and {metric} says "
            "nothing: the checkpoint with the lowest evaluation loss is kept"
        )
    for name, rows in evaluated.items():
        if not rows.all():
            lines.append(
                f"{name + ': ' if name else ''}evaluation losses leave out {int((~rows).sum())} of {len(rows)} rows, "
                "for which the teacher has nothing to compare; metrics count all"
            )
    return lines

"""The training job of one worker: builds student, objective, data and teacher from a spec of plain values, and trains.

It runs in this process or in each Ray Train worker alike; all it is given are paths and the resolved experiment.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from raybrew.config import Experiment, TrainConfig
from raybrew.errors import Interrupted
from raybrew.export.folder import recover_student, save_student
from raybrew.models.loading import ModelSource, pick_precision
from raybrew.models.multi_task import MultiTaskStudent
from raybrew.tracking.jsonl import MetricsLog
from raybrew.tracking.trackers import build_trackers
from raybrew.training.checkpoints import Checkpoints
from raybrew.training.context import Context
from raybrew.training.loop import train
from raybrew.training.precision import Precision
from raybrew.training.run_folder import RunFolder
from raybrew.verbs.inputs import Inputs
from raybrew.verbs.parts import Parts, build_parts, build_program, num_steps_of
from raybrew.verbs.prepare import finetune_config

__all__ = ["joint_metrics", "run_job"]


def run_job(spec: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """Train by `spec` on this worker. The result tells how it ended: `status` is `done` or `interrupted`."""
    experiment = Experiment.model_validate(spec["experiment"])
    finetuning = spec["verb"] == "finetune"
    config: TrainConfig = finetune_config(experiment) if finetuning else experiment.train
    precision = Precision(pick_precision(config.precision, context.device), context.device)
    torch.manual_seed(config.seed)
    inputs = [Inputs.from_plain(values) for values in spec["inputs"]]
    source = ModelSource(**spec["source"]) if spec["source"] else None
    parts = build_parts(experiment, inputs, source, config, finetuning, context)
    run = RunFolder(Path(spec["run_folder"]), spec["run_id"])
    checkpoints = Checkpoints(run.checkpoints, config.keep_checkpoints)
    if context.rank == 0:
        for part in parts.tasks:
            recover_student(run.student / part.name)
    state, start_step = None, 0
    found = checkpoints.load_newest()
    if found is not None:
        start_step, state = found
    hooks = _RunHooks(spec, experiment, run, checkpoints, parts, context, precision)
    with hooks.open(start_step, num_steps_of(inputs, config)):
        if parts.description is not None and start_step == 0:
            hooks.note(f"student: {parts.description}")
        try:
            program = build_program(experiment, parts, config, start_step, context)
            outcome = train(program, context, precision, hooks, state)
        except Interrupted as stop:
            return {"status": "interrupted", "message": str(stop)}
    if outcome.best is None and context.rank == 0:
        # Without evaluation rows the last student is the one to keep.
        hooks.keep_best(program.trainee.student, {})
    return {
        "status": "done",
        "steps": outcome.steps,
        "epochs": outcome.epochs,
        "seconds": outcome.seconds,
        "best": outcome.best,
        "last": {"metrics": outcome.last},
        "workers": context.world_size,
        "precision": precision.name,
        "device": str(context.device),
    }


def joint_metrics(found: Mapping[str, Mapping[str, float]], judged_by: Mapping[str, str]) -> dict[str, float]:
    """Metrics of an only task (named "") as they are; of several `<task>.<metric>`, and the `mean` of those they are
    judged by. Tasks without evaluation rows have no part in it."""
    if "" in found:
        return dict(found[""])
    measured = {task: metrics for task, metrics in found.items() if metrics}
    if not measured:
        return {}
    mean = sum(metrics[judged_by[task]] for task, metrics in measured.items()) / len(measured)
    return {"mean": mean} | {
        f"{task}.{name}": value for task, metrics in measured.items() for name, value in metrics.items()
    }


class _RunHooks:
    """What the loop's findings do to the run folder."""

    def __init__(
        self,
        spec: Mapping[str, Any],
        experiment: Experiment,
        run: RunFolder,
        checkpoints: Checkpoints,
        parts: Parts,
        context: Context,
        precision: Precision,
    ) -> None:
        self.spec = spec
        self.experiment = experiment
        self.run = run
        self.checkpoints = checkpoints
        self.parts = parts
        self.context = context
        self.precision = precision
        self.metrics = MetricsLog(run.metrics)
        self.trackers: Any = None
        self.step = 0

    @contextlib.contextmanager
    def open(self, start_step: int, num_steps: int) -> Any:
        """Log and trackers of rank 0, from `start_step` on; lines of steps that will be repeated are dropped."""
        if self.context.rank != 0:
            yield
            return
        repeated = self.metrics.truncate_after(start_step)
        verb = "resumed" if start_step else "started"
        workers = self.context.world_size
        message = f"{verb} at step {start_step} of {num_steps} with {workers} worker{'s' if workers > 1 else ''}"
        if repeated:
            message += f"; {repeated} lines beyond the last checkpoint are computed again"
        self._event(start_step, verb, message)
        # What any part logs becomes an event of the run: a Ray worker's own output is not shown anywhere.
        notes = _EventHandler(self)
        logger = logging.getLogger("raybrew")
        logger.addHandler(notes)
        self.trackers = build_trackers(
            self.experiment.tracking, experiment=self.experiment.name, job_type=self.spec["verb"]
        )
        self.trackers.start(self.run.run_id, self.experiment.plain(), self.run.path, start_step > 0)
        status, message = "finished", "finished"
        try:
            yield
        except BaseException as error:
            status = "interrupted" if isinstance(error, Interrupted) else "failed"
            message = (str(error).splitlines() or [type(error).__name__])[0]
            raise
        finally:
            self.trackers.finish("done" if status == "finished" else status)
            logger.removeHandler(notes)
            self._event(self.step, status, message)
            self.metrics.close()

    def _event(self, step: int, event: str, message: str) -> None:
        self.step = step
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.metrics.write({"step": step, "kind": "event", "event": event, "message": message, "date": now})

    def note(self, message: str) -> None:
        """A line for the user, kept with the run (rank 0)."""
        if self.context.rank != 0:
            return
        self._event(self.step, "note", message)

    def log(self, record: dict[str, Any]) -> None:
        self.step = record["step"]
        self.metrics.write(record)
        self.trackers.log(record)

    def evaluate(self, student: nn.Module) -> dict[str, float]:
        found = {
            part.name: part.metrics(student, self.parts.tokenizer.pad_token_id, self.context, self.precision)
            for part in self.parts.tasks
        }
        return joint_metrics(found, {part.name: part.view.task.metric for part in self.parts.tasks})

    def keep_best(self, student: nn.Module, best: Mapping[str, Any]) -> None:
        for part in self.parts.tasks:
            model = student[part.name] if isinstance(student, MultiTaskStudent) else student
            save_student(model, self.parts.tokenizer, self.run.student / part.name, "")

    def save(self, step: int, state: dict[str, Any]) -> None:
        self.step = step
        self.metrics.sync()
        self.checkpoints.save(step, state)


class _EventHandler(logging.Handler):
    def __init__(self, hooks: _RunHooks) -> None:
        super().__init__(logging.INFO)
        self.hooks = hooks

    def emit(self, record: logging.LogRecord) -> None:
        self.hooks.note(record.getMessage())

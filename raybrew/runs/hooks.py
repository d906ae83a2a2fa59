"""What a training job leaves in its run folder: events, log lines, evaluations, checkpoints and the best student."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from raybrew.data.encoded import EncodedRows
from raybrew.data.rows import rows_of_ids
from raybrew.errors import DivergenceError, Interrupted, ModelError, writing
from raybrew.exports.folder import next_student, recover_student, save_student, take_next_student
from raybrew.files import write_json
from raybrew.models.composite import MultiTaskStudent
from raybrew.models.loading import ModelSource
from raybrew.models.weights import read_record
from raybrew.pipeline.evaluation import joint_metrics
from raybrew.runs.latency import time_student, timed_inputs
from raybrew.runs.program import Parts, RunSpec
from raybrew.secrets import scrub_message
from raybrew.tasks.scores import RowScores, save_scores
from raybrew.tracking.jsonl import MetricsLog
from raybrew.tracking.trackers import build_trackers
from raybrew.training.checkpoints import Checkpoints
from raybrew.training.context import FAILURES_FILE, Context
from raybrew.training.evaluation import Evaluation, losses_of
from raybrew.training.optim import Precision
from raybrew.training.run_folder import RunFolder

__all__ = ["RunHooks", "describe_failure"]


class RunHooks:
    """What the loop's findings do to the run folder."""

    def __init__(
        self,
        spec: RunSpec,
        checkpoints: Checkpoints,
        parts: Parts,
        context: Context,
        precision: Precision,
    ) -> None:
        self.spec = spec
        self.experiment = spec.resolved.experiment
        self.run = run = spec.run
        self.checkpoints = checkpoints
        self.parts = parts
        self.context = context
        self.precision = precision
        self.metrics = MetricsLog(run.metrics)
        self.trackers: Any = None
        self.scores: dict[str, Callable[[], RowScores]] = {}  #: of the last evaluation, by task
        self.best = BestStudent(run, [part.name for part in parts.tasks])
        self.place = run.place
        self.step = 0

    @contextlib.contextmanager
    def open(self, start_step: int, num_steps: int) -> Any:
        """Log and trackers of rank 0, from `start_step` on; lines of steps that will be repeated are dropped."""
        if self.context.rank != 0:
            yield
            return
        repeated = self.metrics.truncate_after(start_step)
        failures = self._failures()
        verb = "resumed" if start_step or failures else "started"
        workers = self.context.world_size
        message = f"{verb} at step {start_step} of {num_steps} with {workers} worker{'s' if workers > 1 else ''}"
        message = "; ".join([*failures, message])
        if repeated:
            message += f"; {repeated} lines beyond the last checkpoint are computed again"
        self._event(start_step, verb, message, total_steps=num_steps)
        # What any part logs becomes an event of the run: a Ray worker's own output is not shown anywhere.
        notes = _EventHandler(self)
        logger = logging.getLogger("raybrew")
        logger.addHandler(notes)
        self.trackers = build_trackers(
            self.experiment.tracking, experiment=self.experiment.name, job_type=self.spec.verb
        )
        self.trackers.start(self.run.run_id, self.experiment.plain(), self.run.path, start_step > 0)
        status, message = "finished", "finished"
        try:
            yield
            self.checkpoints.wait()
        except BaseException as error:
            status = "interrupted" if isinstance(error, Interrupted) else "failed"
            message = (str(error).splitlines() or [type(error).__name__])[0]
            if isinstance(error, DivergenceError):
                self._keep_examples(error)
            self.checkpoints.wait()
            raise
        finally:
            self.trackers.finish("done" if status == "finished" else status)
            logger.removeHandler(notes)
            self._event(self.step, status, message)
            self.metrics.close()

    def _failures(self) -> list[str]:
        """What happened to the workers that these ones replace, each told once."""
        path = self.run.path / FAILURES_FILE
        if not path.is_file():
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
        path.unlink()
        return [describe_failure(json.loads(line)) for line in lines]

    def _event(self, step: int, event: str, message: str, **facts: int) -> None:
        """`message` is for people; what programs need of an event are `facts`."""
        self.step = step
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        told = {"event": event, "message": scrub_message(message), "date": now}
        self.metrics.write({"step": step, "kind": "event", **told, **facts})

    def note(self, message: str) -> None:
        """A line for the user, kept with the run (rank 0)."""
        if self.context.rank != 0:
            return
        self._event(self.step, "note", message)

    def log(self, record: dict[str, Any]) -> None:
        self.step = record["step"]
        self.metrics.write(record)
        self.trackers.log(record)

    def evaluate(self, trainee: Any) -> Evaluation:
        objective = trainee.objective
        objective.start_step(1.0)  # the temperature at the end, for all evaluations; the next step takes its own
        metrics: dict[str, dict[str, float]] = {}
        totals = torch.zeros(2, len(objective.terms), dtype=torch.float64, device=self.context.device)
        for part in self.parts.tasks:
            found = part.evaluate(trainee, self.parts.tokenizer, self.context, self.precision)
            metrics[part.name] = found.metrics
            if found.totals is not None:
                totals += found.totals
            if found.scores is not None:
                self.scores[part.name] = found.scores
        judged_by = {part.name: part.task.metric for part in self.parts.tasks}
        return Evaluation(joint_metrics(metrics, judged_by), losses_of(objective, totals, trainee.shares))

    def with_best(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        """`state` with a best student only if that is the one on the disk (all ranks call it)."""
        best = None if state is None else state["best"]
        step = None if best is None else best["step"]
        lost = False
        if self.context.rank == 0:
            self.best.settle(step)
            lost = step is not None and not self.best.is_of(step)
            if lost:
                self.note(f"the best student, of step {step}, is gone; the best from here on is kept")
        lost = self.context.gather(lost)[0]
        return state if state is None or not lost else {**state, "best": None}

    def keep_best(self, student: nn.Module, best: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        self.run.check_there(self.place)
        self.checkpoints.wait()  # the student of that checkpoint is in place then
        for part in self.parts.tasks:
            model, own = student, weights
            if isinstance(student, MultiTaskStudent):
                model, own = student[part.name], student.weights_of(part.name, weights)
            scores = self.scores.get(part.name)
            self.best.put_aside(part.name, best["step"], model, self.parts.tokenizer, own, scores)

    def latency(self) -> dict[str, Any] | None:
        """Time of the kept student and its teachers per example, where they were trained; None if that fails."""
        inputs = timed_inputs([part.inputs for part in self.parts.tasks])
        student = ModelSource(str(self.run.student / inputs.label))
        kind = next(part.task.kind for part in self.parts.tasks if part.inputs is inputs)
        device, precision = self.context.device, self.precision.name
        try:
            return time_student(student, inputs, kind, device, precision, alone=self.spec.alone)
        except ModelError as error:  # a trained student is worth more than its time
            self.note(f"warning: the time per example was not measured: {error}")
            return None

    def save(self, step: int, state: dict[str, Any]) -> None:
        self.step = step
        self.run.check_there(self.place)
        self.metrics.sync()  # lines of this step are on the disk before the checkpoint that counts on them
        best = state["best"]
        self.checkpoints.save(step, state, lambda: self.best.settle(None if best is None else best["step"]))

    def _keep_examples(self, error: DivergenceError) -> None:
        """`divergence.json`: the batch in which the loss stopped being a number, with its texts."""
        examples = [found for part in self.parts.tasks for found in self._examples(part.inputs.training, error)]
        content = {
            "step": error.step,
            "terms": {name: str(value) for name, value in error.terms.items()},
            "grad_norm": str(error.grad_norm),
            "examples": examples,
        }
        with writing(self.run.path):
            write_json(self.run.path / "divergence.json", content)

    def _examples(self, training: EncodedRows, error: DivergenceError) -> list[dict[str, str]]:
        """Those of `training` that the error names, each with its id and text."""
        wanted = {bytes.fromhex(name) for name in error.example_ids}
        rows = rows_of_ids(training.ids, wanted).tolist()
        if not rows:
            return []
        tokens, lengths = training.gather(np.array(rows, dtype=np.int64))["input_ids"]
        ends = np.cumsum(lengths)
        decode = self.parts.tokenizer.decode
        texts = [decode(tokens[end - length : end]) for end, length in zip(ends, lengths, strict=True)]
        return [{"id": name, "text": text} for name, text in zip(training.names(rows), texts, strict=True)]


def describe_failure(reasons: Mapping[str, str]) -> str:
    """One line about workers that failed together; `reasons` gives the error of each rank."""
    ranks = sorted(reasons, key=int)
    if not ranks:
        return "the workers failed"
    who = f"worker {ranks[0]}" if len(ranks) == 1 else f"workers {', '.join(ranks)}"
    last_line = reasons[ranks[0]].splitlines()[-1].strip()
    return f"{who} failed ({last_line[:200]})"


class _EventHandler(logging.Handler):
    def __init__(self, hooks: RunHooks) -> None:
        super().__init__(logging.INFO)
        self.hooks = hooks

    def emit(self, record: logging.LogRecord) -> None:
        self.hooks.note(record.getMessage())


class BestStudent:
    """The best student of each task of `tasks` ("" for an only one) in the folder of `run`, with its scores.

    On the disk it is always the one that the newest checkpoint names. A new best one waits beside the student's folder
    until the checkpoint that names it is on the disk, so a run that was killed in between, and goes on from the
    checkpoint before, has the student of that checkpoint.
    """

    def __init__(self, run: RunFolder, tasks: Collection[str]) -> None:
        self.run = run
        self.tasks = tasks

    def put_aside(
        self,
        task: str,
        step: int,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        weights: Mapping[str, Tensor],
        scores: Callable[[], RowScores] | None,
    ) -> None:
        """Write the student of `step`; it waits for `settle`."""
        waiting, scored = next_student(self.run.student / task), self._next_scores(task)
        shutil.rmtree(waiting, ignore_errors=True)
        if scores is not None:
            save_scores(scored, scores())
        save_student(model, tokenizer, waiting, "", weights, {"step": step})

    def settle(self, step: int | None) -> None:
        """Let the students that wait take their places, if they are those of `step`; others are removed."""
        for task in self.tasks:
            folder, scored = self.run.student / task, self._next_scores(task)
            recover_student(folder)
            waiting = next_student(folder)
            recover_student(waiting)
            if step is not None and self._step_of(waiting) == step:
                if scored.is_file():
                    os.replace(scored, scored.with_name("eval.npz"))
                take_next_student(folder)
            shutil.rmtree(waiting, ignore_errors=True)
            scored.unlink(missing_ok=True)

    def is_of(self, step: int) -> bool:
        """Whether the students in place are those of `step`; older versions did not note it."""
        folders = [self.run.student / task for task in self.tasks]
        return all((each / "config.json").is_file() and self._step_of(each) in (None, step) for each in folders)

    def _step_of(self, folder: Path) -> Any:
        return (read_record(folder) or {}).get("step")

    def _next_scores(self, task: str) -> Path:
        return self.run.path / "scores" / task / ".eval.next.npz"

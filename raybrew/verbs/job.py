"""The training job of one worker: builds student, objective, data and teacher from a spec of plain values, and trains.

It runs in this process or in each Ray Train worker alike; all it is given are paths and the resolved experiment.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raybrew.config import Experiment, TrainConfig
from raybrew.data.arrow import write_json
from raybrew.data.encoded import EncodedRows, open_encoded
from raybrew.data.loader import StepLoader
from raybrew.distillers.matches import resolve_matches
from raybrew.distillers.objective import Objective, build_objective
from raybrew.distillers.teachers import LiveTeacher, SignalsInBatch, StoredSignals, Teacher
from raybrew.errors import DivergenceError, Interrupted
from raybrew.export.folder import recover_student, save_student
from raybrew.models.forward import checkpoint_layers, compiled
from raybrew.models.loading import ModelSource, load_config, load_model, load_tokenizer, pick_precision
from raybrew.models.shapes import TeacherDims, dims_of
from raybrew.models.students import build_student
from raybrew.signals import PAIR_KINDS, Signal
from raybrew.store.reader import Store
from raybrew.tasks.base import Labels
from raybrew.tracking.jsonl import MetricsLog
from raybrew.tracking.trackers import build_trackers
from raybrew.training.checkpoints import Checkpoints
from raybrew.training.context import FAILURES_FILE, Context
from raybrew.training.encoded import EncodedProgram, Trainee, build_order, total_steps
from raybrew.training.evaluation import compute_logits
from raybrew.training.loop import train
from raybrew.training.parallel import full_state, shard
from raybrew.training.precision import Precision
from raybrew.training.run_folder import RunFolder
from raybrew.verbs.prepare import finetune_config, task_of

__all__ = ["run_job"]


def run_job(spec: Mapping[str, Any], context: Context) -> dict[str, Any]:
    """Train by `spec` on this worker. The result tells how it ended: `status` is `done` or `interrupted`."""
    experiment = Experiment.model_validate(spec["experiment"])
    finetuning = spec["verb"] == "finetune"
    config: TrainConfig = finetune_config(experiment) if finetuning else experiment.train
    labels = Labels(tuple(spec["labels"]))
    precision = Precision(pick_precision(config.precision, context.device), context.device)
    source = ModelSource(**spec["teacher"]) if spec["teacher"] else None
    torch.manual_seed(config.seed)
    description = None
    if finetuning:
        assert source is not None  # a finetune spec always names its starting point
        student: nn.Module = load_model(source, experiment.task.kind, labels.names)
        tokenizer = load_tokenizer(source)
        objective = build_objective(_labels_only(experiment), head=task_of(experiment).head)
    else:
        student, tokenizer, description = build_student(
            experiment.student, source, experiment.task.kind, labels.names, config.seed
        )
        objective = objective_of(experiment, student.config, source)
    if config.gradient_checkpointing:
        checkpoint_layers(student)
    student.to(context.device)
    objective.to(context.device)

    data = open_encoded(Path(spec["training_rows"]))
    stored, teacher = _teacher(spec, experiment, objective, source, data, context)
    run = RunFolder(Path(spec["run_folder"]), spec["run_id"])
    checkpoints = Checkpoints(run.checkpoints, config.keep_checkpoints)
    if context.rank == 0:
        recover_student(run.student)
    start_step, state = newest_state(checkpoints, context)
    order = build_order(data.lengths, config)
    loader = StepLoader(
        data,
        order,
        rank=context.rank,
        world_size=context.world_size,
        num_steps=total_steps(order, config),
        start_step=start_step,
        pad_token_id=tokenizer.pad_token_id,
        micro_batch_size=config.micro_batch_size,
        micro_batch_tokens=config.micro_batch_tokens,
        teacher=stored,
        pin_memory=context.device.type == "cuda",
    )
    hooks = _RunHooks(spec, experiment, run, checkpoints, tokenizer, labels, context, precision, data)
    with hooks.open(start_step, loader.num_steps):
        if description is not None and start_step == 0:
            hooks.note(f"student: {description}")
        try:
            trainee = Trainee(student, objective, compiled(student) if config.compile else None)
            if config.parallel == "fsdp" and context.world_size > 1:
                shard(trainee, student, context.device)
            program = EncodedProgram(trainee, teacher, loader, config, experiment.task.metric)
            outcome = train(program, context, precision, hooks, state)
            if outcome.best is None:
                # Without evaluation rows the last student is the one to keep.
                weights = full_state(student)
                if context.rank == 0:
                    hooks.keep_best(student, {}, weights)
        except Interrupted as stop:
            return {"status": "interrupted", "message": str(stop)}
    return {
        "status": "done",
        "steps": outcome.steps,
        "epochs": outcome.epochs,
        "seconds": outcome.seconds,
        "best": outcome.best,
        "last": {"metrics": outcome.last},
        "ended_by": outcome.ended_by,
        "workers": context.world_size,
        "precision": precision.name,
        "device": str(context.device),
    }


def newest_state(checkpoints: Checkpoints, context: Context) -> tuple[int, dict[str, Any] | None]:
    """Step and state to go on from; (0, None) to begin. Rank 0 chooses, so that all ranks take the same one."""
    found = checkpoints.load_newest() if context.rank == 0 else None
    step = context.gather(None if found is None else found[0])[0]
    if step is None:
        return 0, None
    return step, found[1] if found is not None else checkpoints.load(step)


def objective_of(experiment: Experiment, student_config: Any, teacher: ModelSource | None) -> Objective:
    """The objective of `distill`: matches resolved for the depths and widths of these two models."""
    if not any(match.weight for match in experiment.distill.matches):
        return build_objective(experiment.distill, head=task_of(experiment).head)
    assert teacher is not None  # checked with the configuration: matches need a teacher
    teacher_config = load_config(teacher)
    student, wanted = dims_of(student_config), dims_of(teacher_config)
    matches = resolve_matches(experiment.distill.matches, student.layers, wanted.layers)
    return build_objective(
        experiment.distill,
        matches,
        {match.student: _size(student, match.student) for match in matches},
        {match.teacher: _size(wanted, match.teacher) for match in matches},
        seed=experiment.train.seed,
        teacher_heads=wanted.heads,
        head=task_of(experiment).head,
    )


def _size(dims: TeacherDims, signal: Signal) -> int:
    return dims.heads if signal.kind in PAIR_KINDS else dims.hidden


def _labels_only(experiment: Experiment) -> Any:
    return experiment.distill.model_copy(update={"kd_weight": 0.0, "hard_label_weight": 1.0, "matches": ()})


def _teacher(
    spec: Mapping[str, Any],
    experiment: Experiment,
    objective: Objective,
    source: ModelSource | None,
    data: EncodedRows,
    context: Context,
) -> tuple[StoredSignals | None, Teacher]:
    """What the loader puts into batches, and what is asked in each step."""
    if not objective.teacher_request or source is None:
        return None, SignalsInBatch()
    if spec["store"] is not None:
        store = Store.open(spec["store"], spec["fingerprint"], experiment.store.element_type, experiment.store.cache)
        return StoredSignals(
            store, store.locate_all(data.arrow.flat("id")), objective.teacher_request
        ), SignalsInBatch()
    model: nn.Module = load_model(source, experiment.task.kind)
    model.to(context.device)
    precision = Precision(pick_precision(experiment.teacher.precision, context.device), context.device)
    return None, LiveTeacher(model, objective.teacher_request, precision.autocast)


class _RunHooks:
    """What the loop's findings do to the run folder."""

    def __init__(
        self,
        spec: Mapping[str, Any],
        experiment: Experiment,
        run: RunFolder,
        checkpoints: Checkpoints,
        tokenizer: Any,
        labels: Labels,
        context: Context,
        precision: Precision,
        training: EncodedRows,
    ) -> None:
        self.spec = spec
        self.training = training
        self.experiment = experiment
        self.run = run
        self.checkpoints = checkpoints
        self.tokenizer = tokenizer
        self.labels = labels
        self.context = context
        self.precision = precision
        self.task = task_of(experiment)
        self.evaluation = open_encoded(Path(spec["evaluation_rows"])) if spec["evaluation_rows"] else None
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
        for failure in self._failures():
            self._event(start_step, "failure", failure)
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
        if self.evaluation is None:
            return {}
        logits = compute_logits(student, self.evaluation, self.tokenizer.pad_token_id, self.context, self.precision)
        return self.task.metrics(logits, self.evaluation, self.evaluation.rows, self.labels)

    def keep_best(self, student: nn.Module, best: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        save_student(student, self.tokenizer, self.run.student, "", weights)

    def save(self, step: int, state: dict[str, Any]) -> None:
        self.step = step
        self.metrics.sync()  # lines of this step are on the disk before the checkpoint that counts on them
        self.checkpoints.save(step, state)

    def _keep_examples(self, error: DivergenceError) -> None:
        """`divergence.json`: the batch in which the loss stopped being a number, with its texts."""
        wanted = {bytes.fromhex(name): name for name in error.example_ids}
        rows = [row for row, each in enumerate(self.training.ids) if each.tobytes() in wanted]
        tokens, lengths = self.training.gather(np.array(rows, dtype=np.int64))["input_ids"]
        ends = np.cumsum(lengths)
        texts = [self.tokenizer.decode(tokens[end - length : end]) for end, length in zip(ends, lengths, strict=True)]
        ids = [self.training.ids[row].tobytes().hex() for row in rows]
        content = {
            "step": error.step,
            "terms": {name: str(value) for name, value in error.terms.items()},
            "grad_norm": str(error.grad_norm),
            "examples": [{"id": name, "text": text} for name, text in zip(ids, texts, strict=True)],
        }
        write_json(self.run.path / "divergence.json", content)


def describe_failure(reasons: Mapping[str, str]) -> str:
    """One line about workers that failed together; `reasons` gives the error of each rank."""
    ranks = sorted(reasons, key=int)
    if not ranks:
        return "the workers failed; they are started again from the last checkpoint"
    who = f"worker {ranks[0]}" if len(ranks) == 1 else f"workers {', '.join(ranks)}"
    last_line = reasons[ranks[0]].splitlines()[-1].strip()
    return f"{who} failed ({last_line[:200]}); training starts again from the last checkpoint"


class _EventHandler(logging.Handler):
    def __init__(self, hooks: _RunHooks) -> None:
        super().__init__(logging.INFO)
        self.hooks = hooks

    def emit(self, record: logging.LogRecord) -> None:
        self.hooks.note(record.getMessage())

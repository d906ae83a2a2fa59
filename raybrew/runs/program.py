"""The tasks of a training job, ready to train: model, objective, rows and teachers of each, and the program of all."""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from raybrew.config import FinetuneConfig, TrainConfig
from raybrew.config.judge import LOSS
from raybrew.data.loader import SignalSource, StepLoader
from raybrew.data.masking import EVALUATION, as_shown
from raybrew.data.multi_task import MultiTaskLoader, TaskSchedule
from raybrew.data.sampler import Order
from raybrew.distillers.objective import Objective, build_objective
from raybrew.distillers.teachers import Teacher
from raybrew.models.composite import Hybrid, MultiTaskStudent
from raybrew.models.forward import checkpoint_layers, compiled
from raybrew.models.loading import ModelSource, load_model
from raybrew.models.students import build_student, new_model
from raybrew.pipeline.inputs import Inputs
from raybrew.pipeline.objective import labels_only, objective_of
from raybrew.pipeline.resolve import Resolved, ResolvedTask
from raybrew.runs.teacher_signals import TeacherSignals
from raybrew.tasks.scores import RowScores
from raybrew.training.context import Context
from raybrew.training.encoded import EncodedProgram, Trainee, build_order, check_room, total_steps
from raybrew.training.evaluation import Asked, compute_logits, measure_rows
from raybrew.training.multi_task import MultiTaskProgram, MultiTaskTrainee
from raybrew.training.optim import Precision
from raybrew.training.parallel import shard
from raybrew.training.run_folder import RunFolder
from raybrew.training.stages import Stages, Theseus

__all__ = ["Part", "Parts", "RunSpec", "build_parts", "build_program", "num_steps_of"]


@dataclasses.dataclass(frozen=True)
class RunSpec:
    """What a training run is made from: all that its workers are given."""

    resolved: Resolved
    verb: Literal["finetune", "distill"]
    config: TrainConfig
    run: RunFolder
    inputs: tuple[Inputs, ...]
    """Those of each task."""
    source: ModelSource | None
    """What is fine-tuned, or what a shape is made after."""
    vocabulary: Path | None
    """The folder of the student's trimmed tokenizer."""
    alone: bool = True
    """Whether nothing else that raybrew started runs beside this run."""
    precision: str = "auto"
    """That of the place of training, once this is known."""
    reads_again: bool = False
    """Whether models that are loaded for training are read after it."""

    @property
    def key(self) -> str:
        """Where the experiment has `config`."""
        return "teacher.finetune" if self.verb == "finetune" else "train"

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return num_steps_of(self.resolved.tau, self.inputs, self.config)


@dataclasses.dataclass(frozen=True)
class Part:
    """One task, ready to train."""

    task: ResolvedTask
    inputs: Inputs
    model: Any  # a Hugging Face model
    objective: Objective
    stored: tuple[SignalSource | None, ...]  #: what the loader puts into batches, in each stage
    teachers: tuple[Teacher, ...]  #: what is asked in each step, in each stage
    evaluated: Evaluated | None = None  #: None without evaluation rows
    theseus: Theseus | None = None

    @property
    def name(self) -> str:
        """The task's label: its name among several, empty for an only one."""
        return self.inputs.label

    def evaluate(
        self, trainee: Trainee | MultiTaskTrainee, tokenizer: Any, context: Context, precision: Precision
    ) -> Measured:
        """What this task's evaluation rows show; nothing without such rows.

        A student that trains inside its teacher is evaluated alone.
        """
        rows, compared = self.inputs.evaluation, self.inputs.compared
        if rows is None or compared is None or self.evaluated is None:
            return Measured({})
        model: Any = trainee.student
        measure: Any  # as `Asked` says
        if isinstance(trainee, MultiTaskTrainee):
            model, measure = model[self.name], functools.partial(trainee.measure_task, self.name)
        else:
            measure = trainee.measure
        task, stage, pad = self.task.task, trainee.objective.stage, tokenizer.pad_token_id
        head = self.task.head(tokenizer)
        asked = Asked(self.evaluated.rows, self.evaluated.stored[stage], self.teachers[stage], measure)
        shown = as_shown(compared, task, tokenizer, *EVALUATION)
        outputs, totals = measure_rows(trainee, model, shown, pad, context, precision, head=head, asked=asked)
        if compared.key != rows.key:
            # Units that fit the teachers' tokenizers too are not those that the student alone would be given.
            alone = as_shown(rows, task, tokenizer, *EVALUATION)
            outputs = compute_logits(model, alone, pad, context, precision, head)
        labels = self.inputs.labels
        metrics = task.metrics(outputs, rows, rows.rows, labels)
        return Measured(metrics, totals, lambda: task.row_scores(outputs, rows, rows.rows, labels))


class Measured(NamedTuple):
    """One evaluation of one task."""

    metrics: dict[str, float]
    totals: Tensor | None = None  #: sum and count (2, terms) of each term of the present stage
    scores: Callable[[], RowScores] | None = None  #: what each row adds to the metrics


class Evaluated(NamedTuple):
    """What the teachers say of evaluation rows."""

    rows: npt.NDArray[np.bool_]  #: which ones reach the losses
    stored: tuple[SignalSource | None, ...]  #: what is put into their batches, in each stage


class Parts(NamedTuple):
    """All tasks, the one tokenizer of the student, and a line on what it is."""

    tasks: tuple[Part, ...]
    tokenizer: Any
    description: str | None


def build_parts(spec: RunSpec, context: Context) -> Parts:
    """The tasks of a job on this worker's device."""
    resolved, config, source, vocabulary = spec.resolved, spec.config, spec.source, spec.vocabulary
    parts, tokenizer, description = [], None, None
    for task, each in zip(resolved.tasks, spec.inputs, strict=True):
        labels = each.labels.names
        if spec.verb == "finetune":
            assert source is not None  # its starting point
            random = isinstance(config, FinetuneConfig) and config.init == "random"
            model: Any = (
                new_model(source, task.kind, labels, config.seed) if random else load_model(source, task.kind, labels)
            )
            tokenizer = tokenizer or resolved.models.own_tokenizer(source)
            task = task.changed(distill=labels_only(task.distill))
            objective = build_objective(task.distill, head=task.head(tokenizer))
        else:
            built = build_student(
                task.student, source, task.kind, labels, config.seed, vocabulary, models=resolved.models
            )
            model, tokenizer, description = built.model, tokenizer or built.tokenizer, description or built.description
            sources = {given.label: given.source for given in each.teachers}
            objective = objective_of(task, model.config, sources, task.head(tokenizer))
        if config.gradient_checkpointing:
            checkpoint_layers(model)
        signals = TeacherSignals(task, each, objective, context, vocabulary)
        evaluated = None
        if each.evaluation is not None:
            evaluated = Evaluated(signals.evaluated(), signals.sources(evaluation=True))
        model, objective = model.to(context.device), objective.to(context.device)
        theseus = None
        if task.distill.trains_in_teacher:
            configs = [losses.theseus for losses in task.distill.parts]
            theseus = Theseus(Hybrid(model, signals.model), configs, config.seed)
        parts.append(Part(task, each, model, objective, signals.sources(), signals.teachers(), evaluated, theseus))
    if len(parts) > 1 and description is not None:
        description = f"a head each for {', '.join(part.name for part in parts)} on one encoder: {description}"
    return Parts(tuple(parts), tokenizer, description)


def num_steps_of(tau: float | None, inputs: Sequence[Inputs], config: TrainConfig) -> int:
    """Optimizer steps of a whole run; `tau` is that of several tasks."""
    orders = _orders(inputs, config)
    return total_steps(orders[""] if tau is None else TaskSchedule(orders, tau, config.seed), config)


def build_program(spec: RunSpec, parts: Parts, start_step: int, context: Context) -> EncodedProgram:
    """What the loop trains: the model of one task, or a MultiTaskStudent of several."""
    config, num_steps, tau = spec.config, spec.num_steps, spec.resolved.tau
    orders = _orders(spec.inputs, config)
    judge = spec.resolved.experiment.task.metric if parts.tasks[0].task.distill.trains_head else LOSS
    load = functools.partial(_loader, tokenizer=parts.tokenizer, config=config, context=context, num_steps=num_steps)
    if tau is None:
        part = parts.tasks[0]
        stages = _stages(part, num_steps)
        loader = load(part, order=orders[""], start_step=start_step, ends=stages.ends)
        trainee = Trainee(part.model, part.objective, compiled(part.model) if config.compile else None, part.theseus)
        if config.parallel == "fsdp" and context.world_size > 1:
            shard(trainee, part.model, context.device)
        return EncodedProgram(trainee, part.teachers, loader, config, judge, stages)
    by_name = {part.name: part for part in parts.tasks}
    schedule = TaskSchedule(orders, tau, config.seed)
    done = schedule.before(start_step)
    stages = _stages(parts.tasks[0], num_steps)
    ends = [schedule.before(end) for end in stages.ends]
    loaders = {
        # A task counts its own steps.
        name: load(part, order=orders[name], start_step=done[name], ends=[end[name] for end in ends])
        for name, part in by_name.items()
    }
    several = MultiTaskTrainee(
        MultiTaskStudent({name: part.model for name, part in by_name.items()}),
        {name: part.objective for name, part in by_name.items()},
        {name: part.inputs.weight for name, part in by_name.items()},
        {name: compiled(part.model) for name, part in by_name.items()} if config.compile else None,
        dict(zip(schedule.tasks, schedule.shares.tolist(), strict=True)),
    )
    return MultiTaskProgram(
        several,
        {name: part.teachers for name, part in by_name.items()},
        MultiTaskLoader(loaders, schedule, num_steps, start_step),
        config,
        judge,
        stages,
    )


def _stages(part: Part, num_steps: int) -> Stages:
    """Those of distillation; fine-tuning has one."""
    return Stages.of(part.task.distill, num_steps)


def _orders(inputs: Sequence[Inputs], config: TrainConfig) -> dict[str, Order]:
    return {part.label: build_order(part.training.lengths, config, part.training.folder) for part in inputs}


def _loader(
    part: Part,
    tokenizer: Any,
    config: TrainConfig,
    order: Order,
    context: Context,
    *,
    num_steps: int,
    start_step: int,
    ends: Sequence[int],
) -> StepLoader:
    task, training = part.task.task, part.inputs.training
    check_room(part.model, training.lengths, config, task.masking, context.device, context.world_size)
    return StepLoader(
        training,
        order,
        rank=context.rank,
        world_size=context.world_size,
        num_steps=num_steps,
        start_step=start_step,
        pad_token_id=tokenizer.pad_token_id,
        micro_batch_size=config.micro_batch_size,
        micro_batch_tokens=config.micro_batch_tokens,
        teacher_at=lambda step: part.stored[min(bisect.bisect_right(ends, step), len(ends) - 1)],
        pin_memory=context.device.type == "cuda",
        in_epoch=lambda epoch: as_shown(training, task, tokenizer, config.seed, epoch),
    )

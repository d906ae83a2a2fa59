"""The tasks of a training job, ready to train: model, objective, rows and teachers of each, and the program of all."""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from raybrew.config import Experiment, FinetuneConfig, MultiTaskConfig, TrainConfig
from raybrew.config.views import task_views
from raybrew.data.encoded import open_encoded
from raybrew.data.loader import SignalSource, StepLoader
from raybrew.data.masking import EVALUATION, as_shown
from raybrew.data.multi_task import MultiTaskLoader, TaskSchedule
from raybrew.data.sampler import Order
from raybrew.distillers.alignment import AlignedAnswers
from raybrew.distillers.ensemble import Average, Ensemble, EnsembleSignals, request_of_member
from raybrew.distillers.objective import Objective, build_objective
from raybrew.distillers.teachers import LiveTeacher, SignalsInBatch, StoredSignals, Teacher
from raybrew.models.forward import checkpoint_layers, compiled
from raybrew.models.loading import ModelSource, load_model, load_tokenizer, pick_precision
from raybrew.models.multi_task import MultiTaskStudent
from raybrew.models.students import build_student, new_model
from raybrew.models.theseus import Hybrid
from raybrew.models.vocabulary import open_vocabulary
from raybrew.signals import Signal
from raybrew.store.reader import Store
from raybrew.tasks.scores import RowScores
from raybrew.training.context import Context
from raybrew.training.encoded import EncodedProgram, Trainee, build_order, total_steps
from raybrew.training.evaluation import compute_logits
from raybrew.training.multi_task import MultiTaskProgram, MultiTaskTrainee
from raybrew.training.parallel import shard
from raybrew.training.precision import Precision
from raybrew.training.stages import Stages
from raybrew.training.theseus import Theseus
from raybrew.verbs.inputs import Inputs, TeacherInput
from raybrew.verbs.objective import labels_only, objective_of
from raybrew.verbs.prepare import task_of

__all__ = ["Part", "Parts", "build_parts", "build_program", "num_steps_of"]


@dataclasses.dataclass(frozen=True)
class Part:
    """One task; `view` is the experiment of this task alone."""

    view: Experiment
    inputs: Inputs
    model: Any  # a Hugging Face model
    objective: Objective
    stored: tuple[SignalSource | None, ...]  #: what the loader puts into batches, in each stage
    teachers: tuple[Teacher, ...]  #: what is asked in each step, in each stage
    theseus: Theseus | None = None

    @property
    def name(self) -> str:
        """The task's name among several, empty for an only one."""
        return self.inputs.task or ""

    def metrics(
        self, student: nn.Module, tokenizer: Any, context: Context, precision: Precision
    ) -> tuple[dict[str, float], Callable[[], RowScores] | None]:
        """Metrics of the student on this task's evaluation rows, and what each row adds; nothing without any."""
        rows = self.inputs.evaluation
        if rows is None:
            return {}, None
        model, task = student[self.name] if isinstance(student, MultiTaskStudent) else student, task_of(self.view)
        shown = as_shown(rows, task, tokenizer, *EVALUATION)
        logits = compute_logits(model, shown, tokenizer.pad_token_id, context, precision, task.head)
        found = task.metrics(logits, rows, rows.rows, self.inputs.labels)
        return found, lambda: task.row_scores(logits, rows, rows.rows, self.inputs.labels)


class Parts(NamedTuple):
    """All tasks, the one tokenizer of the student, and a line on what it is."""

    tasks: tuple[Part, ...]
    tokenizer: Any
    description: str | None


def build_parts(
    experiment: Experiment,
    inputs: Sequence[Inputs],
    source: ModelSource | None,
    config: TrainConfig,
    finetuning: bool,
    context: Context,
    vocabulary: Path | None = None,
) -> Parts:
    """The tasks of a job on this worker's device. `source`: what is fine-tuned, or what a shape is made after.

    `vocabulary` is the folder of the student's trimmed tokenizer.
    """
    views = task_views(experiment)
    parts, tokenizer, description = [], None, None
    for each in inputs:
        view, labels = views[each.task], each.labels.names
        if finetuning:
            assert source is not None  # a finetune spec always names its starting point
            random = isinstance(config, FinetuneConfig) and config.init == "random"
            model: Any = (
                new_model(source, view.task.kind, labels, config.seed)
                if random
                else load_model(source, view.task.kind, labels)
            )
            tokenizer = tokenizer or load_tokenizer(source)
            view = view.model_copy(update={"distill": labels_only(view.distill)})
            objective = build_objective(view.distill, head=task_of(view).head)
        else:
            built = build_student(experiment.student, source, view.task.kind, labels, config.seed, vocabulary)
            model, tokenizer, description = built.model, tokenizer or built.tokenizer, description or built.description
            objective = objective_of(view, model.config, {given.name: given.source for given in each.teachers})
        if config.gradient_checkpointing:
            checkpoint_layers(model)
        members = _members(view, each, objective, context, vocabulary)
        found = _teachers(view, each, objective, members)
        stored, teachers = tuple(source for source, _ in found), tuple(teacher for _, teacher in found)
        model, objective = model.to(context.device), objective.to(context.device)
        theseus = None
        if view.distill.trains_in_teacher:
            configs = [losses.theseus for losses in view.distill.parts]
            theseus = Theseus(Hybrid(model, members[None].model), configs, config.seed)
        parts.append(Part(view, each, model, objective, stored, teachers, theseus))
    if len(parts) > 1 and description is not None:
        description = f"a head each for {', '.join(part.name for part in parts)} on one encoder: {description}"
    return Parts(tuple(parts), tokenizer, description)


def num_steps_of(experiment: Experiment, inputs: Sequence[Inputs], config: TrainConfig) -> int:
    """Optimizer steps of a whole run."""
    orders = _orders(inputs, config)
    task = experiment.task
    if isinstance(task, MultiTaskConfig):
        return total_steps(TaskSchedule(orders, task.tau, config.seed), config)
    return total_steps(orders[""], config)


def build_program(
    experiment: Experiment, parts: Parts, config: TrainConfig, start_step: int, context: Context
) -> EncodedProgram:
    """What the loop trains: the model of one task, or a MultiTaskStudent of several."""
    inputs = [part.inputs for part in parts.tasks]
    num_steps = num_steps_of(experiment, inputs, config)
    orders = _orders(inputs, config)
    task, metric = experiment.task, experiment.task.metric
    if not isinstance(task, MultiTaskConfig):
        part = parts.tasks[0]
        stages = _stages(part, num_steps)
        loader = _loader(part, parts, config, orders[""], num_steps, start_step, context, stages.ends)
        trainee = Trainee(part.model, part.objective, compiled(part.model) if config.compile else None, part.theseus)
        if config.parallel == "fsdp" and context.world_size > 1:
            shard(trainee, part.model, context.device)
        return EncodedProgram(trainee, part.teachers, loader, config, metric, stages)
    by_name = {part.name: part for part in parts.tasks}
    schedule = TaskSchedule(orders, task.tau, config.seed)
    done = schedule.before(start_step)
    stages = _stages(parts.tasks[0], num_steps)
    ends = [schedule.before(end) for end in stages.ends]
    loaders = {
        # A task counts its own steps.
        name: _loader(part, parts, config, orders[name], num_steps, done[name], context, [end[name] for end in ends])
        for name, part in by_name.items()
    }
    several = MultiTaskTrainee(
        MultiTaskStudent({name: part.model for name, part in by_name.items()}),
        {name: part.objective for name, part in by_name.items()},
        {name: part.inputs.weight for name, part in by_name.items()},
        {name: compiled(part.model) for name, part in by_name.items()} if config.compile else None,
    )
    return MultiTaskProgram(
        several,
        {name: part.teachers for name, part in by_name.items()},
        MultiTaskLoader(loaders, schedule, num_steps, start_step),
        config,
        metric,
        stages,
    )


def _stages(part: Part, num_steps: int) -> Stages:
    """Those of distillation; fine-tuning has one."""
    return Stages.of(part.view.distill, num_steps)


def _orders(inputs: Sequence[Inputs], config: TrainConfig) -> dict[str, Order]:
    return {part.task or "": build_order(part.training.lengths, config) for part in inputs}


def _loader(
    part: Part,
    parts: Parts,
    config: TrainConfig,
    order: Order,
    num_steps: int,
    start_step: int,
    context: Context,
    ends: Sequence[int],
) -> StepLoader:
    task, training = task_of(part.view), part.inputs.training
    return StepLoader(
        training,
        order,
        rank=context.rank,
        world_size=context.world_size,
        num_steps=num_steps,
        start_step=start_step,
        pad_token_id=parts.tokenizer.pad_token_id,
        micro_batch_size=config.micro_batch_size,
        micro_batch_tokens=config.micro_batch_tokens,
        teacher_at=lambda step: part.stored[min(bisect.bisect_right(ends, step), len(ends) - 1)],
        pin_memory=context.device.type == "cuda",
        in_epoch=lambda epoch: as_shown(training, task, parts.tokenizer, config.seed, epoch),
    )


def _members(
    view: Experiment, inputs: Inputs, objective: Objective, context: Context, vocabulary: Path | None
) -> dict[str | None, _Member]:
    return {given.name: _Member(view, given, objective, inputs, context, vocabulary) for given in inputs.teachers}


def _teachers(
    view: Experiment, inputs: Inputs, objective: Objective, members: Mapping[str | None, _Member]
) -> list[tuple[SignalSource | None, Teacher]]:
    """What the loader puts into batches, and what is asked in each step, for all teachers of a task in each stage.

    A stage reads and runs only what it asks for; a teacher that runs live is loaded once for all stages.
    """
    requests = [stage.teacher_request for stage in objective.stages]
    temperatures = [losses.temperature for losses in view.distill.parts]
    return [
        _in_stage(view, inputs, members, request, temperature)
        for request, temperature in zip(requests, temperatures, strict=True)
    ]


def _in_stage(
    view: Experiment,
    inputs: Inputs,
    members: Mapping[str | None, _Member],
    request: frozenset[Signal],
    temperature: float,
) -> tuple[SignalSource | None, Teacher]:
    stored: dict[str | None, SignalSource] = {}
    live: dict[str | None, Teacher] = {}
    for name, member in members.items():
        asked = request_of_member(request, name, member.given.weight)
        if not asked:
            continue
        if member.given.store is not None:
            stored[name] = member.stored(asked)
        else:
            live[name] = member.live(asked)
    if None in stored:
        return stored[None], SignalsInBatch()
    if None in live:
        return None, live[None]
    if not stored and not live:
        return None, SignalsInBatch()
    average = Average(
        {str(given.name): given.weight for given in inputs.teachers},
        view.teacher.average,
        temperature,
    )
    by_name = {str(name): source for name, source in stored.items()}
    return EnsembleSignals(by_name) if by_name else None, Ensemble(
        {str(name): teacher for name, teacher in live.items()}, average
    )


class _Member:
    """One teacher, whose store is opened or whose model is loaded when the first stage asks for it."""

    def __init__(
        self,
        view: Experiment,
        given: TeacherInput,
        objective: Objective,
        inputs: Inputs,
        context: Context,
        vocabulary: Path | None,
    ) -> None:
        self.view = view
        self.given = given
        self.inputs = inputs
        self.context = context
        self.vocabulary = vocabulary
        asked = request_of_member(objective.teacher_union, given.name, given.weight)
        in_it = view.distill.trains_in_teacher
        self.needs_head = in_it or any(signal.kind in ("logits", "pooled") for signal in asked)

    def stored(self, asked: Sequence[Signal]) -> SignalSource:
        stored = StoredSignals(*self._store, asked)
        if self.given.aligned is None:
            return stored
        return AlignedAnswers(stored, open_encoded(Path(self.given.aligned)), self.inputs.training)

    def live(self, asked: Sequence[Signal]) -> LiveTeacher:
        precision = Precision(pick_precision(self.given.precision, self.context.device), self.context.device)
        return LiveTeacher(self.model, asked, precision.autocast, self._token_ids())

    def _token_ids(self) -> Tensor | None:
        """This teacher's id of each of the student's pieces, where the student's vocabulary is trimmed from its own."""
        if self.vocabulary is None:
            return None
        return torch.from_numpy(open_vocabulary(self.vocabulary).kept).to(self.context.device)

    @functools.cached_property
    def _store(self) -> tuple[Store, Any]:
        config = self.view.store
        store = Store.open(str(self.given.store), self.given.fingerprint, config.element_type, config.cache)
        return store, store.locate_all(self.inputs.training.arrow.flat("id"))

    @functools.cached_property
    def model(self) -> Any:  # a Hugging Face model
        model: nn.Module = load_model(self.given.source, self.view.task.kind, needs_head=self.needs_head)
        return model.to(self.context.device)

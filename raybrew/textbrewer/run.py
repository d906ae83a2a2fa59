"""From a distiller and the arguments of `train` to the loop: checks, a first look at the data, objective, program."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from raybrew.distillers.objective import Objective, TermSpec
from raybrew.errors import ConfigError, DivergenceError
from raybrew.textbrewer.adaptors import (
    Adapted,
    Adaptor,
    AdaptorMicro,
    AdaptorTrainee,
    StudentSide,
    TeacherSide,
    Wanted,
    teacher_names,
    warn_of_unknown_keys,
)
from raybrew.textbrewer.configs import TrainingConfig
from raybrew.textbrewer.program import AdaptorProgram, Callback, TrainingOutput, pace_of
from raybrew.training.context import Context, DistributedContext, LocalContext, device_of
from raybrew.training.evaluation import modes_of
from raybrew.training.loop import Outcome, train
from raybrew.training.optim import Precision
from raybrew.training.streams import BatchStream, TaskOrder, known_size

__all__ = ["Call", "Job", "Postprocessor", "Trains", "run"]

Postprocessor = Callable[[Any], Any]

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Job:
    """What a distiller trains; tasks are `""` alone, or the tasks of a MultiTaskDistiller."""

    name: str
    config: TrainingConfig
    student: nn.Module
    student_adaptors: Mapping[str, Adaptor]
    specs: Callable[[str, Adapted, Sequence[Adapted]], list[tuple[TermSpec, str]]]
    teachers: Mapping[str, Sequence[nn.Module]] = dataclasses.field(default_factory=dict)
    teacher_adaptors: Mapping[str, Sequence[Adaptor]] = dataclasses.field(default_factory=dict)
    student_wanted: Wanted = dataclasses.field(default_factory=dict)
    teacher_wanted: Sequence[Wanted] = ()
    student_taps: Sequence[nn.Module] = ()
    teacher_taps: Sequence[nn.Module] = ()
    trained: Mapping[str, nn.Module] = dataclasses.field(default_factory=dict)  #: beside the student, by name
    groups: Sequence[tuple[nn.Module, Mapping[str, Any]]] = ()  #: of these, with options for the optimizer
    caching: bool = False
    student_name: str = "adaptor_S"
    settings: str = ""  #: what a resumed training must have in common

    @property
    def all_teachers(self) -> list[nn.Module]:
        return [model for models in self.teachers.values() for model in models]


@dataclasses.dataclass(frozen=True)
class Call:
    """How `train` was called; dataloaders and postprocessors by task."""

    optimizer: torch.optim.Optimizer
    dataloaders: Mapping[str, Iterable[Any]]
    postprocessors: Mapping[str, Postprocessor | None]
    num_epochs: int | None
    num_steps: int | None
    scheduling: tuple[Callable[..., Any] | None, Mapping[str, Any] | None, Any]  #: class, arguments; or a scheduler
    max_grad_norm: float
    callback: Callback | None
    args: Mapping[str, Any]  #: for both models, beside the batch
    order: TaskOrder | None = None


def run(job: Job, call: Call) -> Outcome:
    """Train. All that can be found wrong with models, adaptors and matches is raised before the first step."""
    config = job.config
    named = [("student", job.student), *(("teacher", model) for model in job.all_teachers)]
    device = device_of(config.device, named, "TrainingConfig(device=...)")
    context = LocalContext(device) if config.local_rank < 0 else _one_of_several(config, device)
    precision = Precision("fp16" if config.fp16 and config.fp16_opt_level != "O0" else "fp32", device)
    pace = pace_of(config, call.dataloaders, call.num_epochs, call.num_steps)
    streams = _streams(job, call)
    for module in job.trained.values():
        module.to(device)
    student = _student_side(job, call, device)
    teachers = _teacher_side(job, call, device, precision) if job.teachers else None
    with modes_of(_modules_of(job.student, *job.all_teachers)):
        for model in job.all_teachers:
            model.eval()
        trainee, tags = _look(job, streams, student, teachers, device, precision)
        program = AdaptorProgram(
            trainee=trainee,
            teachers=teachers,
            streams=streams,
            order=call.order,
            optimizer=call.optimizer,
            pace=pace,
            num_micro=config.gradient_accumulation_steps,
            max_grad_norm=call.max_grad_norm if call.max_grad_norm > 0 else None,
            device=device,
            autocast=precision.autocast,
        )
        _add_groups(call.optimizer, job.groups)
        call.optimizer.zero_grad(set_to_none=True)
        program.scheduler = _scheduler(call)
        identity = f"{job.name}\n{job.settings}\n{pace}\n{config.gradient_accumulation_steps}\n{program.max_grad_norm}"
        output = TrainingOutput(config, job.student, tags, pace.num_steps, call.callback, identity)
        try:
            return train(program, context, precision, output, output.newest_state())
        finally:
            output.close()


def _streams(job: Job, call: Call) -> dict[str, BatchStream[AdaptorMicro]]:
    def made_by(task: str) -> Callable[[Any], AdaptorMicro]:
        post = call.postprocessors.get(task) or (lambda batch: batch)
        return lambda batch: AdaptorMicro.of(post(batch), task)

    if job.caching:
        for loader in call.dataloaders.values():
            known_size(loader, "is_caching_logits=True")
    return {task: BatchStream(each, made_by(task), task, job.caching) for task, each in call.dataloaders.items()}


def _student_side(job: Job, call: Call, device: torch.device) -> StudentSide:
    student = _parallel(job, job.student, device)
    return StudentSide(student, job.student_adaptors, job.student_wanted, job.student_taps, call.args, job.student_name)


def _teacher_side(job: Job, call: Call, device: torch.device, precision: Precision) -> TeacherSide:
    teachers = {task: [_parallel(job, model, device) for model in models] for task, models in job.teachers.items()}
    shared = set(_modules_of(job.student)) & set(_modules_of(*job.all_teachers))
    _warn_of_shared_weights(job, call.optimizer)
    return TeacherSide(
        teachers,
        job.teacher_adaptors,
        job.teacher_wanted,
        job.teacher_taps,
        call.args,
        autocast=precision.autocast,
        shared=list(shared),
    )


def _modules_of(*models: nn.Module) -> list[nn.Module]:
    return [module for model in models for module in model.modules()]


def _warn_of_shared_weights(job: Job, optimizer: torch.optim.Optimizer) -> None:
    trained = {id(weight) for group in optimizer.param_groups for weight in group["params"] if weight.requires_grad}
    names = [name for model in job.all_teachers for name, weight in model.named_parameters() if id(weight) in trained]
    if names:
        log.warning(
            "the optimizer trains %d weights of the teacher, such as %s, because the student shares them: what the "
            "teacher says moves with them; give the student copies (copy.deepcopy), or set requires_grad_(False)",
            len(names),
            names[0],
        )


def _look(
    job: Job,
    streams: Mapping[str, BatchStream[AdaptorMicro]],
    student: StudentSide,
    teachers: TeacherSide | None,
    device: torch.device,
    precision: Precision,
) -> tuple[AdaptorTrainee, dict[str, str]]:
    """The trainee, with the terms of each task as its first batch tells them, and their names in TensorBoard.

    Every loss is computed once, so that shapes which do not fit are found before the first step.
    """
    specs: list[tuple[TermSpec, str]] = []
    owners: list[str] = []
    seen = []
    job.student.eval()  # draws no random numbers
    for task, stream in streams.items():
        micro = stream.peek().to(device)
        said = teachers(micro) if teachers is not None else ()
        with torch.no_grad(), precision.autocast():
            adapted = student(micro.inputs)
        for name, side in zip((job.student_name, *teacher_names(len(said))), (adapted, *said), strict=True):
            warn_of_unknown_keys(name, side)
        found = job.specs(task, adapted, said)
        specs += found
        owners += [task] * len(found)
        seen.append((adapted, said, micro.inputs))
    objective = Objective(tuple(spec for spec, _ in specs), frozenset(), frozenset(), job.trained)
    trainee = AdaptorTrainee(job.student, objective, owners, student).eval()
    for first in seen:
        with torch.no_grad(), precision.autocast():
            sums, _ = trainee.compare(*first)
        terms = zip(objective.names, sums.tolist(), objective.weights(0.0), strict=True)
        broken = {name: value for name, value, weight in terms if weight}
        if not all(value - value == 0 for value in broken.values()):
            raise DivergenceError(f"a loss is not finite on the first batch, before the first step: {broken}")
    return trainee, {spec.name: tag for spec, tag in specs}


def _one_of_several(config: TrainingConfig, device: torch.device) -> Context:
    if not dist.is_initialized():
        raise ConfigError(
            f"local_rank: given {config.local_rank}, but torch.distributed has no process group; call "
            "torch.distributed.init_process_group first, or leave local_rank at -1"
        )
    return DistributedContext(device, Path(config.output_dir))


def _parallel(job: Job, model: nn.Module, device: torch.device) -> nn.Module:
    """The model, spread over the GPUs of this process if `data_parallel` asks for it."""
    if not job.config.data_parallel or device.type != "cuda":
        return model
    if job.student_taps:
        raise ConfigError("data_parallel: custom matches cannot look into its copies of a model; use local_rank")
    return nn.DataParallel(model)


def _add_groups(optimizer: torch.optim.Optimizer, groups: Sequence[tuple[nn.Module, Mapping[str, Any]]]) -> None:
    """Trained maps join the optimizer; those that are in it already (a second `train`) stay as they are."""
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for module, options in groups:
        unknown = set(options) - set(optimizer.defaults)
        if unknown:
            raise ConfigError(
                f"proj: {', '.join(sorted(unknown))} is no option of {type(optimizer).__name__}; allowed: "
                f"{', '.join(optimizer.defaults)}"
            )
        parameters = [parameter for parameter in module.parameters() if id(parameter) not in known]
        if parameters:
            optimizer.add_param_group({"params": parameters, **options})


def _scheduler(call: Call) -> Any:
    build, args, scheduler = call.scheduling
    if build is None:
        return scheduler
    try:
        inspect.signature(build).bind(optimizer=call.optimizer, **(args or {}))
    except TypeError as error:
        raise ConfigError(f"scheduler_args: {error}; given {args or {}}") from error
    return build(optimizer=call.optimizer, **(args or {}))


M = TypeVar("M", bound="Trains")

#: Methods of TextBrewer's distillers that scripts override and the loop here never calls.
_NEVER_CALLED = (
    "train_on_batch",
    "compute_loss",
    "cache_logits",
    "initialize_training",
    "save_and_callback",
    "train_with_num_epochs",
    "train_with_num_steps",
    "write_loss",
)


class Trains:
    """Trains what its `_job` says; a context manager in which students are in training, teachers in evaluation mode."""

    def __init_subclass__(cls) -> None:
        # Without a word the subclass would train what its base class does.
        overridden = [name for name in _NEVER_CALLED if hasattr(cls, name)]
        if overridden:
            raise ConfigError(
                f"{cls.__name__}: {', '.join(overridden)} of TextBrewer's distillers are never called here; put a loss "
                "of your own into the `losses` of an adaptor, custom_matches or register_new (BERT-EMD is "
                "raybrew.EMDDistiller)"
            )

    def _students(self) -> Sequence[nn.Module]:
        raise NotImplementedError

    def _teachers(self) -> Sequence[nn.Module]:
        return ()

    def _job(self) -> Job:
        raise NotImplementedError

    def train(
        self,
        optimizer: torch.optim.Optimizer,
        dataloader: Iterable[Any],
        num_epochs: int | None = None,
        scheduler_class: Callable[..., Any] | None = None,
        scheduler_args: Mapping[str, Any] | None = None,
        scheduler: Any = None,
        max_grad_norm: float = -1.0,
        num_steps: int | None = None,
        callback: Callback | None = None,
        batch_postprocessor: Postprocessor | None = None,
        **args: Any,
    ) -> Outcome:
        """Train for `num_epochs`, or for `num_steps` optimizer steps through the data again and again.

        `scheduler_class(optimizer=optimizer, **scheduler_args)` or `scheduler` is stepped after each optimizer step.
        Gradients of student and projections together are clipped to `max_grad_norm` where it is > 0. `callback(model=,
        step=)` runs after each checkpoint, on rank 0. `args` are passed to both models beside the batch.

        Raises ConfigError and LossError before the first step, DivergenceError when the loss is NaN or infinite.
        """
        loaders, posts = {"": dataloader}, {"": batch_postprocessor}
        scheduling = (scheduler_class, scheduler_args, scheduler)
        call = Call(optimizer, loaders, posts, num_epochs, num_steps, scheduling, max_grad_norm, callback, args)
        return run(self._job(), call)

    def __enter__(self: M) -> M:
        self._restore = contextlib.ExitStack()
        self._restore.enter_context(modes_of(_modules_of(*self._students(), *self._teachers())))
        for teacher in self._teachers():
            teacher.eval()
        for student in self._students():
            student.train()
        return self

    def __exit__(self, *error: object) -> None:
        self._restore.close()

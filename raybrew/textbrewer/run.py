"""From a distiller and the arguments of `train` to the loop: checks, a first look at the data, objective, program."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from raybrew.distillers.objective import Objective, TermSpec
from raybrew.errors import ConfigError, DivergenceError
from raybrew.textbrewer.adaptors import Adapted, Adaptor, Wanted, teacher_name, warn_of_unknown_keys
from raybrew.textbrewer.batches import BatchStream, Postprocessor, TaskOrder, known_size, size_of
from raybrew.textbrewer.configs import TrainingConfig
from raybrew.textbrewer.output import Callback, TrainingOutput
from raybrew.textbrewer.program import AdaptorProgram, AdaptorTrainee, Pace, StudentSide, TeacherSide
from raybrew.training.context import Context, DistributedContext, LocalContext
from raybrew.training.loop import Outcome, train
from raybrew.training.optim import trained_parameters
from raybrew.training.precision import Precision

__all__ = ["Duration", "Job", "Optimisation", "modes_of", "run"]

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
class Duration:
    """As given to `train`."""

    num_epochs: int | None
    num_steps: int | None


@dataclasses.dataclass(frozen=True)
class Optimisation:
    """As given to `train`."""

    optimizer: torch.optim.Optimizer
    scheduler_class: Callable[..., Any] | None
    scheduler_args: Mapping[str, Any] | None
    scheduler: Any
    max_grad_norm: float


def run(
    job: Job,
    dataloaders: Mapping[str, Iterable[Any]],
    postprocessors: Mapping[str, Postprocessor | None],
    duration: Duration,
    optimisation: Optimisation,
    callback: Callback | None,
    args: Mapping[str, Any],
    order: TaskOrder | None = None,
) -> Outcome:
    """Train. All that can be found wrong with models, adaptors and matches is raised before the first step."""
    config = job.config
    device = _device(job)
    context = _context(config, device)
    precision = Precision("fp16" if config.fp16 and config.fp16_opt_level != "O0" else "fp32", device)
    pace = _pace(config, dataloaders, duration)
    streams = {
        task: BatchStream(loader, postprocessors.get(task), task, job.caching) for task, loader in dataloaders.items()
    }
    if job.caching:
        for loader in dataloaders.values():
            known_size(loader, "is_caching_logits=True")
    for module in job.trained.values():
        module.to(device)
    student_side = StudentSide(
        _parallel(job, job.student, device),
        job.student_adaptors,
        job.student_wanted,
        job.student_taps,
        args,
        job.student_name,
    )
    teacher_side = None
    if job.teachers:
        teachers = {task: [_parallel(job, model, device) for model in models] for task, models in job.teachers.items()}
        teacher_side = TeacherSide(
            teachers,
            job.teacher_adaptors,
            job.teacher_wanted,
            job.teacher_taps,
            args,
            precision.autocast,
            _shared_modules(job),
        )
        _warn_of_shared_weights(job, optimisation.optimizer)

    with modes_of(job.student, *job.all_teachers):
        for model in job.all_teachers:
            model.eval()
        specs, owners = _look(job, streams, student_side, teacher_side, device, precision)
        objective = Objective(tuple(spec for spec, _ in specs), frozenset(), frozenset(), job.trained)
        trainee = AdaptorTrainee(job.student, objective, student_side)
        program = AdaptorProgram(
            trainee,
            teacher_side,
            streams,
            order,
            owners,
            optimisation.optimizer,
            None,
            pace,
            config.gradient_accumulation_steps,
            optimisation.max_grad_norm if optimisation.max_grad_norm > 0 else None,
            find_unused=False,
            device=device,
            autocast=precision.autocast,
        )
        program.find_unused = _try_out(program, context, precision)
        _add_groups(optimisation.optimizer, job.groups)
        optimisation.optimizer.zero_grad(set_to_none=True)
        program.scheduler = _scheduler(optimisation)
        identity = f"{job.name}\n{job.settings}\n{pace}\n{config.gradient_accumulation_steps}\n{program.max_grad_norm}"
        tags = {spec.name: tag for spec, tag in specs}
        output = TrainingOutput(config, job.student, tags, pace.num_steps, callback, identity)
        try:
            return train(program, context, precision, output, output.newest_state())
        finally:
            output.close()


def _shared_modules(job: Job) -> list[nn.Module]:
    """Modules of a teacher that the student has too."""
    of_student = set(job.student.modules())
    of_teachers = dict.fromkeys(module for model in job.all_teachers for module in model.modules())
    return [module for module in of_teachers if module in of_student]


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


@contextlib.contextmanager
def modes_of(*models: nn.Module) -> Iterator[None]:
    """Puts every module back into the mode, training or evaluation, that it is in now."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _look(
    job: Job,
    streams: Mapping[str, BatchStream],
    student: StudentSide,
    teachers: TeacherSide | None,
    device: torch.device,
    precision: Precision,
) -> tuple[list[tuple[TermSpec, str]], list[str]]:
    """The terms of each task, found from its first batch, and the task of each."""
    specs: list[tuple[TermSpec, str]] = []
    owners: list[str] = []
    job.student.eval()  # draws no random numbers
    for task, stream in streams.items():
        micro = stream.peek().to(device)
        said = teachers(micro) if teachers is not None else ()
        with torch.no_grad(), precision.autocast():
            adapted = student(micro.inputs)
        warn_of_unknown_keys(job.student_name, adapted)
        for index, side in enumerate(said):
            warn_of_unknown_keys(teacher_name(index, len(said)), side)
        found = job.specs(task, adapted, said)
        specs += found
        owners += [task] * len(found)
    return specs, owners


def _try_out(program: AdaptorProgram, context: Context, precision: Precision) -> bool:
    """Computes every loss once, so that shapes which do not fit are found before the first step.

    Returns whether some trained parameter gets no gradient, which several processes must know.
    """
    trainee = program.trainee
    distributed = context.world_size > 1
    parameters = trained_parameters([trainee])
    weights = trainee.objective.weights(0.0)
    unused = False
    trainee.eval()
    for stream in program.streams.values():
        micro = stream.peek().to(program.device)
        targets = program.targets(micro)
        with torch.set_grad_enabled(distributed), precision.autocast():
            sums, _ = trainee(micro.inputs, targets)
        losses = dict(zip(trainee.objective.names, sums.tolist(), strict=True))
        broken = {name: value for (name, value), weight in zip(losses.items(), weights, strict=True) if weight}
        if not all(value - value == 0 for value in broken.values()):
            raise DivergenceError(f"a loss is not finite on the first batch, before the first step: {broken}")
        if distributed:
            gradients = torch.autograd.grad(sums.sum(), parameters, allow_unused=True)
            unused = unused or any(gradient is None for gradient in gradients)
    return bool(context.add_up(torch.tensor([float(unused)], device=program.device))[0] > 0)


def _device(job: Job) -> torch.device:
    config = job.config
    home = _home(job.student)
    if config.device == "auto":
        device = home
    else:
        try:
            device = torch.device(config.device)
        except (RuntimeError, TypeError) as error:
            raise ConfigError(f"device: given {config.device!r}; allowed: auto, cpu, cuda, cuda:0, ...") from error
    for name, model in [("student", job.student), *(("teacher", model) for model in job.all_teachers)]:
        there = _home(model)
        elsewhere = ":" in str(device) and str(there) != str(device)
        if there.type != device.type or elsewhere:
            raise ConfigError(
                f"device: batches go to {device}, but the {name} is on {there}; call {name}.to({str(device)!r}) first, "
                "or set TrainingConfig(device=...)"
            )
    return device if ":" in str(device) else home


def _home(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _context(config: TrainingConfig, device: torch.device) -> Context:
    if config.local_rank < 0:
        return LocalContext(device)
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


def _pace(config: TrainingConfig, dataloaders: Mapping[str, Iterable[Any]], duration: Duration) -> Pace:
    num_micro = config.gradient_accumulation_steps
    loader = next(iter(dataloaders.values()))
    if duration.num_steps is not None:
        total = _positive("num_steps", duration.num_steps)
        every = config.ckpt_steps or total
        saves = {*range(every, total + 1, every), total}
        size = size_of(loader) if len(dataloaders) == 1 else None
        return Pace(total, max(1, (size or total * num_micro) // num_micro), False, config.log_steps, frozenset(saves))
    if duration.num_epochs is None:
        raise ConfigError("train: give num_epochs or num_steps")
    epochs = _positive("num_epochs", duration.num_epochs)
    size = known_size(loader, "num_epochs (num_steps does without)")
    per_epoch = size // num_micro
    if per_epoch == 0:
        raise ConfigError(
            f"gradient_accumulation_steps: given {num_micro}, but an epoch has only {size} batches, less than one step"
        )
    if size % num_micro:
        log.info(
            "%d of %d batches at the end of each epoch make no whole step and are left out", size % num_micro, size
        )
    saves = set()
    for epoch in range(epochs):
        if (epoch + 1) % config.ckpt_epoch_frequency == 0 or epoch + 1 == epochs:
            parts = [int(per_epoch * part / config.ckpt_frequency) for part in range(config.ckpt_frequency)]
            saves |= {epoch * per_epoch + (part or per_epoch) for part in parts}
    return Pace(epochs * per_epoch, per_epoch, True, config.log_steps, frozenset(saves))


def _positive(key: str, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = 0
    if number < 1:
        raise ConfigError(f"{key}: given {value!r}; allowed: a whole number, at least 1")
    return number


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


def _scheduler(optimisation: Optimisation) -> Any:
    if optimisation.scheduler_class is None:
        return optimisation.scheduler
    given = dict(optimisation.scheduler_args or {})
    try:
        inspect.signature(optimisation.scheduler_class).bind(optimizer=optimisation.optimizer, **given)
    except TypeError as error:
        raise ConfigError(f"scheduler_args: {error}; given {given}") from error
    return optimisation.scheduler_class(optimizer=optimisation.optimizer, **given)

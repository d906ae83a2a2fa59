"""The distillers by TextBrewer's names. They only say what is trained; `run` and the loop train it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from raybrew.errors import ConfigError
from raybrew.textbrewer.adaptors import Adaptor
from raybrew.textbrewer.batches import Postprocessor, TaskOrder, size_of
from raybrew.textbrewer.configs import DistillationConfig, IntermediateMatch, TrainingConfig
from raybrew.textbrewer.functions import projection_of
from raybrew.textbrewer.output import Callback
from raybrew.textbrewer.run import Duration, Job, Optimisation, modes_of, run
from raybrew.textbrewer.taps import CustomMatch, resolve_module
from raybrew.textbrewer.terms import Ensemble, TermFactory, label_spec
from raybrew.training.loop import Outcome

__all__ = [
    "BasicDistiller",
    "BasicTrainer",
    "Distillers",
    "GeneralDistiller",
    "MultiTaskDistiller",
    "MultiTeacherDistiller",
]

Models = nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module]
Adaptors = Adaptor | Sequence[Adaptor] | Mapping[str, Adaptor]
M = TypeVar("M", bound="_Trains")


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


class _Trains:
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
        return run(
            self._job(),
            {"": dataloader},
            {"": batch_postprocessor},
            Duration(num_epochs, num_steps),
            Optimisation(optimizer, scheduler_class, scheduler_args, scheduler, max_grad_norm),
            callback,
            args,
        )

    def __enter__(self: M) -> M:
        self._restore = contextlib.ExitStack()
        self._restore.enter_context(modes_of(*self._students(), *self._teachers()))
        for teacher in self._teachers():
            teacher.eval()
        for student in self._students():
            student.train()
        return self

    def __exit__(self, *error: object) -> None:
        self._restore.close()


class BasicTrainer(_Trains):
    """Trains one model on the sum of the `losses` that its adaptor returns; makes teachers."""

    def __init__(self, train_config: TrainingConfig, model: nn.Module, adaptor: Adaptor) -> None:
        self.t_config = train_config
        self.model = model
        self.adaptor = adaptor

    def _students(self) -> Sequence[nn.Module]:
        return (self.model,)

    def _job(self) -> Job:
        return Job(
            name=type(self).__name__,
            config=self.t_config,
            student=self.model,
            student_adaptors={"": self.adaptor},
            specs=lambda task, student, teachers: [label_spec(student)],
            student_name="adaptor",
        )


class BasicDistiller(_Trains):
    """Distils logits of one teacher into a student, with the adaptor's own `losses` beside."""

    _needs_logits = True
    _takes_matches = False

    def __init__(
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: Any,
        model_S: nn.Module,
        adaptor_T: Any,
        adaptor_S: Any,
    ) -> None:
        self.t_config = train_config
        self.d_config = distill_config
        self.model_T = model_T
        self.model_S = model_S
        self.adaptor_T = adaptor_T
        self.adaptor_S = adaptor_S
        self._ensemble = Ensemble()
        self._custom: list[CustomMatch] = []
        matches = distill_config.intermediate_matches
        if matches and not self._takes_matches:
            raise ConfigError(f"intermediate_matches: {type(self).__name__} takes none; use GeneralDistiller")
        self._check_teachers(matches)
        #: One for each match: the trained map of the student, or None.
        self.projs: list[nn.Module | None] = [
            projection_of(match.proj, f"intermediate_matches.{index}.proj") if match.proj else None
            for index, match in enumerate(matches)
        ]
        self._factory()  # names that do not exist are found here

    def _students(self) -> Sequence[nn.Module]:
        return (self.model_S,)

    def _teachers(self) -> Sequence[nn.Module]:
        return [model for models in self._teachers_by_task().values() for model in models]

    def _teachers_by_task(self) -> Mapping[str, Sequence[nn.Module]]:
        return {"": [self.model_T]}

    def _teacher_adaptors(self) -> Mapping[str, Sequence[Adaptor]]:
        return {"": [self.adaptor_T]}

    def _student_adaptors(self) -> Mapping[str, Adaptor]:
        return {"": self.adaptor_S}

    def _check_teachers(self, matches: Sequence[IntermediateMatch]) -> None:
        count = min((len(models) for models in self._teachers_by_task().values()), default=0)
        for index, match in enumerate(matches):
            if match.teacher >= count:
                raise ConfigError(
                    f"intermediate_matches.{index}.teacher: given {match.teacher}; allowed: 0 to {count - 1}"
                )

    def _factory(self) -> TermFactory:
        return TermFactory(
            self.d_config,
            self.d_config.intermediate_matches,
            self.projs,
            self._custom,
            self._ensemble,
            self._needs_logits,
        )

    def _more_modules(self) -> Mapping[str, nn.Module]:
        """Modules with state or weights of their own, beside those of matches."""
        return {}

    def _more_groups(self) -> Sequence[tuple[nn.Module, Mapping[str, Any]]]:
        """Their optimizer groups: module and options."""
        return ()

    def _job(self) -> Job:
        factory = self._factory()
        trained = dict(self._more_modules())
        groups = list(self._more_groups())
        for index, (match, proj) in enumerate(zip(self.d_config.intermediate_matches, self.projs, strict=True)):
            if proj is not None:
                trained[f"match_{index}"] = proj
                groups.append((proj, match.proj[3] if len(match.proj) > 3 else {}))
        for index, custom in enumerate(self._custom):
            if isinstance(custom.proj_func, nn.Module):
                trained[f"custom_{index}"] = custom.proj_func
                groups.append((custom.proj_func, custom.proj_group or {}))
        teachers = self._teachers_by_task()
        num_teachers = max(len(models) for models in teachers.values())
        return Job(
            name=type(self).__name__,
            config=self.t_config,
            student=self.model_S,
            student_adaptors=self._student_adaptors(),
            specs=factory.specs,
            teachers=teachers,
            teacher_adaptors=self._teacher_adaptors(),
            student_wanted=factory.wanted("S"),
            teacher_wanted=[factory.wanted("T", index) for index in range(num_teachers)],
            student_taps=[resolve_module(self.model_S, match.module_S, "module_S") for match in self._custom],
            teacher_taps=[resolve_module(self.model_T, match.module_T, "module_T") for match in self._custom],
            trained=trained,
            groups=groups,
            caching=self.d_config.is_caching_logits,
            settings=str(self.d_config),
        )


class GeneralDistiller(BasicDistiller):
    """Distils logits, layers that the adaptors list, and outputs of any two modules (`custom_matches`)."""

    _needs_logits = False
    _takes_matches = True

    def __init__(
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: Any,
        model_S: nn.Module,
        adaptor_T: Any,
        adaptor_S: Any,
        custom_matches: Sequence[CustomMatch | Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(train_config, distill_config, model_T, model_S, adaptor_T, adaptor_S)
        for match in custom_matches or ():
            self.add_match(match)

    def add_match(self, match: CustomMatch | Mapping[str, Any]) -> None:
        """Compare the outputs of two more modules from the next `train` on."""
        match = match if isinstance(match, CustomMatch) else CustomMatch.from_dict(match)
        resolve_module(self.model_S, match.module_S, "module_S")
        resolve_module(self.model_T, match.module_T, "module_T")
        self._custom.append(match)
        self._factory()


class MultiTeacherDistiller(BasicDistiller):
    """Distils several teachers of one task: their logits averaged, and layers of one of them (`"teacher": i`).

    `weights` are the teachers' shares of the average. `average="probabilities"` averages their softmaxes at the
    temperature instead of their logits. `adaptor_T` is one for all, or a list. A batch may have a list of inputs under
    `teacher`, one for each teacher, where their vocabularies differ.
    """

    _takes_matches = True

    def __init__(
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: Sequence[nn.Module],
        model_S: nn.Module,
        adaptor_T: Adaptor | Sequence[Adaptor],
        adaptor_S: Adaptor,
        *,
        weights: Sequence[float] | None = None,
        average: Literal["logits", "probabilities"] = "logits",
    ) -> None:
        if not isinstance(model_T, (list, tuple, nn.ModuleList)) or not len(model_T):
            raise ConfigError("model_T: MultiTeacherDistiller takes a list of teachers")
        if isinstance(adaptor_T, (list, tuple)) and len(adaptor_T) != len(model_T):
            raise ConfigError(
                f"adaptor_T: {len(adaptor_T)} adaptors for {len(model_T)} teachers; give one, or one each"
            )
        if weights is not None and (len(weights) != len(model_T) or min(weights) < 0 or not sum(weights) > 0):
            raise ConfigError(f"weights: given {list(weights)!r}; allowed: {len(model_T)} numbers >= 0, not all 0")
        if average not in ("logits", "probabilities"):
            raise ConfigError(f"average: given {average!r}; allowed: logits, probabilities")
        super().__init__(train_config, distill_config, model_T, model_S, adaptor_T, adaptor_S)
        self._ensemble = Ensemble(None if weights is None else tuple(weights), average)
        self._factory()

    def _teachers_by_task(self) -> Mapping[str, Sequence[nn.Module]]:
        return {"": list(self.model_T)}

    def _teacher_adaptors(self) -> Mapping[str, Sequence[Adaptor]]:
        if isinstance(self.adaptor_T, (list, tuple)):
            return {"": list(self.adaptor_T)}
        return {"": [self.adaptor_T] * len(self.model_T)}


class MultiTaskDistiller(BasicDistiller):
    """Distils teachers of several tasks into one student; models, adaptors and dataloaders are dicts by task.

    With `gradient_accumulation_steps` each loss is divided by its count over the micro-batches of its task, and weighs
    as much as the task's share of the step's micro-batches.
    """

    _needs_logits = False
    _takes_matches = True

    def __init__(
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: Mapping[str, nn.Module],
        model_S: nn.Module,
        adaptor_T: Mapping[str, Adaptor],
        adaptor_S: Mapping[str, Adaptor],
    ) -> None:
        for name, value in (("model_T", model_T), ("adaptor_T", adaptor_T), ("adaptor_S", adaptor_S)):
            _check_tasks(name, value, model_T)
        super().__init__(train_config, distill_config, model_T, model_S, adaptor_T, adaptor_S)

    def train(  # type: ignore[override]  # TextBrewer's own signature, with dataloaders by task
        self,
        optimizer: torch.optim.Optimizer,
        dataloaders: Mapping[str, Iterable[Any]],
        num_steps: int,
        scheduler_class: Callable[..., Any] | None = None,
        scheduler_args: Mapping[str, Any] | None = None,
        scheduler: Any = None,
        max_grad_norm: float = -1.0,
        tau: float = 1,
        callback: Callback | None = None,
        batch_postprocessors: Mapping[str, Postprocessor] | None = None,
        *,
        seed: int = 0,
        **args: Any,
    ) -> Outcome:
        """Train for `num_steps`; see `BasicDistiller.train`.

        The task of each micro-batch is drawn with probability proportional to its number of batches ** `tau`, from
        `seed`, evenly if a dataloader has no length.
        """
        _check_tasks("dataloaders", dataloaders, self.model_T)
        if batch_postprocessors is not None:
            _check_tasks("batch_postprocessors", batch_postprocessors, self.model_T)
        tasks = list(self.model_T)
        order = TaskOrder({task: size_of(dataloaders[task]) for task in tasks}, tau, seed)
        return run(
            self._job(),
            {task: dataloaders[task] for task in tasks},
            dict(batch_postprocessors or {}),
            Duration(None, num_steps),
            Optimisation(optimizer, scheduler_class, scheduler_args, scheduler, max_grad_norm),
            callback,
            args,
            order,
        )

    def _teachers_by_task(self) -> Mapping[str, Sequence[nn.Module]]:
        return {task: [model] for task, model in self.model_T.items()}

    def _teacher_adaptors(self) -> Mapping[str, Sequence[Adaptor]]:
        return {task: [adaptor] for task, adaptor in self.adaptor_T.items()}

    def _student_adaptors(self) -> Mapping[str, Adaptor]:
        adaptors: Mapping[str, Adaptor] = self.adaptor_S
        return adaptors


#: By TextBrewer's short names.
Distillers: dict[str, Any] = {
    "Basic": BasicDistiller,
    "General": GeneralDistiller,
    "MultiTeacher": MultiTeacherDistiller,
    "MultiTask": MultiTaskDistiller,
    "Train": BasicTrainer,
}


def _check_tasks(name: str, value: Any, models: Any) -> None:
    if not isinstance(value, (Mapping, nn.ModuleDict)) or not len(value):
        raise ConfigError(f"{name}: MultiTaskDistiller takes a dict by task, given {type(value).__name__}")
    if set(value) != set(models):
        raise ConfigError(
            f"{name}: tasks {sorted(map(str, value))} are not those of model_T, {sorted(map(str, models))}"
        )

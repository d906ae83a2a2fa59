"""The distillers by TextBrewer's names. They only say what is trained; `run` and the loop train it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from raybrew.config.problems import near_match
from raybrew.distillers.emd import EMDLayers
from raybrew.errors import ConfigError
from raybrew.textbrewer.adaptors import Adaptor
from raybrew.textbrewer.configs import (
    CustomMatch,
    DistillationConfig,
    TrainingConfig,
    resolve_module,
)
from raybrew.textbrewer.presets import projection_of
from raybrew.textbrewer.program import Callback
from raybrew.textbrewer.run import Call, Job, Postprocessor, Trains, run
from raybrew.textbrewer.terms import EMDTerms, Ensemble, TermFactory, label_spec
from raybrew.training.loop import Outcome
from raybrew.training.streams import TaskOrder, size_of

__all__ = [
    "BasicDistiller",
    "BasicTrainer",
    "Distillers",
    "EMDDistiller",
    "GeneralDistiller",
    "MultiTaskDistiller",
    "MultiTeacherDistiller",
]

#: By task: teachers, their adaptors, and the student's adaptor.
Sides = tuple[Mapping[str, Sequence[nn.Module]], Mapping[str, Sequence[Adaptor]], Mapping[str, Adaptor]]


class BasicTrainer(Trains):
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


class BasicDistiller(Trains):
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
        self._emd: EMDTerms | None = None
        matches = distill_config.intermediate_matches
        if matches and not self._takes_matches:
            raise ConfigError(f"intermediate_matches: {type(self).__name__} takes none; use GeneralDistiller")
        count = min((len(models) for models in self._sides()[0].values()), default=0)
        for index, match in enumerate(matches):
            if match.teacher >= count:
                allowed = f"allowed: 0 to {count - 1}"
                raise ConfigError(f"intermediate_matches.{index}.teacher: given {match.teacher}; {allowed}")
        #: One for each match: the trained map of the student, or None.
        self.projs: list[nn.Module | None] = [
            projection_of(match.proj, f"intermediate_matches.{index}.proj") if match.proj else None
            for index, match in enumerate(matches)
        ]
        self._factory()  # names that do not exist are found here

    def _students(self) -> Sequence[nn.Module]:
        return (self.model_S,)

    def _teachers(self) -> Sequence[nn.Module]:
        return [model for models in self._sides()[0].values() for model in models]

    def _sides(self) -> Sides:
        return {"": [self.model_T]}, {"": [self.adaptor_T]}, {"": self.adaptor_S}

    def _factory(self) -> TermFactory:
        config, emd = self.d_config, self._emd
        matches = config.intermediate_matches
        return TermFactory(config, matches, self.projs, self._custom, self._ensemble, self._needs_logits, emd)

    def _job(self) -> Job:
        factory = self._factory()
        trained: dict[str, nn.Module] = {}
        groups: list[tuple[nn.Module, Mapping[str, Any]]] = []
        if self._emd is not None:
            trained["emd"] = self._emd.layers
            groups.append((self._emd.layers.projections, {}))
        for index, (match, proj) in enumerate(zip(self.d_config.intermediate_matches, self.projs, strict=True)):
            if proj is not None:
                trained[f"match_{index}"] = proj
                groups.append((proj, match.proj[3] if len(match.proj) > 3 else {}))
        for index, custom in enumerate(self._custom):
            if isinstance(custom.proj_func, nn.Module):
                trained[f"custom_{index}"] = custom.proj_func
                groups.append((custom.proj_func, custom.proj_group or {}))
        teachers, teacher_adaptors, student_adaptors = self._sides()
        num_teachers = max(len(models) for models in teachers.values())
        return Job(
            name=type(self).__name__,
            config=self.t_config,
            student=self.model_S,
            student_adaptors=student_adaptors,
            specs=factory.specs,
            teachers=teachers,
            teacher_adaptors=teacher_adaptors,
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

    def _sides(self) -> Sides:
        adaptors = self.adaptor_T
        if not isinstance(adaptors, (list, tuple)):
            adaptors = [adaptors] * len(self.model_T)
        return {"": list(self.model_T)}, {"": adaptors}, {"": self.adaptor_S}


class EMDDistiller(BasicDistiller):
    """Distils logits, and hidden layers by the earth mover's distance between all of both models.

    `emd` is a dict: `layer_num_S` and `layer_num_T` (layers with the embeddings), `feature` ("hidden"), `loss`
    ("hidden_mse"), `weight`, and perhaps `proj` = [kind, student dim, teacher dim], one map for each layer. The flow is
    solved exactly on the host, after one transfer of costs and weights for each micro-batch. After each, layers that
    are cheap to match gain weight, unless `update_weights` is False, which is how TextBrewer's example runs; with
    `temperature` the new weights go through a softmax.
    """

    def __init__(
        self,
        train_config: TrainingConfig,
        distill_config: DistillationConfig,
        model_T: nn.Module,
        model_S: nn.Module,
        adaptor_T: Adaptor,
        adaptor_S: Adaptor,
        emd: Mapping[str, Any],
    ) -> None:
        for key in emd:
            if key not in _EMD_KEYS:
                near = near_match(key, _EMD_KEYS)
                raise ConfigError(f"emd: unknown key {key!r}; allowed: {', '.join(_EMD_KEYS)}{near}")
        missing = [key for key in _EMD_KEYS[:5] if key not in emd]
        if missing:
            raise ConfigError(f"emd: {', '.join(missing)} required, but not given")
        if emd["feature"] != "hidden" or emd["loss"] != "hidden_mse":
            raise ConfigError("emd: feature must be 'hidden' and loss 'hidden_mse'")
        if min(emd["layer_num_S"], emd["layer_num_T"]) < 2:
            raise ConfigError("emd: layer_num_S and layer_num_T count the embeddings and at least one layer")
        super().__init__(train_config, distill_config, model_T, model_S, adaptor_T, adaptor_S)
        num_S, num_T, proj = emd["layer_num_S"], emd["layer_num_T"], emd.get("proj")
        projections = [projection_of(proj, "emd.proj") for _ in range(num_S)] if proj else []
        update, temperature = emd.get("update_weights", True), emd.get("temperature")
        self._emd = EMDTerms(
            EMDLayers((num_S - 1, num_T - 1), projections, update, temperature),
            [("hidden", layer) for layer in range(num_S)],
            [("hidden", layer) for layer in range(num_T)],
            emd["weight"],
        )


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
        loaders = {task: dataloaders[task] for task in self.model_T}
        order = TaskOrder({task: size_of(loader) for task, loader in loaders.items()}, tau, seed)
        posts, scheduling = batch_postprocessors or {}, (scheduler_class, scheduler_args, scheduler)
        call = Call(optimizer, loaders, posts, None, num_steps, scheduling, max_grad_norm, callback, args, order)
        return run(self._job(), call)

    def _sides(self) -> Sides:
        teachers = {task: [model] for task, model in self.model_T.items()}
        return teachers, {task: [adaptor] for task, adaptor in self.adaptor_T.items()}, self.adaptor_S


_EMD_KEYS = ("layer_num_S", "layer_num_T", "feature", "loss", "weight", "proj", "update_weights", "temperature")

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

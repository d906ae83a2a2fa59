"""Adaptors at work: from a batch of any dataloader, by models and their adaptors, to what is compared.

What adaptors return is checked and brought to one form: lists of tensors, and of layers only those that are compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raybrew.config.problems import near_match
from raybrew.distillers.objective import Objective
from raybrew.errors import LossError
from raybrew.losses.term import LossTerm
from raybrew.models.forward import outputs_of
from raybrew.textbrewer.presets import ADAPTOR_KEYS, FEATURES
from raybrew.training.evaluation import modes_of
from raybrew.training.streams import leaves, move

__all__ = [
    "Adapted",
    "Adaptor",
    "AdaptorMicro",
    "AdaptorTrainee",
    "StudentInputs",
    "StudentSide",
    "TeacherSide",
    "Wanted",
    "teacher_names",
    "warn_of_unknown_keys",
]

log = logging.getLogger(__name__)

#: adaptor(batch, model_outputs) -> dict of ADAPTOR_KEYS.
Adaptor = Callable[[Any, Any], Mapping[str, Any]]

#: (feature, layer) -> name of the match that compares it.
Wanted = Mapping[tuple[str, int], str]


@dataclasses.dataclass(frozen=True)
class Adapted:
    """One model's side of a micro-batch."""

    logits: tuple[Tensor, ...] = ()
    logits_masks: tuple[Tensor, ...] = ()  #: none, one for all logits, or one for each
    labels: tuple[Tensor, ...] = ()
    losses: tuple[Tensor, ...] = ()
    inputs_mask: Tensor | None = None
    layers: Mapping[tuple[str, int], Tensor] = dataclasses.field(default_factory=dict)
    taps: tuple[Tensor, ...] = ()  #: outputs of the modules in custom matches
    unknown: tuple[str, ...] = ()  #: keys that mean nothing here

    @property
    def is_masked(self) -> bool:
        """Whether counts depend on values: on masks or labels."""
        return bool(self.logits_masks or self.labels) or self.inputs_mask is not None

    def mask_of(self, head: int) -> Tensor | None:
        """The mask (batch, length) of `logits[head]`; None if there is none or it has no effect: logits are 2-D."""
        if not self.logits_masks or self.logits[head].dim() < 3:
            return None
        return self.logits_masks[0 if len(self.logits_masks) == 1 else head]

    def to(self, device: torch.device | str) -> Adapted:
        """The same on `device`."""
        ahead = torch.device(device).type != "cpu"  # a copy to the host must have arrived before it is read

        def moved(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return tuple(tensor.to(device, non_blocking=ahead) for tensor in tensors)

        return dataclasses.replace(
            self,
            logits=moved(self.logits),
            logits_masks=moved(self.logits_masks),
            labels=moved(self.labels),
            losses=(),  # a teacher's losses are not used
            inputs_mask=None if self.inputs_mask is None else self.inputs_mask.to(device, non_blocking=ahead),
            layers={key: layer.to(device, non_blocking=ahead) for key, layer in self.layers.items()},
            taps=moved(self.taps),
        )


def adapt(name: str, said: Any, wanted: Wanted) -> Adapted:
    """`said`, which the adaptor called `name` returned, with the layers that are `wanted`.

    LossError names the adaptor and the value of the wrong kind, or the match whose layer is not there. Features that no
    match compares are not looked at: models return anything there that they were not asked for.
    """
    if not isinstance(said, Mapping):
        raise LossError(f"{name}: expected a dict, the adaptor returned {type(said).__name__}")
    compared = {feature for feature, _ in wanted}
    lists = {key: _tensors(name, key, said.get(key)) for key in ADAPTOR_KEYS if key not in FEATURES or key in compared}
    logits, masks = lists["logits"], lists["logits_mask"]
    if logits and len(masks) not in (0, 1, len(logits)):
        raise LossError(f"{name}: {len(logits)} logits and {len(masks)} logits_mask; give one mask, or one for each")
    for index, tensor in enumerate(logits):
        mask = masks[0 if len(masks) == 1 else index] if masks else None
        if tensor.dim() == 3 and mask is not None and mask.shape != tensor.shape[:2]:
            raise LossError(
                f"{name}: logits_mask {tuple(mask.shape)} does not fit logits {tuple(tensor.shape)}; "
                f"expected {tuple(tensor.shape[:2])}"
            )
    if len(lists["inputs_mask"]) > 1:
        raise LossError(f"{name}: expected one inputs_mask, the adaptor returned {len(lists['inputs_mask'])}")
    layers = {}
    for (feature, layer), match in wanted.items():
        found = lists[feature]
        if not -len(found) <= layer < len(found):
            raise LossError(
                f"{match}: layer {layer} does not exist: {name} returned {len(found)} {feature} layers"
                + (
                    f", 0 to {len(found) - 1}"
                    if found
                    else f"; add the key {feature!r} to what it returns: {', '.join(map(str, said))}"
                )
            )
        layers[feature, layer] = found[layer]
    return Adapted(
        logits=logits,
        logits_masks=masks,
        labels=lists["labels"],
        losses=lists["losses"],
        inputs_mask=lists["inputs_mask"][0] if lists["inputs_mask"] else None,
        layers=layers,
        unknown=tuple(str(key) for key in said if key not in ADAPTOR_KEYS),
    )


def warn_of_unknown_keys(name: str, side: Adapted) -> None:
    """A warning for each key of an adaptor that nothing reads; TextBrewer ignores these without a word."""
    for key in side.unknown:
        near = near_match(key, ADAPTOR_KEYS)
        log.warning("%s: unknown key %r is ignored; known: %s%s", name, key, ", ".join(ADAPTOR_KEYS), near)


def teacher_names(count: int) -> list[str]:
    """What messages call the adaptors of so many teachers."""
    return ["adaptor_T"] if count == 1 else [f"adaptor_T of teacher {index}" for index in range(count)]


@dataclasses.dataclass(frozen=True)
class StudentInputs:
    """The student's side of a micro-batch."""

    task: str
    batch: Any
    num_rows: int
    device: torch.device


@dataclasses.dataclass(frozen=True)
class AdaptorMicro:
    """A batch of the dataloader: what the student gets, what the teachers get, and what they said once."""

    task: str
    student: Any
    teacher: Any
    teacher_cache: Any  #: outputs that replace the teacher's forward pass; None = run it
    num_rows: int
    device: torch.device
    said: list[tuple[Adapted, ...]]  #: empty, or what the teachers said; shared with copies on other devices

    @classmethod
    def of(cls, batch: Any, task: str) -> AdaptorMicro:
        """Splits a mapping with the keys `teacher` and `student`; any other batch is for both."""
        student = teacher = batch
        cache = None
        if isinstance(batch, Mapping) and "teacher" in batch and "student" in batch:
            student, teacher, cache = batch["student"], batch["teacher"], batch.get("teacher_cache")
        return cls(task, student, teacher, cache, _num_rows(student), torch.device("cpu"), [])

    @property
    def inputs(self) -> StudentInputs:
        return StudentInputs(self.task, self.student, self.num_rows, self.device)

    @property
    def shapes(self) -> tuple[Any, ...]:
        """Shapes of all tensors of the batch."""
        return (self.task, *(tuple(tensor.shape) for tensor in leaves((self.student, self.teacher))))

    def to(self, device: torch.device) -> AdaptorMicro:
        student = move(self.student, device)
        # The same tensors on both sides stay the same, which tells that one mask serves both.
        teacher = student if self.teacher is self.student else move(self.teacher, device)
        cache = None if self.teacher_cache is None else move(self.teacher_cache, device)
        return dataclasses.replace(self, student=student, teacher=teacher, teacher_cache=cache, device=device)


class StudentSide:
    """The student with its adaptors, by task: from a batch to what is compared."""

    def __init__(
        self,
        student: nn.Module,
        adaptors: Mapping[str, Adaptor],
        wanted: Wanted,
        taps: Sequence[nn.Module],
        args: Mapping[str, Any],
        name: str = "adaptor_S",
    ) -> None:
        self.student = student
        self.adaptors = adaptors
        self.wanted = wanted
        self.taps = _named_taps(taps, "module_S")
        self.args = args
        self.name = name

    def __call__(self, inputs: StudentInputs) -> Adapted:
        with outputs_of(self.taps) as taps:
            said = _call(self.student, inputs.batch, self.args)
        adapted = adapt(self.name, self.adaptors[inputs.task](inputs.batch, said), self.wanted)
        return dataclasses.replace(adapted, taps=tuple(taps.values()))


class TeacherSide:
    """The teachers of each task with their adaptors; run without gradient, dropout and wrapper.

    `shared` are modules that the student has too, which trains them: only while a teacher runs are they in evaluation
    mode.
    """

    def __init__(
        self,
        teachers: Mapping[str, Sequence[nn.Module]],
        adaptors: Mapping[str, Sequence[Adaptor]],
        wanted: Sequence[Wanted],
        taps: Sequence[nn.Module],
        args: Mapping[str, Any],
        *,
        autocast: Callable[[], contextlib.AbstractContextManager[Any]],
        shared: Sequence[nn.Module] = (),
    ) -> None:
        self.teachers = teachers
        self.adaptors = adaptors
        self.wanted = wanted
        self.taps = _named_taps(taps, "module_T")
        self.args = args
        self.autocast = autocast
        self.shared = shared

    @torch.no_grad()
    def __call__(self, micro: AdaptorMicro) -> tuple[Adapted, ...]:
        count = len(self.teachers[micro.task])
        batches = _one_for_each(micro.teacher, count)
        cached = [None] * count if micro.teacher_cache is None else _one_for_each(micro.teacher_cache, count)
        models, adaptors = self.teachers[micro.task], self.adaptors[micro.task]
        adapted = []
        for index, name in enumerate(teacher_names(count)):
            said, taps = self._said(models[index], batches[index], cached[index])
            side = adapt(name, adaptors[index](batches[index], said), self.wanted[index])
            # A teacher's own losses and labels are used nowhere, and a cache need not hold them.
            adapted.append(dataclasses.replace(side, losses=(), labels=(), taps=taps))
        return tuple(adapted)

    def _said(self, model: nn.Module, batch: Any, cached: Any) -> tuple[Any, tuple[Tensor, ...]]:
        """Outputs of a teacher, or what a batch has in their place, and of the modules in custom matches."""
        if cached is not None:
            if self.taps:
                raise LossError("custom match 0: a batch with teacher_cache runs no teacher, so module_T gives nothing")
            return cached, ()
        with modes_of(self.shared), self.autocast(), outputs_of(self.taps) as taps:
            for module in self.shared:
                module.training = False
            said = _call(model, batch, self.args)
        return said, tuple(taps.values())


class AdaptorTrainee(nn.Module):
    """Student and objective as one module, so that DDP sees one forward pass. Returns sum and count of each term."""

    def __init__(self, student: nn.Module, objective: Objective, owners: Sequence[str], side: StudentSide) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.owners = owners  #: the task of each term
        self.side = side

    def forward(self, inputs: StudentInputs, teachers: Sequence[Adapted]) -> tuple[Tensor, Tensor]:
        return self.compare(self.side(inputs), teachers, inputs)

    def compare(self, student: Adapted, teachers: Sequence[Adapted], inputs: StudentInputs) -> tuple[Tensor, Tensor]:
        """Sum and count of each term; 0 for those of other tasks than that of `inputs`."""
        none = torch.zeros((), device=inputs.device)
        terms = [
            spec.compute(student, teachers, inputs) if owner == inputs.task else LossTerm(none, none)
            for spec, owner in zip(self.objective.terms, self.owners, strict=True)
        ]
        return torch.stack([term.sum for term in terms]), torch.stack([term.count for term in terms])


def _named_taps(modules: Sequence[nn.Module], side: str) -> dict[str, nn.Module]:
    return {f"custom match {i}: {side}, a {type(module).__name__},": module for i, module in enumerate(modules)}


def _one_for_each(value: Any, count: int) -> Sequence[Any]:
    """`value` for each of `count` teachers, or its items if it is a list of as many batches."""
    lists = isinstance(value, (list, tuple)) and len(value) == count > 1
    if lists and all(isinstance(item, (Mapping, list, tuple)) for item in value):
        items: Sequence[Any] = value
        return items
    return [value] * count


def _call(model: Callable[..., Any], batch: Any, args: Mapping[str, Any]) -> Any:
    """`model(**batch, **args)` for a mapping, `model(*batch, **args)` for a sequence."""
    if isinstance(batch, Mapping):
        return model(**batch, **args)
    if isinstance(batch, (list, tuple)):
        return model(*batch, **args)
    return model(batch, **args)


def _tensors(name: str, key: str, value: Any) -> tuple[Tensor, ...]:
    if value is None:
        return ()
    values = (value,) if isinstance(value, Tensor) else value
    if not isinstance(values, (list, tuple)) or not all(isinstance(item, Tensor) for item in values):
        raise LossError(f"{name}: {key!r} must be a tensor or a list of tensors, got {_describe(value)}")
    return tuple(values)


def _describe(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"a list of {', '.join(sorted({type(item).__name__ for item in value}))}"
    return type(value).__name__


def _num_rows(batch: Any) -> int:
    return next((tensor.shape[0] for tensor in leaves(batch) if tensor.dim() > 0), 1)

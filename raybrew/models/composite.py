"""Students joined with other models: those of several tasks on one encoder, and layers at work inside their teacher.

The latter is BERT-of-Theseus (arXiv:2002.02925). The teacher (predecessor) stays frozen and without dropout. Each
student layer (successor) stands for as many teacher layers as there are for each; embeddings and head are the
teacher's, which the student starts from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from raybrew.errors import ModelError
from raybrew.models.shapes import dims_of, sizes_text

__all__ = ["Hybrid", "MultiTaskStudent", "check_hybrid"]


class MultiTaskStudent(nn.Module):
    """`models[task]` are whole models of one architecture that share one base model, embeddings included.

    Where heads ask for different base models, such as one with a pooler and one without, the one with most parts is
    shared, and each model is saved with its own parts alone.
    """

    def __init__(self, models: Mapping[str, PreTrainedModel]) -> None:
        super().__init__()
        bases = {task: _base_of(model, task) for task, model in models.items()}
        # The object itself, not its parts: transformers captures hidden states by hooks that each base model puts on
        # its layers, and layers of two base models would be captured twice.
        shared = max(bases.values(), key=lambda base: len(list(base.children())))
        self._own = {task: frozenset(model.state_dict()) for task, model in models.items()}
        for task, model in models.items():
            _check_fits(shared, bases[task], task)
            setattr(model, model.base_model_prefix, shared)
        self.models = nn.ModuleDict(models)

    def __getitem__(self, task: str) -> PreTrainedModel:
        model: PreTrainedModel = self.models[task]  # type: ignore[assignment]
        return model

    def weights_of(self, task: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of one task's model out of `weights`, a state of this module, under the names that it has itself."""
        start = f"models.{task}."
        named = {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}
        return {name: value for name, value in named.items() if name in self._own[task]}


def _base_of(model: PreTrainedModel, task: str) -> nn.Module:
    base = model.base_model
    if base is model:
        raise ModelError(f"{task}: {type(model).__name__} has no encoder apart from its head, so tasks cannot share it")
    return base


def _check_fits(shared: nn.Module, base: nn.Module, task: str) -> None:
    has = {name: value.shape for name, value in shared.state_dict().items()}
    lacks = [name for name, value in base.state_dict().items() if has.get(name) != value.shape]
    if lacks:
        raise ModelError(
            f"{task}: its model has other parts than those of the other tasks, which share one encoder: "
            f"{', '.join(lacks[:3])}{', ...' if len(lacks) > 3 else ''}"
        )


#: `model_type` -> where the layers are, below the base model. In these families a layer is called in one way only, and
#: takes nothing from the others.
_LAYERS: Mapping[str, str] = MappingProxyType(
    {
        "bert": "encoder",
        "camembert": "encoder",
        "distilbert": "transformer",
        "electra": "encoder",
        "roberta": "encoder",
        "xlm-roberta": "encoder",
    }
)


def check_hybrid(student: PretrainedConfig, teacher: PretrainedConfig) -> None:
    """ModelError if layers of the student cannot stand in the teacher."""
    if teacher.model_type not in _LAYERS or student.model_type != teacher.model_type:
        raise ModelError(
            f"distill.theseus: a student of family {student.model_type!r} in a teacher of family "
            f"{teacher.model_type!r}; allowed: both of one family among {', '.join(_LAYERS)}"
        )
    ours, theirs = dims_of(student), dims_of(teacher)
    if ours.hidden != theirs.hidden:
        raise ModelError(
            f"distill.theseus: the student is {ours.hidden} wide, the teacher {theirs.hidden}, and layers of one take "
            "the other's output; give the student the teacher's width (student.shape without `hidden`)"
        )
    if theirs.layers % ours.layers:
        fitting = [str(number) for number in range(1, theirs.layers + 1) if theirs.layers % number == 0]
        raise ModelError(
            f"distill.theseus: the teacher's {theirs.layers} layers cannot be divided among {ours.layers} of the "
            f"student; allowed for student.shape.layers: {', '.join(fitting)}"
        )


class Hybrid:
    """The teacher with student layers in place of those of `replaced`; it stands in for calling the student.

    It is no module: the student's layers are the student's, and the teacher trains nothing.
    """

    def __init__(self, student: PreTrainedModel, teacher: PreTrainedModel) -> None:
        """ModelError if the models do not fit, or the student does not start from the teacher's embeddings and head."""
        check_hybrid(student.config, teacher.config)
        _check_start(student, teacher)
        self.teacher = teacher.train(False).requires_grad_(False)
        self._stack = _stack_of(teacher)
        self._theirs = list(self._stack.layer)
        self._ours = list(_stack_of(student).layer)
        self.group = len(self._theirs) // len(self._ours)
        self.replaced = (True,) * len(self._ours)

    @property
    def num_modules(self) -> int:
        """How many student layers there are to choose from."""
        return len(self._ours)

    def choose(self, replaced: Sequence[bool]) -> None:
        """From now on, the student's layer where True, the group of teacher layers that it stands for where False."""
        if len(replaced) != self.num_modules:
            raise ValueError(f"{len(replaced)} choices for {self.num_modules} layers")
        self.replaced = tuple(replaced)

    def __call__(self, **inputs: Any) -> Any:
        """What the teacher's forward pass returns, with the chosen layers in it."""
        chosen: list[nn.Module] = []
        for index, (layer, ours) in enumerate(zip(self._ours, self.replaced, strict=True)):
            chosen += [layer] if ours else self._theirs[index * self.group : (index + 1) * self.group]
        own = self._stack.layer
        self._stack.layer = nn.ModuleList(chosen)
        try:
            return self.teacher(**inputs)
        finally:
            self._stack.layer = own


def _stack_of(model: PreTrainedModel) -> Any:
    """The module that has the layers, as `layer`."""
    return model.base_model.get_submodule(_LAYERS[model.config.model_type])


def _check_start(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """The two must share what the hybrid takes from the teacher, or the student would end up without it."""
    prefix = f"{_LAYERS[student.config.model_type]}.layer."
    theirs = dict(teacher.named_parameters())
    for name, value in student.named_parameters():
        if prefix in name:
            continue
        other = theirs.get(name)
        if (
            other is None
            or other.shape != value.shape
            or not torch.equal(value.to(other.device), other.to(value.dtype))
        ):
            raise ModelError(
                f"distill.theseus: {name} of the student ({sizes_text(student.config)}) is not the teacher's, from "
                "which it has to start; set student.shape, and student.init to auto or teacher"
            )

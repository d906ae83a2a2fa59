"""A student of several tasks: one encoder, a head for each, each task a whole Hugging Face model to the outside."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from transformers import PreTrainedModel

from raybrew.errors import ModelError

__all__ = ["MultiTaskStudent"]


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

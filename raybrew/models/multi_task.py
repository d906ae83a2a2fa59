"""A student of several tasks: one encoder, a head for each, each task a whole Hugging Face model to the outside."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from transformers import PreTrainedModel

from raybrew.errors import ModelError

__all__ = ["MultiTaskStudent"]


class MultiTaskStudent(nn.Module):
    """`models[task]` are whole models of one architecture that share all of their encoder, embeddings included.

    What is shared are the parts of the base model under their names, so that models of different heads fit together,
    such as one with a pooler and one without. The first model that has a part gives it to all.
    """

    def __init__(self, models: Mapping[str, PreTrainedModel]) -> None:
        super().__init__()
        parts: dict[str, nn.Module] = {}
        loose: dict[str, nn.Parameter] = {}
        for task, model in models.items():
            base = _base_of(model, task)
            for name, part in list(base.named_children()):
                setattr(base, name, _shared(parts, name, part, task))
            for name, parameter in list(base.named_parameters(recurse=False)):
                setattr(base, name, loose.setdefault(name, parameter))
        self.models = nn.ModuleDict(models)

    def __getitem__(self, task: str) -> PreTrainedModel:
        model: PreTrainedModel = self.models[task]  # type: ignore[assignment]
        return model

    def weights_of(self, task: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of one task's model out of `weights`, a state of this module, under the names that it has itself."""
        start = f"models.{task}."
        return {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}


def _base_of(model: PreTrainedModel, task: str) -> nn.Module:
    base = model.base_model
    if base is model:
        raise ModelError(f"{task}: {type(model).__name__} has no encoder apart from its head, so tasks cannot share it")
    return base


def _shared(parts: dict[str, nn.Module], name: str, part: nn.Module, task: str) -> nn.Module:
    found = parts.setdefault(name, part)
    ours, theirs = ({key: value.shape for key, value in module.state_dict().items()} for module in (found, part))
    if ours != theirs:
        raise ModelError(f"{task}: its model's {name} has other sizes than those of the tasks before; all share one")
    return found

"""What a process has loaded for one command: each finished model and each tokenizer once, until it is released."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import psutil
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raybrew.models.inspection import model_megabytes
from raybrew.models.loading import ModelSource, check_head, load_finished, load_tokenizer

__all__ = ["ModelCache"]


class ModelCache:
    """Finished models and tokenizers by their source.

    Who takes a model leaves its weights as they are, and may move it to a device or freeze it. It belongs to one
    command, not to the process: what is trained in between has another cache. Another process starts with none.
    """

    def __init__(self) -> None:
        self._models: dict[tuple[ModelSource, str], _Loaded] = {}
        self._tokenizers: dict[ModelSource, tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return ModelCache, ()

    def tokenizer(self, source: ModelSource) -> PreTrainedTokenizerBase:
        """`load_tokenizer`. What the last call asked for, such as a length, stays in it: `own_tokenizer` is to save."""
        return self._tokenizer(source)[0]

    def own_tokenizer(self, source: ModelSource) -> PreTrainedTokenizerBase:
        """A copy as it was loaded, to be saved or trimmed."""
        return copy.deepcopy(self._tokenizer(source)[1])

    def _tokenizer(self, source: ModelSource) -> tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]:
        place = _place_of(source)
        if place not in self._tokenizers:
            loaded = load_tokenizer(source)
            self._tokenizers[place] = loaded, copy.deepcopy(loaded)
        return self._tokenizers[place]

    def model(self, source: ModelSource, task_kind: str, *, needs_head: bool = True, seed: int = 0) -> PreTrainedModel:
        """`load_model` of a finished model, in evaluation mode: the head that it may lack depends on `seed`."""
        found = self._loaded(source, task_kind, seed)
        if needs_head:
            check_head(source, task_kind, found.missing)
        found.model.train(False)
        return found.model

    def has_head(self, source: ModelSource, task_kind: str) -> bool:
        """Whether `source` holds all weights of a model for this task, so that its logits mean something."""
        return not self._loaded(source, task_kind, None).missing

    def _loaded(self, source: ModelSource, task_kind: str, seed: int | None) -> _Loaded:
        key = _place_of(source), task_kind
        found = self._models.get(key)
        if found is None or (found.missing and seed not in (None, found.seed)):
            self._make_room()
            model, missing = load_finished(source, task_kind, seed or 0)
            found = self._models[key] = _Loaded(model, tuple(missing), seed or 0)
        return found

    def release(self) -> None:
        """Let go of all models, which then live as long as who uses them. Tokenizers stay."""
        self._models.clear()

    def leave_device(self) -> None:
        """Move all models to the CPU, where who comes next finds them: the device is free for others."""
        for found in self._models.values():
            found.model.to("cpu")  # type: ignore[arg-type]

    def _make_room(self) -> None:
        """Several large teachers need not all fit into memory: what is kept is at most as much as is free beside."""
        kept = sum(model_megabytes(found.model) for found in self._models.values()) * 10**6
        if kept > psutil.virtual_memory().available:
            self.release()


@dataclasses.dataclass(frozen=True)
class _Loaded:
    model: PreTrainedModel
    missing: tuple[str, ...]
    seed: int


def _place_of(source: ModelSource) -> ModelSource:
    """The same for all names of one folder."""
    folder = source.folder
    return source if folder is None else dataclasses.replace(source, model=str(folder.resolve()))

"""A student's own, smaller vocabulary: a folder with its tokenizer, and which rows of the embeddings belong to it."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from raybrew.errors import ModelError
from raybrew.models.loading import COUNTS_FROM_PADDING

__all__ = ["VOCABULARY_FILE", "Vocabulary", "find_vocabulary", "keep_embeddings", "open_vocabulary", "trimmed_config"]

#: Written last: a folder that has it is whole.
VOCABULARY_FILE = "vocabulary.json"

#: Token ids in configs, beside the size of the vocabulary.
_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What a trimmed tokenizer has of the one it was made of."""

    folder: Path
    base: str
    """What the pieces of the whole tokenizer are called (`raybrew.data.encoded.piece_fingerprint`)."""
    exact: bool
    """Whether all rows it was trimmed to are cut into the same pieces, so that only their numbers are others."""
    kept: npt.NDArray[np.int64]
    """Old id of each piece, (pieces,)."""
    size_before: int


def find_vocabulary(folder: str | Path) -> Vocabulary | None:
    """The trimmed vocabulary in a folder; None if it holds none, or is no folder."""
    path = Path(folder) / VOCABULARY_FILE
    return _read(path, path.stat().st_mtime_ns) if path.is_file() else None


def open_vocabulary(folder: str | Path) -> Vocabulary:
    """The trimmed vocabulary in a folder; ModelError if there is none."""
    found = find_vocabulary(folder)
    if found is None:
        raise ModelError(f"{folder}: no trimmed vocabulary; run the command again, which makes it")
    return found


@functools.lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> Vocabulary:
    values = json.loads(path.read_text(encoding="utf-8"))
    kept = np.array(values["kept"], np.int64)
    return Vocabulary(path.parent, values["base"], values["exact"], kept, values["size_before"])


def trimmed_config(config: PretrainedConfig, kept: npt.NDArray[np.int64]) -> PretrainedConfig:
    """A copy of a model's config for the pieces in `kept`; ModelError where positions would move with padding."""
    found = copy.deepcopy(config)
    new = {int(old): number for number, old in enumerate(kept)}
    for name in _TOKEN_IDS:
        old = getattr(config, name, None)
        if isinstance(old, int):
            setattr(found, name, new.get(old))
    if config.model_type in COUNTS_FROM_PADDING and found.pad_token_id != config.pad_token_id:
        raise ModelError(
            f"student.vocabulary: the padding token of this {config.model_type} would become number "
            f"{found.pad_token_id} instead of {config.pad_token_id}, from which its positions are counted; name pieces "
            "that come before it in student.vocabulary.keep"
        )
    found.vocab_size = len(kept)
    return found


def keep_embeddings(model: PreTrainedModel, kept: npt.NDArray[np.int64]) -> None:
    """Leaves `model`, in place, the rows of its word embeddings that belong to the pieces in `kept`."""
    embeddings: nn.Embedding = model.get_input_embeddings()  # type: ignore[assignment]
    with torch.no_grad():
        rows = embeddings.weight[torch.from_numpy(kept)].clone()
    embeddings.weight = nn.Parameter(rows)
    embeddings.num_embeddings = len(kept)
    if embeddings.padding_idx is not None:
        embeddings.padding_idx = int(np.searchsorted(kept, embeddings.padding_idx))
    small = trimmed_config(model.config, kept)
    for name in ("vocab_size", *_TOKEN_IDS):
        if hasattr(model.config, name):
            setattr(model.config, name, getattr(small, name))

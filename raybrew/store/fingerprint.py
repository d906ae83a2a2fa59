"""What teacher outputs depend on, by content: weights, configuration, tokenizer, encoding, precision. No paths."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
import xxhash
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raybrew.data.encoded import tokenizer_fingerprint
from raybrew.store.layout import fingerprint_of_parts
from raybrew.tasks.base import Task

__all__ = ["hash_weights", "store_parts", "teacher_fingerprint"]

#: Configuration keys that do not change what a loaded model computes: provenance, names of labels, defaults of calls.
_VOLATILE_KEYS = frozenset(
    {
        "_name_or_path",
        "_attn_implementation",
        "_attn_implementation_autoset",
        "architectures",
        "dtype",
        "id2label",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


def hash_weights(model: nn.Module) -> str:
    """xxh3_128 over name, type, shape and bytes of every tensor of the state dict, by name.

    The loaded tensors rather than files: the same for a folder, a hub name, one file or many.
    """
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


def store_parts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Task, precision: str
) -> dict[str, Any]:
    """The parts of a store's fingerprint, as they stand in its manifest. `precision` is that of the forward pass.

    Rows are no part of it (a store grows), nor labels, batch sizes or devices.
    """
    # Only what differs from the defaults of its class: new options of a newer transformers do not make a new teacher.
    config = {name: value for name, value in model.config.to_diff_dict().items() if name not in _VOLATILE_KEYS}
    return {
        "weights": hash_weights(model),
        "config": xxhash.xxh3_128_hexdigest(_canonical(config).encode()),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "encode": {
            "task": task.kind,
            "content": list(task.content_columns),
            **task.encode_settings(),
        },
        "precision": precision,
    }


def teacher_fingerprint(parts: Mapping[str, Any]) -> str:
    """Name of the store's folder, 32 hexadecimal digits."""
    return fingerprint_of_parts(parts)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)

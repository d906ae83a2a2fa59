"""What teacher outputs depend on, by content: weights, configuration, tokenizer, encoding, precision. No paths."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
import xxhash
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raybrew.data.encoded import tokenizer_fingerprint
from raybrew.data.hashes import is_settled, read_note, write_note
from raybrew.models.cache import ModelCache
from raybrew.models.inspection import model_megabytes
from raybrew.models.loading import ModelSource, load_config
from raybrew.tasks.base import Task

__all__ = ["ModelHashes", "hash_weights", "hashes_of", "known_hashes", "store_parts"]

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


class ModelHashes(NamedTuple):
    """What a model is known by."""

    weights: str
    config: str
    size: int
    """Bytes of the weights in memory."""


def hashes_of(model: PreTrainedModel) -> ModelHashes:
    """Of a loaded model."""
    # Only what differs from the defaults of its class: new options of a newer transformers do not make a new teacher.
    config = {name: value for name, value in model.config.to_diff_dict().items() if name not in _VOLATILE_KEYS}
    size = int(model_megabytes(model) * 10**6)
    return ModelHashes(hash_weights(model), xxhash.xxh3_128_hexdigest(_canonical(config).encode()), size)


def known_hashes(
    source: ModelSource, task_kind: str, folder: Path, *, needs_head: bool = True, models: ModelCache | None = None
) -> ModelHashes:
    """`hashes_of` the model of `source`, which `models` loads once for its files: `folder` keeps what came of it.

    Files are the same while path, size, times and inode are. ModelError as `load_model` has it.
    """
    stamp = _stamp(source)
    asked = [stamp, task_kind, needs_head, transformers.__version__]
    path = folder / f"model-{xxhash.xxh3_128_hexdigest(_canonical(asked).encode())}.json"
    known = None if stamp is None else read_note(path)
    if known is not None and known["asked"] == asked:
        return ModelHashes(known["weights"], known["config"], known["size"])
    found = hashes_of((models or ModelCache()).model(source, task_kind, needs_head=needs_head))
    settled = stamp is not None and is_settled(time for file in stamp for time in file[2:4])
    if settled and _stamp(source) == stamp and folder.parent.is_dir():
        with contextlib.suppress(OSError):  # the next one loads it again then
            folder.mkdir(exist_ok=True)
            write_note(path, {"asked": asked, **found._asdict()})
    return found


def _stamp(source: ModelSource) -> list[list[Any]] | None:
    """Path, size, times and inode of each file of a model; None where its folder is not known."""
    load_config(source)  # of the hub, the newest files of a revision are asked for
    folder = source.folder or source.snapshot
    if folder is None:
        return None
    files = [(path, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    return [
        [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] for path, stat in files
    ]


def store_parts(hashes: ModelHashes, tokenizer: PreTrainedTokenizerBase, task: Task, precision: str) -> dict[str, Any]:
    """The parts of a store's fingerprint, as they stand in its manifest. `precision` is that of the forward pass.

    Rows are no part of it (a store grows), nor labels, batch sizes or devices.
    """
    return {
        "weights": hashes.weights,
        "config": hashes.config,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "encode": {
            "task": task.kind,
            "content": list(task.content_columns),
            **task.encode_settings(),
        },
        "precision": precision,
    }


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)

"""Students whose linear layers compute in int8, by torchao, as Hugging Face folders that transformers loads."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raybrew.errors import ModelError, first_line
from raybrew.exports.onnx_file import require
from raybrew.models.loading import auto_class

__all__ = ["INT8_SCHEMES", "load_int8", "save_int8"]

#: Format -> torchao's configuration. Activations are quantized as they come, for each token, or stay float32.
INT8_SCHEMES: Mapping[str, str] = MappingProxyType(
    {"int8": "Int8DynamicActivationInt8WeightConfig", "int8-weights": "Int8WeightOnlyConfig"}
)


def save_int8(source: Path, task_kind: str, scheme: str, tokenizer: PreTrainedTokenizerBase, target: Path) -> None:
    """The float model of the folder `source` with int8 linear layers, in the folder `target`.

    Embeddings, normalisations and biases stay float32. ModelError says why a model cannot be quantized.
    """
    require(("torchao",), "int8")
    from torchao import quantization
    from transformers import TorchAoConfig

    config = TorchAoConfig(getattr(quantization, INT8_SCHEMES[scheme])())
    model = _load(source, task_kind, f"{scheme}: torchao cannot quantize the model", quantization_config=config)
    try:
        model.save_pretrained(target)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise ModelError(f"{scheme}: the quantized model cannot be saved: {first_line(error)}") from error
    tokenizer.save_pretrained(target)


def load_int8(folder: Path, task_kind: str) -> PreTrainedModel:
    """The quantized model in `folder`, on the CPU."""
    require(("torchao",), "int8")
    return _load(folder, task_kind, f"cannot load the quantized model of {folder}")


def _load(folder: Path, task_kind: str, what: str, **arguments: Any) -> PreTrainedModel:
    logger = logging.getLogger("torchao")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load = auto_class(task_kind).from_pretrained
            model: PreTrainedModel = load(str(folder), dtype=torch.float32, **arguments)
    except (OSError, ValueError, RuntimeError, ImportError, TypeError, NotImplementedError) as error:
        raise ModelError(f"{what}: {first_line(error)}") from error
    finally:
        logger.setLevel(level)
    model.train(False)
    return model

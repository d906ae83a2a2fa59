"""The forms in which a student is exported."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["FORMATS", "Format"]


class Format(NamedTuple):
    """One form of a student in an export's folder."""

    title: str
    file: str  #: its weights
    extra: str | None = None  #: of raybrew, which has what making it needs
    packages: tuple[str, ...] = ()

    @property
    def is_int8(self) -> bool:
        return self.title.startswith("int8")


_ONNX = ("onnx", "onnxscript", "onnxruntime")
#: Name -> form, in the order in which they are made.
FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        "hf": Format("float32, transformers", "model.safetensors"),
        "onnx": Format("float32, ONNX", "onnx/model.onnx", "onnx", _ONNX),
        "onnx-int8": Format("int8, ONNX", "onnx/model_int8.onnx", "onnx", _ONNX),
        "int8": Format("int8 linear layers, torchao", "int8/model.safetensors", "int8", ("torchao",)),
        "int8-weights": Format("int8 weights, torchao", "int8-weights/model.safetensors", "int8", ("torchao",)),
    }
)

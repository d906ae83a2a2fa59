"""Writes the formats of one export, each from the model in memory and as its users load it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raybrew.errors import ModelError
from raybrew.exports.formats import FORMATS
from raybrew.exports.int8 import INT8_SCHEMES, load_int8, save_int8
from raybrew.exports.onnx_file import OnnxModel, check_onnx, model_inputs, quantize_onnx, write_onnx

__all__ = ["FormatWriter"]

_MEGABYTE = 10**6


@dataclasses.dataclass
class FormatWriter:
    """Makes the formats of one student in the folder `new`; `networks` are those made, as their users load them."""

    kind: str  #: of its task
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    new: Path
    scratch: Path
    opset: int
    say: Callable[[str], None]
    networks: dict[str, nn.Module] = dataclasses.field(default_factory=dict)

    def make(self, name: str) -> dict[str, Any]:
        """Write one format; the facts about it."""
        self.say(f"{name}: {FORMATS[name].title}")
        file = self.new / FORMATS[name].file
        network, facts = self._makers()[name](name, file)
        if network is not self.model:
            self.networks[name] = network
        size = sum(path.stat().st_size for path in file.parent.glob(f"{file.name}*")) / _MEGABYTE
        return {"file": FORMATS[name].file, "megabytes": round(size, 2), **facts}

    def _makers(self) -> Mapping[str, Callable[[str, Path], tuple[nn.Module, dict[str, Any]]]]:
        return {
            "hf": self._hf,
            "onnx": self._onnx,
            "onnx-int8": self._onnx_int8,
            **dict.fromkeys(INT8_SCHEMES, self._int8),
        }

    def _hf(self, name: str, file: Path) -> tuple[nn.Module, dict[str, Any]]:
        self.model.save_pretrained(file.parent)
        if not file.is_file():
            raise ModelError(f"{name}: the model was not saved as one {file.name}; it is too large for one file")
        return self.model, {}

    def _onnx(self, name: str, file: Path) -> tuple[nn.Module, dict[str, Any]]:
        inputs = model_inputs(self.model, self.tokenizer.model_input_names)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_onnx(self.model, inputs, file, self.opset)
        check = check_onnx(self.model, inputs, file)
        facts = {"opset": self.opset, "inputs": list(inputs), "max_difference": check.max_difference}
        return OnnxModel(file), facts | {"checked": [list(shape) for shape in check.shapes]}

    def _onnx_int8(self, name: str, file: Path) -> tuple[nn.Module, dict[str, Any]]:
        inputs = model_inputs(self.model, self.tokenizer.model_input_names)
        whole = file.with_name("model.onnx")
        if not whole.is_file():
            whole = self.scratch / "model.onnx"
            write_onnx(self.model, inputs, whole, self.opset)
            check_onnx(self.model, inputs, whole)
        file.parent.mkdir(parents=True, exist_ok=True)
        quantize_onnx(whole, file)
        return OnnxModel(file), {"opset": self.opset, "inputs": list(inputs)}

    def _int8(self, name: str, file: Path) -> tuple[nn.Module, dict[str, Any]]:
        floats = self.scratch / "float"
        if not floats.is_dir():
            self.model.save_pretrained(floats)
        save_int8(floats, self.kind, name, self.tokenizer, file.parent)
        # What was saved is measured, not what is in memory: that is what its users load.
        return load_int8(file.parent, self.kind), {}

"""The form `dense`: every number of an output, in one element type.

float32, float16 and bfloat16 (as its bits) are kept as they are. int8 keeps round(value / scale), with
scale = largest |value| / 127 of each token (of each row for signals of whole rows; of each query token, over all heads
and keys, for attention), in a second column `scale` of float32. A value is then wrong by half a scale at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raybrew.signals import LOGITS, PAIR_KINDS, Signal
from raybrew.store.forms.base import Column

if TYPE_CHECKING:
    from torch import Tensor, dtype

__all__ = ["ELEMENT_TYPES", "ROUNDING", "Dense", "from_int8", "to_int8", "torch_dtype"]

#: Element type -> Arrow type, most exact first.
ELEMENT_TYPES: Mapping[str, pa.DataType] = MappingProxyType(
    {"float32": pa.float32(), "float16": pa.float16(), "bfloat16": pa.uint16(), "int8": pa.int8()}
)

#: Column of the scales of int8.
SCALE = "scale"

_LARGEST = 127

#: Largest error of one stored value: relative to the value, for int8 to the largest of its token.
ROUNDING: Mapping[str, float] = MappingProxyType(
    {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8, "int8": 0.5 / _LARGEST}
)


class Dense:
    """A column named by the kind of the signal; for int8 a second one with the scales. Losses get a tensor."""

    def __init__(self, signal: Signal, element_type: str) -> None:
        self.signal = signal
        self.element_type = element_type
        self._pairs = signal.kind in PAIR_KINDS
        self._scaled = element_type == "int8"
        self.checked = SCALE if self._scaled else signal.kind

    @staticmethod
    def element_type_of(signal: Signal, wanted: str) -> str:
        """Logits are few and always float32."""
        return "float32" if signal.kind == LOGITS.kind else wanted

    def problem(self, model_type: str) -> str | None:
        """Scores that carry a mask among real tokens cannot be int8."""
        from raybrew.models.attention import PROJECTED_MODELS

        if not self._scaled or self.signal.kind != "attention" or model_type in PROJECTED_MODELS:
            return None
        return (
            f"{self.signal.name} cannot be kept in int8: scores of {model_type} models may carry a mask, next to which "
            "all others would become 0; use another store.element_type, or attention_probs"
        )

    def columns(self, dim: int) -> dict[str, Column]:
        kind = ELEMENT_TYPES[self.element_type]
        columns = {self.signal.kind: Column(kind, pairs=True) if self._pairs else Column(kind, dim)}
        return columns | ({SCALE: Column(pa.float32())} if self._scaled else {})

    def encode(self, output: Tensor) -> dict[str, Tensor]:
        if not self._scaled:
            return {self.signal.kind: output.to(torch_dtype(self.element_type))}
        values, scales = to_int8(output, (1, 3) if self._pairs else (1,))
        return {self.signal.kind: values, SCALE: scales}

    def decode(self, columns: Mapping[str, npt.NDArray[Any]], dim: int) -> Tensor:
        """The values in the type they are stored in, int8 as float32."""
        import torch

        values = columns[self.signal.kind]
        if self.element_type == "bfloat16":
            return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        if not self._scaled:
            return torch.from_numpy(values)
        scales = torch.from_numpy(columns[SCALE])
        return from_int8(torch.from_numpy(values), scales[:, None, :, None] if self._pairs else scales.unsqueeze(-1))

    def live(self, output: Tensor) -> Tensor:
        return output

    def rounding(self, exact: Tensor) -> Tensor:
        size = exact.abs()
        if self._scaled:
            size = size.amax(dim=(1, 3) if self._pairs else (-1,), keepdim=True).expand_as(exact)
        # Numbers too small for float16 lose more than their share.
        return ROUNDING[self.element_type] * size + (2.0**-25 if self.element_type == "float16" else 0.0)

    def remedy(self) -> str:
        wider = "float32" if self.element_type == "bfloat16" else "bfloat16 or float32"
        return f"set store.element_type={wider}"


def torch_dtype(element_type: str) -> dtype:
    """Type of tensors that an element type stands for."""
    import torch

    found: dtype = getattr(torch, element_type)
    return found


def to_int8(values: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Values as int8, and their scales: float32, `dims` being the dimensions that share one.

    Scales of values that are NaN or infinite are so too.
    """
    import torch

    values = values.float()
    scales = values.abs().amax(dim=dims, keepdim=True) / _LARGEST
    divisor = torch.where(scales > 0, scales, 1.0)
    return (values / divisor).round().to(torch.int8), scales.squeeze(dims)


def from_int8(values: Tensor, scales: Tensor) -> Tensor:
    """float32 values; `scales` has the dimensions of `values` that do not share one, the others of size 1."""
    return values.float().mul_(scales)

"""How stored numbers are kept: element types, and int8 with its scales.

float32, float16 and bfloat16 (as its bits) are kept as they are. int8 keeps round(value / scale), with
scale = largest |value| / 127 of each token (of each row for signals of whole rows; of each query token, over all heads
and keys, for attention), in a second column `scale` of float32. A value is then wrong by half a scale at most.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import pyarrow as pa

from raybrew.signals import LOGITS, Signal

if TYPE_CHECKING:
    from torch import Tensor, dtype

__all__ = ["ELEMENT_TYPES", "SCALE", "element_type_of", "from_int8", "relative_rounding", "to_int8", "torch_dtype"]

#: Element type -> Arrow type, most exact first.
ELEMENT_TYPES: Mapping[str, pa.DataType] = MappingProxyType(
    {"float32": pa.float32(), "float16": pa.float16(), "bfloat16": pa.uint16(), "int8": pa.int8()}
)

#: Column of the scales of int8.
SCALE = "scale"

_LARGEST = 127

#: Largest error of one stored value: relative to the value, for int8 to the largest of its token.
_ROUNDING: Mapping[str, float] = MappingProxyType(
    {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8, "int8": 0.5 / _LARGEST}
)


def element_type_of(signal: Signal, wanted: str) -> str:
    """How `signal` is kept in a store of type `wanted`: logits are few and always float32."""
    return "float32" if signal.of(None) == LOGITS else wanted


def relative_rounding(element_type: str) -> float:
    """Bound of the rounding error: a share of the value, for int8 of the largest value of its token."""
    return _ROUNDING[element_type]


def torch_dtype(element_type: str) -> dtype:
    """Type of tensors that an element type stands for."""
    import torch

    types = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
    return types[element_type]


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

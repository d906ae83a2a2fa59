"""Mixed precision: autocast, and the loss scaler that float16 needs."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

__all__ = ["Precision"]

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """`fp32`, `bf16` or `fp16` on one device. Weights stay float32."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self.device = device
        # DDP averages gradients before they are unscaled, so an overflow on one rank is seen by all of them; what
        # `unscale_` finds in parts of divided gradients is exchanged by torch.
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    @property
    def scale(self) -> float | None:
        """What losses are multiplied by in float16; None in other types. Waits for the device."""
        return self.scaler.get_scale() if self.scaler.is_enabled() else None

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Context in which matrix products run in the reduced type."""
        if self.name == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=_TYPES[self.name])

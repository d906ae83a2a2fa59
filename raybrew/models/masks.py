"""Attention masks of transformers, made without a look at their values while a model runs on an accelerator.

transformers leaves the mask out where a batch has no padding. To know that it reads the mask in every forward pass, for
which the host waits until the device has done everything before it. On a CPU the look is free and stays.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from transformers import AttentionMaskInterface
from transformers.masking_utils import eager_mask, sdpa_mask

__all__ = ["read_no_masks"]

_SKIPS = ("allow_is_causal_skip", "allow_is_bidirectional_skip")


@functools.cache
def read_no_masks() -> None:
    """For all models of this process: masks on a device are used as they are. Outputs are the same up to rounding."""
    for name, make in (("sdpa", sdpa_mask), ("eager", eager_mask)):
        AttentionMaskInterface.register(name, _unread(make))


def _unread(make: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(make)
    def mask(*args: Any, **options: Any) -> Any:
        given = options.get("attention_mask")
        if given is not None and given.device.type != "cpu":
            options |= dict.fromkeys(_SKIPS, False)
        return make(*args, **options)

    return mask

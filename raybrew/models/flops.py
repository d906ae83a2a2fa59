"""Floating point operations of a forward pass, counted while the model runs once.

What is counted are matrix products, two operations for each multiply-add: linear layers, attention (scores and the sums
over values, fused or not) and recurrent layers. Look-ups, norms, activations and softmaxes count nothing; beside the
products they are few. Attention is counted as dense: what a mask or a window makes zero is computed by most kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from raybrew.errors import ModelError

__all__ = ["Flops", "count_flops"]


class Flops(NamedTuple):
    """Operations per token of a pass over one row of `length` tokens, none of them padding."""

    length: int
    weights: float
    """Products with weights: the same for any length, but for heads that read one token of a row."""
    products: float
    """Products of activations with activations: attention, which grows with the length."""

    @property
    def total(self) -> float:
        """Both together."""
        return self.weights + self.products


def count_flops(model: PreTrainedModel, length: int) -> Flops:
    """Operations of `model`, which runs once over `length` tokens where it is; its mode is restored.

    ModelError if it cannot take that many tokens.
    """
    device = next(model.parameters()).device
    training = model.training
    model.train(False)
    # Any token but padding, whose place some families do not count as a position.
    token = next(index for index in reversed(range(model.config.vocab_size)) if index != model.config.pad_token_id)
    tokens = torch.full((1, length), token, device=device)
    try:
        with torch.inference_mode(), _Counter() as counter:
            model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    except (IndexError, RuntimeError) as error:
        raise ModelError(f"the model does not run on 1 x {length} tokens: {error}") from error
    finally:
        model.train(training)
    return Flops(length, counter.weights / length, counter.products / length)


class _Counter(TorchFunctionMode):
    """Adds up the operations of the products that are computed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = 0
        self.products = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name in _OF_WEIGHTS:
            self.weights += _OF_WEIGHTS[name](result, *args, **(kwargs or {}))
        elif name in _OF_PRODUCTS:
            self.products += _OF_PRODUCTS[name](result, *args, **(kwargs or {}))
        return result


def _linear(result: Tensor, given: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return 2 * result.numel() * weight.shape[1]


def _gru(result: tuple[Tensor, Tensor], given: Tensor, hidden: Tensor, weights: Any, *rest: Any, **_: Any) -> int:
    """Each matrix is multiplied once per token; biases have one dimension."""
    tokens = given[..., 0].numel()
    return int(2 * tokens * sum(weight.numel() for weight in weights if weight.dim() == 2))


def _matmul(result: Tensor, left: Tensor, right: Tensor, *_: Any, **__: Any) -> int:
    return 2 * result.numel() * left.shape[-1]


def _baddbmm(result: Tensor, added: Tensor, left: Tensor, right: Tensor, *_: Any, **__: Any) -> int:
    return 2 * result.numel() * left.shape[-1]


def _attention(result: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Scores of every pair of tokens and head, then their sums over values."""
    pairs = query[..., 0].numel() * key.shape[-2]
    return 2 * pairs * (query.shape[-1] + value.shape[-1])


#: Name of a function of torch -> operations of one call, from its result and arguments.
_OF_WEIGHTS: Mapping[str, Callable[..., int]] = MappingProxyType({"linear": _linear, "gru": _gru})
_OF_PRODUCTS: Mapping[str, Callable[..., int]] = MappingProxyType(
    {
        "matmul": _matmul,
        "__matmul__": _matmul,
        "bmm": _matmul,
        "mm": _matmul,
        "baddbmm": _baddbmm,
        "scaled_dot_product_attention": _attention,
    }
)

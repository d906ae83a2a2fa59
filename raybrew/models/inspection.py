"""What a model is made of, and how many operations a forward pass takes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from transformers import PreTrainedModel

from raybrew.errors import ModelError
from raybrew.models.shapes import dims_of, sizes_text

__all__ = [
    "Flops",
    "ParameterNode",
    "count_flops",
    "count_parameters",
    "describe",
    "display_parameters",
    "model_megabytes",
]

_MEGABYTE = 10**6


@dataclasses.dataclass
class ParameterNode:
    """Parameters of one module (or one tensor) and everything below it."""

    name: str
    parameters: int = 0
    """Counted here; a tensor that came up before is not."""
    bytes: int = 0
    shared: int = 0
    """Parameters that are here as well, but were counted where they first came up."""
    children: dict[str, ParameterNode] = dataclasses.field(default_factory=dict)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def model_megabytes(model: nn.Module) -> float:
    """Size of the parameters in MB of 10^6 bytes; tied ones count once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) / _MEGABYTE


def describe(model: PreTrainedModel) -> dict[str, Any]:
    """Architecture, sizes and weight of a model, and a line of text; sizes that its config does not name are None."""
    try:
        sizes: dict[str, int | None] = dict(dims_of(model.config)._asdict())
    except ModelError:
        sizes = dict.fromkeys(("layers", "hidden", "heads", "feed_forward"))
    return {
        "architecture": type(model).__name__,
        **sizes,
        "vocabulary": getattr(model.config, "vocab_size", None),
        "parameters": count_parameters(model),
        "megabytes": round(model_megabytes(model), 2),
        "description": sizes_text(model.config),
    }


def display_parameters(model: nn.Module | Mapping[str, Tensor], max_level: int | None = 3) -> tuple[str, ParameterNode]:
    """A table of parameters by module, down to `max_level` levels of names (None: all), and the whole tree behind it.

    Columns: name, parameters, share of the total, MB of 10^6 bytes. A tensor that appears twice is counted where it
    first appears, and the other places are marked. `model` may also be a state dict.
    """
    if isinstance(model, nn.Module):
        # Duplicates are wanted here: they are what gets marked.
        root = _tree(type(model).__name__, model.named_parameters(remove_duplicate=False))
    else:
        root = _tree("model", model.items())
    rows = [("name", "parameters", "share", "MB", ""), *_rows(root, root.parameters, 0, max_level)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    for name, *numbers, mark in rows:
        cells = [name.ljust(widths[0]), *(text.rjust(width) for text, width in zip(numbers, widths[1:], strict=True))]
        lines.append("  ".join([*cells, mark]).rstrip())
    return "\n".join(lines), root


def _tree(name: str, tensors: Iterable[tuple[str, Tensor]]) -> ParameterNode:
    root = ParameterNode(name)
    seen: set[object] = set()
    for path, tensor in tensors:
        identity = _identity(tensor)
        new = identity not in seen
        seen.add(identity)
        node = root
        for part in (None, *path.split(".")):
            if part is not None:
                node = node.children.setdefault(part, ParameterNode(part))
            if new:
                node.parameters += tensor.numel()
                node.bytes += tensor.numel() * tensor.element_size()
            else:
                node.shared += tensor.numel()
    return root


def _identity(tensor: Tensor) -> object:
    """Equal for two views of the same numbers, as a state dict holds them for tied weights."""
    pointer = 0 if tensor.is_meta else tensor.data_ptr()
    return (pointer, tuple(tensor.shape), tensor.stride()) if pointer else id(tensor)


def _rows(node: ParameterNode, total: int, level: int, max_level: int | None) -> list[tuple[str, str, str, str, str]]:
    share = 100 * node.parameters / total if total else 0.0
    mark = f"({node.shared:,} more, shared: counted above)" if node.shared else ""
    rows = [("  " * level + node.name, f"{node.parameters:,}", f"{share:.2f} %", f"{node.bytes / _MEGABYTE:.2f}", mark)]
    if max_level is None or level < max_level:
        for child in node.children.values():
            rows += _rows(child, total, level + 1, max_level)
    return rows


class Flops(NamedTuple):
    """Operations per token of a forward pass over one row of `length` tokens, none of them padding.

    What is counted are matrix products, two operations for each multiply-add: linear layers, attention (scores and the
    sums over values, fused or not) and recurrent layers. Look-ups, norms, activations and softmaxes count nothing;
    beside the products they are few. Attention is counted as dense: what a mask or a window makes zero is computed by
    most kernels.
    """

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
    counter = FlopCounterMode(display=False, custom_mapping=_UNKNOWN_TO_TORCH)
    try:
        with torch.enable_grad(), counter:  # torch's counter hooks parameters, which fails without gradients
            model(input_ids=tokens, attention_mask=torch.ones_like(tokens))
    except (IndexError, RuntimeError) as error:
        raise ModelError(f"the model does not run on 1 x {length} tokens: {error}") from error
    finally:
        model.train(training)
    weights = sum(count for operation, count in counter.get_flop_counts()["Global"].items() if operation in _OF_WEIGHTS)
    return Flops(length, weights / length, (counter.get_total_flops() - weights) / length)


def _recurrent(given: Sequence[int], weights: Sequence[Sequence[int]], *_: Any, **__: Any) -> int:
    """Each matrix is multiplied once per token; biases have one dimension. Arguments are shapes."""
    return 2 * math.prod(given[:-1]) * sum(math.prod(weight) for weight in weights if len(weight) == 2)


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    count: int = sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
    return count


_ATEN = torch.ops.aten
#: Kernels of a whole layer that torch counts nothing for.
_UNKNOWN_TO_TORCH = {_ATEN._cudnn_rnn: _recurrent, _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention}
_OF_WEIGHTS = (_ATEN.mm, _ATEN.addmm, _ATEN._cudnn_rnn)

"""What a model is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from raybrew.errors import ModelError
from raybrew.models.shapes import dims_of, sizes_text

__all__ = [
    "ParameterNode",
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

"""What a model is made of and how fast it answers."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from raybrew.errors import ModelError
from raybrew.models.shapes import dims_of, sizes_text

__all__ = [
    "ParameterNode",
    "count_parameters",
    "describe",
    "display_parameters",
    "measure_latency",
    "model_megabytes",
]

_MEGABYTE = 10**6
_WARM_UP = _FEWEST_REPEATS = 3


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


def measure_latency(
    model: nn.Module,
    *,
    config: PretrainedConfig | None = None,
    batch_sizes: Sequence[int] = (1, 32),
    length: int = 128,
    device: torch.device | None = None,
    repeats: int = 20,
    budget_seconds: float = 10.0,
) -> dict[int, float]:
    """Batch size -> milliseconds per example of a forward pass over `length` tokens, none of them padding.

    The median of `repeats` runs after three to warm up; of fewer, but at least three, where a batch size would take
    longer than `budget_seconds`. Runs where the model is, or on `device` and moves it back; its mode is restored. Draws
    no random numbers. `config` tells of a model that has none itself. ModelError if the model cannot take that many
    tokens.
    """
    config = config or model.config  # type: ignore[assignment]
    assert config is not None
    home = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    device = device or home
    training = model.training
    module: nn.Module = model
    model.train(False)
    module.to(device)
    # One token throughout: what the tokens are does not change the time, but padding would.
    token = next(index for index in reversed(range(config.vocab_size)) if index != config.pad_token_id)
    try:
        return {
            size: _latency(model, torch.full((size, length), token, device=device), repeats, budget_seconds)
            for size in batch_sizes
        }
    finally:
        module.to(home)
        model.train(training)


def _latency(model: nn.Module, input_ids: Tensor, repeats: int, budget_seconds: float) -> float:
    """Median milliseconds per row."""
    mask = torch.ones_like(input_ids)
    size, length = input_ids.shape
    seconds: list[float] = []
    begin = time.perf_counter()
    with torch.inference_mode():
        for turn in range(_WARM_UP + repeats):
            if len(seconds) >= _FEWEST_REPEATS and time.perf_counter() - begin > budget_seconds:
                break
            start = time.perf_counter()
            try:
                model(input_ids=input_ids, attention_mask=mask)
            except (IndexError, RuntimeError) as error:
                raise ModelError(f"the model does not run on {size} x {length} tokens: {error}") from error
            if input_ids.is_cuda:
                torch.cuda.synchronize(input_ids.device)
            if turn >= _WARM_UP:
                seconds.append(time.perf_counter() - start)
    return statistics.median(seconds) * 1000 / size


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

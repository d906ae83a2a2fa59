"""Attention scores of a model, taken while it runs: q k^T / sqrt(head_dim), before the softmax.

BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA and DistilBERT: hooks on the query and key projections of the layers that
were asked for, and one matrix product each. The model itself goes on with scaled-dot-product attention.

Any other architecture runs with eager attention, and what goes into its softmaxes is taken: exact as well, position
biases included, but slower, so a warning says so once. Those scores carry the architecture's mask, cut off at -10000;
losses with a mask of the tokens see no difference.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from raybrew.errors import ModelError

__all__ = ["attention_scores"]

log = logging.getLogger("raybrew.models")


class _Names(NamedTuple):
    """Where an architecture has its self-attention below `layer.<number>`, and its projections below that."""

    module: str
    query: str
    key: str


_BERT = _Names("attention.self", "query", "key")

#: Model types whose scores follow from their projections alone: no bias of positions, nothing shared between layers.
_FAMILIES: Mapping[str, _Names] = MappingProxyType(
    {
        "bert": _BERT,
        "camembert": _BERT,
        "distilbert": _Names("attention", "q_lin", "k_lin"),
        "electra": _BERT,
        "roberta": _BERT,
        "xlm-roberta": _BERT,
    }
)

#: What stands for minus infinity in scores of other architectures: far below any score, and its square is finite.
_MASKED_SCORE = -1e4


@contextlib.contextmanager
def attention_scores(model: nn.Module, layers: Collection[int]) -> Iterator[dict[int, Tensor]]:
    """Collects the scores of `layers`, counted from 1, in the one forward pass of `model` that runs inside.

    The dict is filled when the block is left: layer -> (batch, heads, length, length) in the type the model computes
    in, with gradient where that records one. Hooks are gone after the block, whatever happens in it. ModelError for
    layers that do not exist, with gradient checkpointing, and for models whose attention cannot be found.
    """
    scores: dict[int, Tensor] = {}
    if not layers:
        yield scores
        return
    model = _unwrapped(model)
    if model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise ModelError(
            f"attention scores of {_name(model)}: not with gradient checkpointing, which runs layers twice; "
            "turn it off, or remove the attention matches"
        )
    modules = _self_attentions(model)
    depth = len(modules) if modules else _depth(model)
    beyond = sorted(layer for layer in layers if not 1 <= layer <= depth)
    if beyond:
        raise ModelError(
            f"attention.{beyond[0]:02d} was asked for, but {_name(model)} has attention in layers 1 to {depth}"
        )
    if modules:
        with _projections(modules, _FAMILIES[model.config.model_type], layers) as found:  # type: ignore[union-attr,index]
            yield scores
        scores.update({layer: _product(modules[layer], *found[layer]) for layer in sorted(layers)})
    else:
        _warn_of_eager_attention(_name(model))
        with _eager(model), _Softmaxes() as softmaxes:
            yield scores
        if len(softmaxes.inputs) != depth:
            raise ModelError(
                f"attention scores of {_name(model)}: {depth} layers, but {len(softmaxes.inputs)} softmaxes over pairs "
                f"of tokens; known: {', '.join(_FAMILIES)}"
            )
        scores.update({layer: softmaxes.inputs[layer - 1].clamp_min(_MASKED_SCORE) for layer in sorted(layers)})


def _unwrapped(model: nn.Module) -> nn.Module:
    while isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    return model


def _name(model: nn.Module) -> str:
    return type(model).__name__


def _depth(model: nn.Module) -> int:
    depth = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    if not isinstance(depth, int):
        raise ModelError(
            f"attention scores of {_name(model)}: no Hugging Face model with a number of layers; known: "
            f"{', '.join(_FAMILIES)}"
        )
    return depth


def _self_attentions(model: nn.Module) -> dict[int, nn.Module]:
    """Layer, counted from 1 -> its self-attention; empty where the architecture is unknown."""
    names = _FAMILIES.get(str(getattr(getattr(model, "config", None), "model_type", None)))
    if names is None:
        return {}
    pattern = re.compile(rf"(?:.*\.)?layer\.(\d+)\.{re.escape(names.module)}")
    found = ((pattern.fullmatch(name), module) for name, module in model.named_modules())
    modules = {int(match[1]) + 1: module for match, module in found if match is not None}
    # A model of this type with other modules, such as code of its own, is treated as unknown.
    complete = all(hasattr(module, names.query) and hasattr(module, names.key) for module in modules.values())
    return modules if complete and sorted(modules) == list(range(1, _depth(model) + 1)) else {}


@contextlib.contextmanager
def _projections(
    modules: Mapping[int, nn.Module], names: _Names, layers: Collection[int]
) -> Iterator[dict[int, list[Tensor]]]:
    """Queries and keys of `layers`, (batch, length, heads * head_dim) each, as the model computes them."""
    found: dict[int, list[Tensor]] = {layer: [] for layer in layers}

    def collect(layer: int, module: nn.Module, inputs: Any, output: Tensor) -> None:
        found[layer].append(output)

    with contextlib.ExitStack() as hooks:
        for layer in layers:
            for name in (names.query, names.key):
                projection: nn.Module = getattr(modules[layer], name)
                handle = projection.register_forward_hook(functools.partial(collect, layer))
                hooks.callback(handle.remove)
        yield found
    for layer, outputs in found.items():
        if len(outputs) != 2:
            raise ModelError(f"attention.{layer:02d}: expected one forward pass, {len(outputs) / 2:g} were run")


def _product(module: nn.Module, queries: Tensor, keys: Tensor) -> Tensor:
    """(batch, heads, length, length) of queries and keys that were collected in this order."""
    head_dim: int = module.attention_head_size  # type: ignore[assignment]
    queries, keys = (vectors.reshape(*vectors.shape[:2], -1, head_dim).transpose(1, 2) for vectors in (queries, keys))
    return torch.matmul(queries * head_dim**-0.5, keys.transpose(2, 3))


@functools.cache
def _warn_of_eager_attention(name: str) -> None:
    log.warning(
        "attention scores of %s: an architecture without a short way to them (%s have one); it runs with eager "
        "attention, which is slower",
        name,
        ", ".join(_FAMILIES),
    )


@contextlib.contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    """Eager attention inside, what was set before outside."""
    before = getattr(model.config, "_attn_implementation", "eager")
    if before in (None, "eager"):
        yield
        return
    switch: Callable[[str], None] = model.set_attn_implementation  # type: ignore[assignment]
    switch("eager")
    try:
        yield
    finally:
        switch(before)


class _Softmaxes(TorchFunctionMode):
    """Keeps what goes into softmaxes over (batch, heads, length, length), in the order of the calls."""

    _FUNCTIONS = (nn.functional.softmax, torch.softmax, Tensor.softmax)

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in self._FUNCTIONS:
            scores = args[0] if args else (kwargs or {})["input"]
            if scores.dim() == 4 and scores.shape[-1] == scores.shape[-2]:
                self.inputs.append(scores)
        return func(*args, **(kwargs or {}))

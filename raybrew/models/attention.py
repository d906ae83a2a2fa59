"""What a model's attention holds, taken while it runs: scores, probabilities, queries, keys and values of layers.

Scores are q k^T / sqrt(head_dim), before the softmax; probabilities are their softmax over the real tokens.

BERT, RoBERTa, XLM-RoBERTa, CamemBERT, ELECTRA and DistilBERT: hooks on the projections of the layers that were asked
for, and one matrix product each for scores. The model itself goes on with scaled-dot-product attention.

Any other architecture runs with eager attention, and what goes into its softmaxes is taken: exact as well, position
biases included, but slower, so a warning says so once. Those scores carry the architecture's mask, cut off at -10000;
losses with a mask of the tokens see no difference. Queries, keys and values of such models are not known.
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
from raybrew.signals import PAIR_KINDS, VECTOR_KINDS, Signal, sorted_signals

__all__ = ["PROJECTED_MODELS", "attention_signals"]

log = logging.getLogger("raybrew.models")


class _Names(NamedTuple):
    """Where an architecture has its self-attention below `layer.<number>`, and its projections below that."""

    module: str
    query: str
    key: str
    value: str


_BERT = _Names("attention.self", "query", "key", "value")

#: Model types whose scores follow from their projections alone: no bias of positions, nothing shared between layers.
_FAMILIES: Mapping[str, _Names] = MappingProxyType(
    {
        "bert": _BERT,
        "camembert": _BERT,
        "distilbert": _Names("attention", "q_lin", "k_lin", "v_lin"),
        "electra": _BERT,
        "roberta": _BERT,
        "xlm-roberta": _BERT,
    }
)

#: Model types that give queries, keys and values.
PROJECTED_MODELS = tuple(_FAMILIES)

#: What stands for minus infinity in scores of other architectures: far below any score, and its square is finite.
_MASKED_SCORE = -1e4


@contextlib.contextmanager
def attention_signals(
    model: nn.Module, request: Collection[Signal], mask: Tensor | None = None
) -> Iterator[dict[Signal, Tensor]]:
    """Collects what `request` wants of attention in the one forward pass of `model` that runs inside.

    The dict is filled when the block is left, in the type the model computes in, with gradient where that records one:
    `attention` and `attention_probs` (batch, heads, length, length), `query`, `key`, `value` (batch, length,
    heads * head_dim). Other kinds are ignored. `mask` (batch, length) are the real tokens: probabilities are over
    these keys, or all keys without it. Hooks are gone after the block, whatever happens in it.

    ModelError for layers that do not exist, with gradient checkpointing, and for models whose attention cannot be
    found.
    """
    result: dict[Signal, Tensor] = {}
    wanted = sorted_signals(signal for signal in request if signal.kind in (*PAIR_KINDS, *VECTOR_KINDS))
    if not wanted:
        yield result
        return
    model = _unwrapped(model)
    _refuse_checkpointing(model, wanted[0])
    modules = _self_attentions(model)
    depth = len(modules) if modules else _depth(model)
    beyond = [signal for signal in wanted if signal.layer is not None and signal.layer > depth]
    if beyond:
        raise ModelError(f"{beyond[0]} was asked for, but {_name(model)} has attention in layers 1 to {depth}")
    scores: dict[int, Tensor] = {}
    scored = sorted({signal.layer for signal in wanted if signal.kind in PAIR_KINDS and signal.layer is not None})
    if modules:
        names = _FAMILIES[model.config.model_type]  # type: ignore[union-attr,index]
        needed = {(layer, kind) for layer in scored for kind in ("query", "key")}
        needed |= {(signal.layer, signal.kind) for signal in wanted if signal.kind in VECTOR_KINDS}  # type: ignore[misc]
        with _projections(modules, names, needed) as found:
            yield result
        for layer in scored:
            scores[layer] = _product(modules[layer], found[layer, "query"], found[layer, "key"])
        for signal in wanted:
            if signal.kind in VECTOR_KINDS and signal.layer is not None:
                result[signal] = found[signal.layer, signal.kind]
    else:
        vectors = [signal for signal in wanted if signal.kind in VECTOR_KINDS]
        if vectors:
            raise ModelError(
                f"{vectors[0]} was asked for, but where {_name(model)} has its queries, keys and values is not known; "
                f"known: {', '.join(_FAMILIES)}"
            )
        _warn_of_eager_attention(_name(model))
        with _eager(model), _Softmaxes() as softmaxes:
            yield result
        if len(softmaxes.inputs) != depth:
            raise ModelError(
                f"attention scores of {_name(model)}: {depth} layers, but {len(softmaxes.inputs)} softmaxes over pairs "
                f"of tokens; known: {', '.join(_FAMILIES)}"
            )
        scores.update({layer: softmaxes.inputs[layer - 1].clamp_min(_MASKED_SCORE) for layer in scored})
    for signal in wanted:
        if signal.kind in PAIR_KINDS and signal.layer is not None:
            found_scores = scores[signal.layer]
            result[signal] = found_scores if signal.kind == "attention" else _probabilities(found_scores, mask)


def _refuse_checkpointing(model: nn.Module, signal: Signal) -> None:
    if model.training and any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        raise ModelError(
            f"{signal} of {_name(model)}: not with gradient checkpointing, which runs layers twice; "
            "turn it off, or remove the matches of attention and relations"
        )


def _probabilities(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the real keys, in the type of the scores."""
    if mask is not None:
        # The lowest number rather than -inf: a row without real tokens becomes uniform instead of NaN.
        scores = scores.masked_fill(mask[:, None, None, :] == 0, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1, dtype=torch.float32).to(scores.dtype)


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
    needed = (names.query, names.key, names.value)
    complete = all(hasattr(module, name) for module in modules.values() for name in needed)
    return modules if complete and sorted(modules) == list(range(1, _depth(model) + 1)) else {}


@contextlib.contextmanager
def _projections(
    modules: Mapping[int, nn.Module], names: _Names, wanted: Collection[tuple[int, str]]
) -> Iterator[dict[tuple[int, str], Tensor]]:
    """Projections by (layer, kind), (batch, length, heads * head_dim) each, as the model computes them."""
    calls: dict[tuple[int, str], list[Tensor]] = {place: [] for place in sorted(wanted)}
    found: dict[tuple[int, str], Tensor] = {}

    def collect(place: tuple[int, str], module: nn.Module, inputs: Any, output: Tensor) -> None:
        calls[place].append(output)

    with contextlib.ExitStack() as hooks:
        for layer, kind in calls:
            projection: nn.Module = getattr(modules[layer], getattr(names, kind))
            handle = projection.register_forward_hook(functools.partial(collect, (layer, kind)))
            hooks.callback(handle.remove)
        yield found
    for (layer, kind), outputs in calls.items():
        if len(outputs) != 1:
            raise ModelError(f"attention of layer {layer}: expected one forward pass, {len(outputs)} were run")
        found[layer, kind] = outputs[0]


def _product(module: nn.Module, queries: Tensor, keys: Tensor) -> Tensor:
    """Scores (batch, heads, length, length) of queries and keys (batch, length, heads * head_dim)."""
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

"""Running a model for exactly the signals that were asked for."""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from raybrew.errors import ModelError
from raybrew.models.attention import attention_signals
from raybrew.models.masks import read_no_masks
from raybrew.models.pooled import pooled_output
from raybrew.models.taps import module_outputs
from raybrew.signals import LOGITS, Signal

__all__ = ["MODEL_INPUTS", "checkpoint_layers", "compiled", "forward"]

#: Batch keys that are passed to a Hugging Face model when present.
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

#: Shapes that a model is compiled for; lengths of batches are rounded so that there are fewer up to 4096 tokens.
_MOST_SHAPES = 64


def forward(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    request: Collection[Signal],
    run: Callable[..., Any] | None = None,
) -> dict[Signal, Tensor]:
    """Outputs of `model` for the signals of `request`, in one forward pass.

    `run` stands in for calling the model, such as what `compiled` gives.

    `logits`: (batch, classes); or, for heads that judge tokens, those at the positions `items` (batch, items) of the
    inputs: (batch, items, classes), classes being start and end for question answering. `pooled`: (batch, dim).
    `hidden.i`: (batch, length, dim), 0 the embedding output, i that of layer i.
    From layer 1 on: `attention.i` (batch, heads, length, length), scores before the softmax, `attention_probs.i`,
    their softmax over the real tokens, and `query.i`, `key.i`, `value.i` (batch, length, dim).
    Outputs of modules, by name, are as they come. ModelError names a layer or module that the model does not have, and
    what it cannot give.
    """
    read_no_masks()
    layers = [signal for signal in request if signal.kind == "hidden"]
    items = inputs.get("items")
    with (
        _head_reads(model, items) as at_items,
        attention_signals(model, request, inputs.get("attention_mask")) as attention,
        pooled_output(model, request) as pooled,
        module_outputs(model, request) as tapped,
    ):
        outputs = (run or model)(
            **{name: inputs[name] for name in MODEL_INPUTS if name in inputs},
            output_hidden_states=bool(layers),
            return_dict=True,
            **_without_cache(type(model).forward),
        )
    result: dict[Signal, Tensor] = {}
    if LOGITS in request:
        result[LOGITS] = _logits(outputs, None if at_items else items)
    for signal in layers:
        if signal.layer is None or signal.layer >= len(outputs.hidden_states):
            raise ModelError(
                f"{signal} was asked for, but the model has layers 0 (embeddings) to {len(outputs.hidden_states) - 1}"
            )
        result[signal] = outputs.hidden_states[signal.layer]
    return result | attention | pooled | tapped


@functools.cache
def _without_cache(method: Callable[..., Any]) -> dict[str, bool]:
    """Decoders such as GPT-2 keep a copy of all keys and values for tokens to come, of which there are none here."""
    return {"use_cache": False} if "use_cache" in inspect.signature(method).parameters else {}


@contextlib.contextmanager
def _head_reads(model: nn.Module, items: Tensor | None) -> Iterator[list[bool]]:
    """Inside, the head of a language model is given the tokens at `items` (batch, items) alone, of all that it reads.

    Logits over a vocabulary are most of the work and memory of a small model, and few tokens are asked for. The list is
    not empty when that was done; it is not for models without such a head.
    """
    done: list[bool] = []
    base = _below_vocabulary(model)
    if items is None or base is None:
        yield done
        return
    places = items.unsqueeze(-1)

    def choose(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if done or not given or not isinstance(given[0], Tensor) or given[0].dim() != 3:
            return None
        done.append(True)
        states = given[0]
        return (states.gather(1, places.expand(-1, -1, states.shape[-1])), *given[1:])

    hooks = [child.register_forward_pre_hook(choose) for child in model.children() if child is not base]
    try:
        yield done
    finally:
        for hook in hooks:
            hook.remove()


def _below_vocabulary(model: nn.Module) -> nn.Module | None:
    """The part of a language model that its head reads; None for models without a head over a vocabulary."""
    if not isinstance(model, PreTrainedModel) or model.base_model is model or model.get_output_embeddings() is None:  # type: ignore[no-untyped-call]
        return None
    return model.base_model


def _logits(outputs: Mapping[str, Tensor], items: Tensor | None) -> Tensor:
    if "logits" in outputs:
        logits = outputs["logits"]
    else:
        logits = torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=-1)
    if items is None:
        return logits
    return logits.gather(1, items.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))


def compiled(model: nn.Module) -> Callable[..., Any]:
    """`model` as a compiled function, for each shape of its inputs anew; weights and state stay those of `model`.

    Of a language model that is all below its head, which is given few tokens, and another number in each batch.
    """
    # Beyond torch's own limit of 8 shapes it would run the others uncompiled, without a word.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_SHAPES)
    base = _below_vocabulary(model)
    forward_pass: Callable[..., Any] = model if base is None else base.forward

    def run(*args: Any, **inputs: Any) -> Any:
        return forward_pass(*args, **inputs)

    function: Callable[..., Any] = torch.compile(run, dynamic=False)
    if base is None:
        return function

    def with_head(**inputs: Any) -> Any:
        base.forward = function
        try:
            return model(**inputs)
        finally:
            del base.forward

    return with_head


def checkpoint_layers(model: nn.Module) -> None:
    """Make `model` compute its layers anew in the backward pass; ModelError if it cannot."""
    if not isinstance(model, PreTrainedModel) or not model.supports_gradient_checkpointing:
        raise ModelError(f"train.gradient_checkpointing: {type(model).__name__} cannot do it; set it to false")
    with warnings.catch_warnings():  # of its next name, which the oldest transformers that we support lack
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[no-untyped-call]

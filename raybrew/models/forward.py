"""Running a model for exactly the signals that were asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from raybrew.errors import ModelError
from raybrew.models.attention import attention_signals
from raybrew.models.pooled import pooled_output
from raybrew.signals import LOGITS, Signal

__all__ = ["MODEL_INPUTS", "forward"]

#: Batch keys that are passed to a Hugging Face model when present.
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def forward(model: nn.Module, inputs: Mapping[str, Tensor], request: Collection[Signal]) -> dict[Signal, Tensor]:
    """Outputs of `model` for the signals of `request`, in one forward pass.

    `logits`: (batch, classes). `pooled`: (batch, dim). `hidden.i`: (batch, length, dim), 0 the embedding output, i that
    of layer i. From layer 1 on: `attention.i` (batch, heads, length, length), scores before the softmax,
    `attention_probs.i`, their softmax over the real tokens, and `query.i`, `key.i`, `value.i` (batch, length, dim).
    ModelError names a layer that the model does not have, and what it cannot give.
    """
    layers = [signal for signal in request if signal.kind == "hidden"]
    with (
        attention_signals(model, request, inputs.get("attention_mask")) as attention,
        pooled_output(model, request) as pooled,
    ):
        outputs = model(
            **{name: inputs[name] for name in MODEL_INPUTS if name in inputs},
            output_hidden_states=bool(layers),
            return_dict=True,
        )
    result: dict[Signal, Tensor] = {}
    if LOGITS in request:
        result[LOGITS] = outputs.logits
    for signal in layers:
        if signal.layer is None or signal.layer >= len(outputs.hidden_states):
            raise ModelError(
                f"{signal} was asked for, but the model has layers 0 (embeddings) to {len(outputs.hidden_states) - 1}"
            )
        result[signal] = outputs.hidden_states[signal.layer]
    return result | attention | pooled

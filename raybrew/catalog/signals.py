"""What a teacher (or student) can be asked for, by name: what losses compare and stores keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["KINDS", "Kind"]


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of signal."""

    summary: str
    per: str  #: what there is one of: a `row`, a `token` or a `pair` of tokens and head
    first_layer: int | None = None  #: None where there is one per model
    attends: bool = False  #: belongs to the attention of a layer
    head: bool = False  #: comes from the task's head, which a bare model lacks
    form: str = "dense"  #: how stores keep it: one tensor


#: Every kind there is, in the order of lists for people.
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "logits": Kind("outputs before the softmax, float32", "token", head=True),
        "pooled": Kind("the vector of a row that the classifier reads", "row", head=True),
        "hidden": Kind("hidden states of every token; hidden.00 are the embeddings", "token", 0),
        "attention": Kind(
            "attention scores of every pair of tokens and head, before the softmax", "pair", 1, attends=True
        ),
        "attention_probs": Kind("attention probabilities of every pair of tokens and head", "pair", 1, attends=True),
        "query": Kind("queries of every token, all heads side by side (MiniLM's relations)", "token", 1, attends=True),
        "key": Kind("keys of every token, all heads side by side (MiniLM's relations)", "token", 1, attends=True),
        "value": Kind("values of every token, all heads side by side (MiniLM's relations)", "token", 1, attends=True),
    }
)

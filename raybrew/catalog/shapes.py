"""Published shapes of students, by name. A `NamedShape` of your own is `package.module:Name`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["RECURRENT_SHAPES", "SHAPES", "NamedShape", "RecurrentShape"]


@dataclasses.dataclass(frozen=True)
class NamedShape:
    """One published student shape."""

    layers: int
    hidden: int
    heads: int
    feed_forward: int
    summary: str


#: Shape name -> its numbers. T12-nano and Electra-small differ by architecture only: a shape takes the teacher's.
SHAPES: Mapping[str, NamedShape] = MappingProxyType(
    {
        "T6": NamedShape(6, 768, 12, 3072, "half of BERT-base's layers, as DistilBERT; 65M parameters"),
        "T3": NamedShape(3, 768, 12, 3072, "a quarter of BERT-base's layers; 44M parameters"),
        "T3-small": NamedShape(3, 384, 12, 1536, "three layers of half the width; 17M parameters"),
        "T4-tiny": NamedShape(4, 312, 12, 1200, "four narrow layers, as TinyBERT-4; 14M parameters"),
        "T12-nano": NamedShape(12, 256, 4, 1024, "deep and narrow, for BERT-like teachers; 17M parameters"),
        "Electra-small": NamedShape(
            12, 256, 4, 1024, "ELECTRA-small's layers, for ELECTRA teachers, whose embeddings it keeps"
        ),
    }
)


@dataclasses.dataclass(frozen=True)
class RecurrentShape:
    """A student without attention: the teacher's word embeddings and one bidirectional GRU (`raybrew.models.bigru`)."""

    hidden: int
    """Width of each direction, and of the hidden states that are made of both."""
    summary: str


#: Shapes that are no transformers, by name.
RECURRENT_SHAPES: Mapping[str, RecurrentShape] = MappingProxyType(
    {"BiGRU": RecurrentShape(768, "the teacher's word embeddings and one bidirectional GRU, 768 wide; 31M parameters")}
)

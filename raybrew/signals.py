"""Names of what a teacher (or student) can be asked for, shared by stores, live models and objectives.

A `Signal` is a kind and, for kinds that exist per layer, a layer index. `hidden` 0 are the embeddings, i the output
of the i-th transformer layer; `hidden.08` is the folder name and text form of `Signal("hidden", 8)`. What belongs to
attention (scores, probabilities, queries, keys, values) is counted like that too, so a model gives it from 1 on. (The
list of attentions that Hugging Face models return begins with that of layer 1.)
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable

from raybrew.catalog.signals import KINDS

__all__ = [
    "LAYER_KINDS",
    "LOGITS",
    "PAIR_KINDS",
    "PLAIN_KINDS",
    "POOLED",
    "VECTOR_KINDS",
    "Signal",
    "parse_signal",
    "sorted_signals",
]


#: Kinds that exist once per layer, and once per model.
LAYER_KINDS = tuple(name for name, kind in KINDS.items() if kind.first_layer is not None)
PLAIN_KINDS = tuple(name for name, kind in KINDS.items() if kind.first_layer is None)
#: Kinds with a number for every pair of tokens: (batch, heads, length, length).
PAIR_KINDS = tuple(name for name, kind in KINDS.items() if kind.per == "pair")
#: Projections of a token inside attention: (batch, length, heads * head_dim).
VECTOR_KINDS = tuple(name for name, kind in KINDS.items() if kind.attends and kind.per == "token")


@functools.total_ordering
@dataclasses.dataclass(frozen=True)
class Signal:
    """One kind of model output, for one layer where the kind is per layer."""

    kind: str
    layer: int | None = None
    teacher: str | None = None  #: whose it is, where one of several teachers is asked; None: the only one, or all
    module: str | None = None  #: of kind `module`, which no store has: whose output it is, by its name in the model

    def __post_init__(self) -> None:
        if self.kind == "module" and self.module is not None:
            return
        if self.kind not in KINDS:
            raise ValueError(f"unknown signal {self.kind!r}; known: {', '.join(KINDS)}")
        first = KINDS[self.kind].first_layer
        if first is None:
            if self.layer is not None:
                raise ValueError(f"signal {self.kind!r} has no layers, got layer {self.layer!r}")
        elif self.layer is None or self.layer < first:
            given = "" if self.layer is None else f", got {self.layer}"
            raise ValueError(f"signal {self.kind!r} needs a layer >= {first}{given}, such as {self.kind}.08")

    @property
    def name(self) -> str:
        """Folder name in a store: `logits`, `hidden.08`."""
        name = self.kind if self.layer is None else f"{self.kind}.{self.layer:02d}"
        if self.module is not None:
            name = f"module {self.module}"
        return name if self.teacher is None else f"{self.teacher}:{name}"

    @property
    def owner(self) -> str:
        """The teacher that it is of, empty for the only one, or all."""
        return self.teacher or ""

    def of(self, teacher: str | None) -> Signal:
        """The same of that teacher; of None, as the teacher itself and its store know it."""
        return dataclasses.replace(self, teacher=teacher)

    def __str__(self) -> str:
        return self.name

    def __lt__(self, other: Signal) -> bool:
        return _sort_key(self) < _sort_key(other)


LOGITS = Signal("logits")
POOLED = Signal("pooled")


def _sort_key(signal: Signal) -> tuple[str, int, str, int, str]:
    return (
        signal.owner,
        signal.layer is not None,
        signal.kind,
        -1 if signal.layer is None else signal.layer,
        signal.module or "",
    )


def parse_signal(text: str) -> Signal:
    """`logits`, `hidden.08` or `hidden[8]` as a Signal; ValueError names what is allowed."""
    found = re.fullmatch(r"([a-z_]+)(?:\.(\d+)|\[(\d+)\])?", text)
    if found is None:
        raise ValueError(f"{text!r} is no signal name; examples: logits, hidden.08, hidden[8]")
    kind, dotted, bracketed = found.groups()
    layer = dotted or bracketed
    return Signal(kind, None if layer is None else int(layer))


def sorted_signals(signals: Iterable[Signal]) -> tuple[Signal, ...]:
    """Unique signals in the one order used in manifests and messages: plain kinds first, then by kind and layer."""
    return tuple(sorted(set(signals)))

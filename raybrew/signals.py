"""Names of what a teacher (or student) can be asked for, shared by stores, live models and objectives.

A `Signal` is a kind and, for kinds that exist per layer, a layer index. `hidden` 0 are the embeddings, i the output
of the i-th transformer layer; `hidden.08` is the folder name and text form of `Signal("hidden", 8)`. `attention` i are
the scores (before the softmax) of the i-th layer too, so a model gives them from 1 on. (The list of attentions that
Hugging Face models return begins with that of layer 1.)
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable

__all__ = ["LAYER_KINDS", "LOGITS", "PLAIN_KINDS", "Signal", "parse_signal", "sorted_signals"]

#: Kinds that exist once per layer.
LAYER_KINDS = ("hidden", "attention")
#: Kinds that exist once per model.
PLAIN_KINDS = ("logits",)


@functools.total_ordering
@dataclasses.dataclass(frozen=True)
class Signal:
    """One kind of model output, for one layer where the kind is per layer."""

    kind: str
    layer: int | None = None
    teacher: str | None = None  #: whose it is, where one of several teachers is asked; None: the only one, or all

    def __post_init__(self) -> None:
        if self.kind in LAYER_KINDS:
            if self.layer is None or self.layer < 0:
                raise ValueError(f"signal {self.kind!r} needs a layer >= 0, got {self.layer!r}")
        elif self.kind in PLAIN_KINDS:
            if self.layer is not None:
                raise ValueError(f"signal {self.kind!r} has no layers, got layer {self.layer!r}")
        else:
            raise ValueError(f"unknown signal {self.kind!r}; known: {', '.join((*PLAIN_KINDS, *LAYER_KINDS))}")

    @property
    def name(self) -> str:
        """Folder name in a store: `logits`, `hidden.08`."""
        name = self.kind if self.layer is None else f"{self.kind}.{self.layer:02d}"
        return name if self.teacher is None else f"{self.teacher}:{name}"

    def of(self, teacher: str | None) -> Signal:
        """The same of that teacher; of None, as the teacher itself and its store know it."""
        return dataclasses.replace(self, teacher=teacher)

    def __str__(self) -> str:
        return self.name

    def __lt__(self, other: Signal) -> bool:
        return _sort_key(self) < _sort_key(other)


LOGITS = Signal("logits")


def _sort_key(signal: Signal) -> tuple[str, int, str, int]:
    return (
        signal.teacher or "",
        signal.layer is not None,
        signal.kind,
        -1 if signal.layer is None else signal.layer,
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

"""What tasks do with a model's outputs in training: the loss against labels, and what is compared with the teacher's.

Batches have `logits_mask` (batch,), 0 for rows that only pad a worker's share; for tasks with items `items` (batch,
items), the positions of tokens, and `item_mask` of the same shape; and `labels`, whose shape the head knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

from raybrew.losses.logits import hard_label_ce
from raybrew.losses.term import LossTerm

__all__ = ["ClassHead", "Compared", "Head", "ItemHead"]


class Compared(NamedTuple):
    """Logits as a KD loss takes them: an item for each entry of `mask`, classes in the last dimension."""

    student: Tensor
    teacher: Tensor
    mask: Tensor
    labels: Tensor | None  #: class of each item, < 0 for none; None where items have no single class
    class_mask: Tensor | None = None  #: classes that an item may have; None: all


class Head(Protocol):
    """Losses on the outputs of one task. Counts follow from the batch alone, before the forward pass."""

    def compared(self, student: Tensor, teacher: Tensor, batch: Mapping[str, Tensor]) -> Compared:
        """Both models' logits, and which of them count."""
        ...

    def num_compared(self, batch: Mapping[str, Tensor]) -> Tensor:
        """How many items `compared` has."""
        ...

    def label_loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> LossTerm:
        """Loss against labels; what has no label does not count."""
        ...

    def num_labelled(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The count of `label_loss`."""
        ...


class ClassHead:
    """One class per row: logits (batch, classes), labels (batch,) with -1 for none; cross entropy."""

    def compared(self, student: Tensor, teacher: Tensor, batch: Mapping[str, Tensor]) -> Compared:
        return Compared(student, teacher, batch["logits_mask"], batch["labels"])

    def num_compared(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["logits_mask"].sum()

    def label_loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> LossTerm:
        return hard_label_ce(logits, batch["labels"], batch["logits_mask"])

    def num_labelled(self, batch: Mapping[str, Tensor]) -> Tensor:
        return ((batch["labels"] >= 0) * batch["logits_mask"]).sum()


class ItemHead:
    """One class per item: logits (batch, items, classes), labels (batch, items) with -1 for none; cross entropy."""

    def compared(self, student: Tensor, teacher: Tensor, batch: Mapping[str, Tensor]) -> Compared:
        return Compared(student, teacher, batch["item_mask"], batch["labels"])

    def num_compared(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["item_mask"].sum()

    def label_loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> LossTerm:
        return hard_label_ce(logits, batch["labels"], batch["item_mask"])

    def num_labelled(self, batch: Mapping[str, Tensor]) -> Tensor:
        return ((batch["labels"] >= 0) * batch["item_mask"]).sum()

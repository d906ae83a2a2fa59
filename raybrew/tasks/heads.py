"""What tasks do with a model's outputs in training: the loss against labels, and what is compared with the teacher's.

Batches have `logits_mask` (batch,), 0 for rows that only pad a worker's share; for tasks with items `items` (batch,
items), the positions of tokens, and `item_mask` of the same shape; and `labels`, whose shape the head knows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from raybrew.losses.logits import hard_label_ce, label_items
from raybrew.losses.term import LossTerm

__all__ = ["BinaryHead", "ClassHead", "Compared", "Head", "ItemHead", "NumberHead", "SpanHead", "VocabularyHead"]


class Compared(NamedTuple):
    """Logits as a KD loss takes them: an item for each entry of `mask`, classes in the last dimension."""

    student: Tensor
    teacher: Tensor
    mask: Tensor
    labels: Tensor | None  #: class of each item, < 0 for none; None where items have no single class
    class_mask: Tensor | None = None  #: classes that an item may have; None: all


class Head(Protocol):
    """Losses on the outputs of one task. Counts follow from the batch alone, before the forward pass."""

    kd_loss: str  #: what `distill.kd_loss.kind: auto` stands for

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

    def outputs(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """What metrics and predictions read of logits, float32, the first dimensions being theirs."""
        ...


class _WholeLogits:
    def outputs(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return logits.float()


class ClassHead(_WholeLogits):
    """One class per row: logits (batch, classes), labels (batch,) with -1 for none; cross entropy."""

    kd_loss = "ce"

    def compared(self, student: Tensor, teacher: Tensor, batch: Mapping[str, Tensor]) -> Compared:
        return Compared(student, teacher, batch["logits_mask"], batch["labels"])

    def num_compared(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["logits_mask"].sum()

    def label_loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> LossTerm:
        return hard_label_ce(logits, batch["labels"], batch["logits_mask"])

    def num_labelled(self, batch: Mapping[str, Tensor]) -> Tensor:
        return ((batch["labels"] >= 0) * batch["logits_mask"]).sum()


class ItemHead(_WholeLogits):
    """One class per item: logits (batch, items, classes), labels (batch, items) with -1 for none; cross entropy."""

    kd_loss = "ce"

    def compared(self, student: Tensor, teacher: Tensor, batch: Mapping[str, Tensor]) -> Compared:
        return Compared(student, teacher, batch["item_mask"], batch["labels"])

    def num_compared(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["item_mask"].sum()

    def label_loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> LossTerm:
        return hard_label_ce(logits, batch["labels"], batch["item_mask"])

    def num_labelled(self, batch: Mapping[str, Tensor]) -> Tensor:
        return ((batch["labels"] >= 0) * batch["item_mask"]).sum()


class BinaryHead(_WholeLogits):
    """Any set of classes per row: logits (batch, classes); binary cross entropy, mean over classes.

    Labels (batch, most) are class numbers filled up with -1; a row with -2 has no labels.
    """

    kd_loss = "bce"

    def compared(self, student: Tensor, teacher: Tensor, batch: Mapping[str, Tensor]) -> Compared:
        return Compared(student, teacher, batch["logits_mask"], None)

    def num_compared(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["logits_mask"].sum()

    def label_loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> LossTerm:
        labelled, labels = self._labelled(batch), batch["labels"]
        classes = logits.shape[-1]
        # One class more than there are takes what is no class.
        targets = torch.zeros(len(labels), classes + 1, device=logits.device)
        targets = targets.scatter(1, labels.masked_fill(labels < 0, classes), 1.0)[:, :classes]
        per_row = functional.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").mean(dim=-1)
        return LossTerm(per_row.masked_fill(~labelled, 0.0).sum(), labelled.float().sum())

    def num_labelled(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self._labelled(batch).float().sum()

    def _labelled(self, batch: Mapping[str, Tensor]) -> Tensor:
        return ~(batch["labels"] == -2).any(dim=1) & (batch["logits_mask"] != 0)


class NumberHead(_WholeLogits):
    """One number per row: logits (batch, 1), labels (batch,) float32 with NaN for none; squared error."""

    kd_loss = "mse"

    def compared(self, student: Tensor, teacher: Tensor, batch: Mapping[str, Tensor]) -> Compared:
        return Compared(student, teacher, batch["logits_mask"], None)

    def num_compared(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["logits_mask"].sum()

    def label_loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> LossTerm:
        labelled = self._labelled(batch)
        gaps = (logits.float().squeeze(-1) - batch["labels"]).masked_fill(~labelled, 0.0)
        return LossTerm(gaps.square().sum(), labelled.float().sum())

    def num_labelled(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self._labelled(batch).float().sum()

    def _labelled(self, batch: Mapping[str, Tensor]) -> Tensor:
        return ~batch["labels"].isnan() & (batch["logits_mask"] != 0)


class SpanHead(_WholeLogits):
    """A span of items: start and end logits (batch, items, 2), labels (batch, 2) of items, -1 for none.

    Start and end are two questions whose classes are the row's items; padding is no item, so it takes no probability.
    """

    kd_loss = "ce"

    def compared(self, student: Tensor, teacher: Tensor, batch: Mapping[str, Tensor]) -> Compared:
        return Compared(
            student.transpose(1, 2), teacher.transpose(1, 2), self._mask(batch), batch["labels"], batch["item_mask"]
        )

    def num_compared(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self._mask(batch).sum()

    def label_loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> LossTerm:
        return hard_label_ce(logits.transpose(1, 2), batch["labels"], self._mask(batch), class_mask=batch["item_mask"])

    def num_labelled(self, batch: Mapping[str, Tensor]) -> Tensor:
        return label_items(batch["labels"], self._mask(batch), class_mask=batch["item_mask"]).float().sum()

    def _mask(self, batch: Mapping[str, Tensor]) -> Tensor:
        return batch["logits_mask"].unsqueeze(1).expand(-1, 2)


@dataclasses.dataclass(frozen=True)
class VocabularyHead(ItemHead):
    """A token for each item: logits (batch, items, vocabulary), labels (batch, items) with -1 for none; cross entropy.

    Its outputs are small where the logits are not: (batch, items, 2 + 2 * top_k), being the log-probability of the
    label, whether it is the best token, the log-probabilities of the best tokens, and their numbers.
    Outputs from number `entries` on are of no token (padding of the vocabulary) and take no part.
    """

    top_k: int
    entries: int | None = None

    def compared(self, student: Tensor, teacher: Tensor, batch: Mapping[str, Tensor]) -> Compared:
        return super().compared(student[..., : self.entries], teacher[..., : self.entries], batch)

    def label_loss(self, logits: Tensor, batch: Mapping[str, Tensor]) -> LossTerm:
        return super().label_loss(logits[..., : self.entries], batch)

    def outputs(self, logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        log_probs = logits[..., : self.entries].float().log_softmax(dim=-1)
        best = log_probs.topk(min(self.top_k, log_probs.shape[-1]), dim=-1)
        labels = batch["labels"].unsqueeze(-1)
        of_label = log_probs.gather(-1, labels.clamp_min(0))
        hit = best.indices[..., :1] == labels
        # Numbers of tokens are exact in float32 up to 2 ** 24.
        return torch.cat([of_label, hit.float(), best.values, best.indices.float()], dim=-1)

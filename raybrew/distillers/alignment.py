"""Start and end of answers between tokenizers that cut a text differently, by way of its characters."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raybrew.data.encoded import EncodedRows
from raybrew.data.loader import Payload, SignalSource
from raybrew.signals import LOGITS, Signal

__all__ = ["AlignedAnswers", "align_answers"]

#: Stands for the logit of a token with which no answer of the teacher's begins or ends: its probability is 0 at any
#: temperature that is used, and its square and products are finite.
_IMPOSSIBLE = -1e4


class AlignedAnswers:
    """What a store says of the teacher's items, as it is for those of the student; all else as it is stored.

    `teacher` and `student` are the same units in both models' tokens.
    """

    def __init__(self, stored: SignalSource, teacher: EncodedRows, student: EncodedRows) -> None:
        self.stored = stored
        self.teacher = teacher
        self.student = student

    def __call__(self, rows: npt.NDArray[np.int64], length: int | None = None) -> Mapping[Signal, Payload]:
        """As `StoredSignals`: logits (rows, most items of the student, 2)."""
        found = dict(self.stored(rows, length))
        if LOGITS in found:
            ours, theirs = (each.spans(rows) for each in (self.student, self.teacher))
            found[LOGITS] = align_answers(found[LOGITS].to_dense(), theirs, ours)
        return found


def align_answers(logits: Tensor, theirs: list[npt.NDArray[np.int64]], ours: list[npt.NDArray[np.int64]]) -> Tensor:
    """Logits of start and end (rows, their items, 2) as logits (rows, our items, 2), padded with impossible ones.

    `theirs` and `ours` are characters (items, 2) of each row; item 0 is none, but says that there is no answer. The
    probability that an answer starts with a token goes to the token that holds its first character, and that it ends
    with one to the token that holds its last one, so that probabilities still add up to 1.
    """
    aligned = logits.new_full((len(ours), max(map(len, ours)), 2), _IMPOSSIBLE)
    for row, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        if len(our) < 2 or len(their) < 2:
            aligned[row, 0] = logits[row, : len(their)].logsumexp(dim=0)
            continue
        for side, places in enumerate((their[1:, 0], their[1:, 1] - 1)):
            # The last of our tokens that begins at or before that character; the first one where none does.
            held = np.maximum(np.searchsorted(our[1:, 0], places, side="right"), 1)
            goal = torch.from_numpy(np.concatenate([[0], held]))
            values = logits[row, : len(their), side]
            aligned[row, : len(our), side] = _grouped(values, goal, len(our))
    return aligned


def _grouped(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """The logarithm of the sum of exp(values) in each of `count` groups; an impossible value for an empty one."""
    most = values.max()
    sums = torch.zeros(count, dtype=values.dtype).index_add_(0, groups, (values - most).exp())
    found = sums.log() + most
    return found.masked_fill(sums == 0, _IMPOSSIBLE).clamp_min(_IMPOSSIBLE)

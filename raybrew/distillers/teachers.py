"""Where a student's targets come from: a model that runs live, or the store. Both give the same type."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from raybrew.data.encoded import TEACHER_TYPES
from raybrew.data.loader import MicroBatch, Payload
from raybrew.models.forward import forward
from raybrew.signals import Signal

if TYPE_CHECKING:
    from raybrew.store.forms.base import Forms
    from raybrew.store.reader import RowPositions, Store

__all__ = ["LiveTeacher", "SignalsInBatch", "StoredSignals", "Teacher"]


class Teacher(Protocol):
    """Answers a request for signals over one micro-batch."""

    def signals(self, batch: MicroBatch) -> Mapping[Signal, Payload]: ...


class SignalsInBatch:
    """Hands on what the loader put into the batch: stored signals, or nothing for a control that learns from labels."""

    def signals(self, batch: MicroBatch) -> Mapping[Signal, Payload]:
        return batch.teacher


class LiveTeacher:
    """Runs the teacher on the student's batch, without gradient and without any wrapper."""

    def __init__(
        self,
        model: nn.Module,
        request: Collection[Signal],
        autocast: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        token_ids: Tensor | None = None,
        reads: Collection[str] | None = None,
        forms: Forms | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.request = request
        self.autocast = autocast
        #: The teacher's id of each of the student's pieces, where these are numbered anew.
        self.token_ids = token_ids
        #: What its own tokenizer gives it, whatever that of the student does; None: what the student reads.
        self.reads = reads
        #: What losses get is what a store kept like this would give them, but for the rounding of numbers.
        self.forms = {signal: forms.of(signal) for signal in request} if forms is not None else {}

    def signals(self, batch: MicroBatch) -> Mapping[Signal, Payload]:
        inputs = batch.inputs if self.reads is None else _read_by(self.reads, batch.inputs)
        if self.token_ids is not None:
            inputs = {**inputs, "input_ids": self.token_ids[inputs["input_ids"]]}
        # no_grad, not inference_mode: its tensors may enter autograd as constants of the losses.
        with torch.no_grad(), self.autocast():
            found = forward(self.model, inputs, self.request)
            return {**found, **{signal: form.live(found[signal]) for signal, form in self.forms.items()}}


def _read_by(names: Collection[str], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`inputs` with token types if they are among `names`, and without them otherwise."""
    found = dict(inputs)
    types = found.pop("token_type_ids", None)
    types = found.pop(TEACHER_TYPES, types)
    return found if types is None or "token_type_ids" not in names else {**found, "token_type_ids": types}


class StoredSignals:
    """Signals of training rows out of a store; `positions` maps each row to the store's row of the same content."""

    def __init__(self, store: Store, positions: RowPositions | np.ndarray, request: Collection[Signal]) -> None:
        self.store = store
        self.positions = positions
        self.request = sorted(request)

    def __call__(self, rows: np.ndarray, length: int | None = None) -> dict[Signal, Payload]:
        """Those of `rows`, signals of tokens padded to `length`, by default to the longest row."""
        positions = self.positions[rows]
        return {signal: self.store.gather(signal, positions, length) for signal in self.request}

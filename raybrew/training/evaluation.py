"""Evaluation rows through a model, by all workers together, each row once: outputs for metrics, and the losses.

How rows are cut into batches follows from their lengths alone, and which worker takes a batch changes no batch. So what
comes out does not depend on the size of training batches or, but for rounding, on the number of workers, not even for
terms that look at a batch as a whole (`emd`, temperature schedules).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from raybrew.config.judge import LOSS
from raybrew.data.loader import MicroBatch, SignalSource, TokenRows, collate
from raybrew.distillers.objective import Objective
from raybrew.distillers.teachers import Teacher
from raybrew.models.forward import forward
from raybrew.signals import LOGITS
from raybrew.tasks.heads import Head
from raybrew.training.context import Context
from raybrew.training.optim import Precision
from raybrew.training.parallel import is_sharded

__all__ = ["Asked", "Evaluation", "Outputs", "compute_logits", "losses_of", "measure_rows", "modes_of"]

#: Padded tokens of one evaluation batch; evaluation keeps no activations, so this is generous.
_BATCH_TOKENS = 16384
#: Where outputs of a teacher lie beside the student's.
_COMPARED_TOKENS = 4096

#: What metrics and predictions read of a model: (rows, classes), or (items, classes) for each row.
Outputs = npt.NDArray[np.float32] | list[npt.NDArray[np.float32]]


class Evaluation(NamedTuple):
    """What an evaluation came to; empty without evaluation rows."""

    metrics: dict[str, float]
    losses: dict[str, float]  #: `loss`, the weighted total, and `loss/<term>`

    def value(self, judge: str) -> float | None:
        """That of a metric, or of the total for LOSS."""
        return (self.losses if judge == LOSS else self.metrics).get(judge)

    def named(self, judge: str) -> dict[str, float]:
        """All values by name, first the one that judges."""
        found = self.metrics | self.losses
        return {judge: found[judge]} | found if judge in found else found


@dataclasses.dataclass(frozen=True)
class Asked:
    """Where the losses of an evaluation get the teacher's outputs from, for each row of `rows` that it has."""

    rows: npt.NDArray[np.bool_]
    source: SignalSource | None  #: what is put into batches
    teacher: Teacher
    measure: Callable[[Mapping[str, Tensor], Any], tuple[Tensor, Tensor, Tensor]]
    """Inputs and what the teacher said -> logits of the student, sum and count of each term."""


def compute_logits(
    model: nn.Module,
    data: TokenRows,
    pad_token_id: int,
    context: Context,
    precision: Precision,
    head: Head,
    progress: Callable[[int], None] | None = None,
) -> Outputs:
    """float32 logits of `model` in the order of `data`, on every worker: (rows, classes), or (items, classes) a row.

    More exactly what `head.outputs` makes of them, where they are too many to keep.
    """
    outputs = _Outputs(head, len(data.lengths))
    batches = list(_batches(data.lengths, np.arange(len(data.lengths)), _BATCH_TOKENS))
    with _evaluating(model, precision):
        for rows, counts in _share(batches, context, is_sharded(model)):
            batch = collate(rows, data, pad_token_id, None).to(context.device)
            logits = forward(model, batch.inputs, (LOGITS,))[LOGITS]
            if counts:
                outputs.add(rows, logits, batch)
                if progress is not None:
                    progress(len(rows) * context.world_size)
    return outputs.of_all(context)


def measure_rows(
    trainee: Any,
    model: nn.Module,
    data: TokenRows,
    pad_token_id: int,
    context: Context,
    precision: Precision,
    *,
    head: Head,
    asked: Asked,
) -> tuple[Outputs, Tensor]:
    """As `compute_logits`, and (2, terms) float64, the sum and the count of each term over the rows of `asked`.

    One forward pass of the student gives both. Rows that are left out of the losses go into batches of their own, so
    that what the teacher lacks reaches no loss. `trainee` is what the loop trains, `model` its student, or the part of
    it for this task.
    """
    outputs = _Outputs(head, len(data.lengths))
    totals: Tensor | None = None
    divided = is_sharded(model)
    most = _COMPARED_TOKENS if trainee.objective.teacher_request else _BATCH_TOKENS
    with _evaluating(trainee, precision):
        for rows, counts in _share(list(_batches(data.lengths, np.flatnonzero(asked.rows), most)), context, divided):
            batch = collate(rows, data, pad_token_id, asked.source).to(context.device)
            logits, *measured = asked.measure(batch.inputs, asked.teacher.signals(batch))
            if counts:
                outputs.add(rows, logits, batch)
                found = torch.stack(measured).double()
                totals = found if totals is None else totals + found
        for rows, counts in _share(list(_batches(data.lengths, np.flatnonzero(~asked.rows), most)), context, divided):
            batch = collate(rows, data, pad_token_id, None).to(context.device)
            logits = forward(model, batch.inputs, (LOGITS,))[LOGITS]
            if counts:
                outputs.add(rows, logits, batch)
    none = torch.zeros(2, len(trainee.objective.terms), dtype=torch.float64, device=context.device)
    return outputs.of_all(context), context.add_up(none if totals is None else totals)


def losses_of(objective: Objective, totals: Tensor, shares: tuple[float, ...]) -> dict[str, float]:
    """The mean of each term that has items, and their weighted total, as training weighs them.

    Weights are those that hold at the end of training, so that evaluations compare with one another. `shares` are those
    of the steps that a term has a part in.
    """
    means: dict[str, float] = {}
    total = 0.0
    for name, weight, share, summed, count in zip(
        objective.names, objective.weights(1.0), shares, *totals.tolist(), strict=True
    ):
        if count:
            means[f"loss/{name}"] = summed / count
            # A term that weighs nothing may be anything, NaN included.
            total += weight * share * summed / count if weight else 0.0
    return {LOSS: total, **means} if means else {}


class _Outputs:
    """Outputs of this worker's batches, until all workers exchange theirs."""

    def __init__(self, head: Head, num_rows: int) -> None:
        self.head = head
        self.num_rows = num_rows
        self.parts: list[tuple[npt.NDArray[np.int64], Any]] = []

    def add(self, rows: npt.NDArray[np.int64], logits: Tensor, batch: MicroBatch) -> None:
        values = self.head.outputs(logits, batch.inputs).cpu().numpy()
        if "item_mask" in batch.inputs:
            counts = batch.inputs["item_mask"].sum(dim=1).long().tolist()
            self.parts.append((rows, [row[:count].copy() for row, count in zip(values, counts, strict=True)]))
        else:
            self.parts.append((rows, values))

    def of_all(self, context: Context) -> Outputs:
        gathered = [part for share in context.gather(self.parts) for part in share]
        if isinstance(gathered[0][1], list):
            by_row = {row: value for rows, values in gathered for row, value in zip(rows.tolist(), values, strict=True)}
            return [by_row[row] for row in range(self.num_rows)]
        result = np.empty((self.num_rows, *gathered[0][1].shape[1:]), dtype=np.float32)
        for rows, values in gathered:
            result[rows] = values
        return result


@contextlib.contextmanager
def modes_of(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Puts these modules, not those in them, back into the mode, training or evaluation, that they are in now."""
    modes = [(module, module.training) for module in modules]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def _evaluating(model: nn.Module, precision: Precision) -> Iterator[None]:
    was_training = model.training
    model.eval()
    # Weights that are gathered in inference mode could not be trained afterwards.
    with torch.no_grad() if is_sharded(model) else torch.inference_mode(), precision.autocast():
        yield
    model.train(was_training)


def _share(
    batches: list[npt.NDArray[np.int64]], context: Context, divided: bool
) -> Iterator[tuple[npt.NDArray[np.int64], bool]]:
    """Every `world_size`-th batch, and whether what comes of it counts.

    Where the model is divided among the workers, all run equally often: who has no batch left repeats the last, which
    counts once.
    """
    mine = batches[context.rank :: context.world_size]
    if divided:
        for _ in range(-(-len(batches) // context.world_size) - len(mine)):
            yield batches[-1], False
    for rows in mine:
        yield rows, True


def _batches(lengths: npt.NDArray[Any], rows: npt.NDArray[np.int64], most: int) -> Iterator[npt.NDArray[np.int64]]:
    """`rows`, sorted by length, in batches of at most `most` padded tokens."""
    order = rows[np.argsort(-lengths[rows].astype(np.int64), kind="stable")]
    start = 0
    while start < len(order):
        size = max(1, most // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size

"""Logits of a model over encoded rows, computed by all workers together, each row once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from raybrew.data.loader import TokenRows, collate
from raybrew.models.forward import forward
from raybrew.signals import LOGITS
from raybrew.tasks.heads import Head
from raybrew.training.context import Context
from raybrew.training.parallel import is_sharded
from raybrew.training.precision import Precision

__all__ = ["compute_logits"]

#: Padded tokens of one evaluation batch; evaluation keeps no activations, so this is generous.
_BATCH_TOKENS = 16384


def compute_logits(
    model: nn.Module,
    data: TokenRows,
    pad_token_id: int,
    context: Context,
    precision: Precision,
    head: Head,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray | list[np.ndarray]:
    """float32 logits of `model` in the order of `data`, on every worker: (rows, classes), or (items, classes) a row.

    More exactly what `head.outputs` makes of them, where they are too many to keep.
    Batches are cut by a token budget from rows sorted by length; ranks take every `world_size`-th one. Where the model
    is divided among them, all run equally often: who has no batch left repeats the last, which counts once.
    """
    was_training = model.training
    model.eval()
    parts: list[tuple[np.ndarray, Any]] = []
    batches = list(_batches(data.lengths))
    mine = batches[context.rank :: context.world_size]
    divided = is_sharded(model)
    repeated = -(-len(batches) // context.world_size) - len(mine) if divided else 0
    # Weights that are gathered in inference mode could not be trained afterwards.
    with torch.no_grad() if divided else torch.inference_mode(), precision.autocast():
        for _ in range(repeated):
            forward(model, collate(batches[-1], data, pad_token_id, None).to(context.device).inputs, (LOGITS,))
        for rows in mine:
            batch = collate(rows, data, pad_token_id, None).to(context.device)
            logits = forward(model, batch.inputs, (LOGITS,))[LOGITS]
            values = head.outputs(logits, batch.inputs).cpu().numpy()
            if "item_mask" in batch.inputs:
                counts = batch.inputs["item_mask"].sum(dim=1).long().tolist()
                parts.append((rows, [row[:count].copy() for row, count in zip(values, counts, strict=True)]))
            else:
                parts.append((rows, values))
            if progress is not None:
                progress(len(rows) * context.world_size)
    model.train(was_training)
    gathered = [part for share in context.gather(parts) for part in share]
    if isinstance(gathered[0][1], list):
        by_row = {row: values for rows, share in gathered for row, values in zip(rows.tolist(), share, strict=True)}
        return [by_row[row] for row in range(len(data.lengths))]
    result = np.empty((len(data.lengths), *gathered[0][1].shape[1:]), dtype=np.float32)
    for rows, values in gathered:
        result[rows] = values
    return result


def _batches(lengths: np.ndarray) -> Iterator[np.ndarray]:
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    start = 0
    while start < len(order):
        size = max(1, _BATCH_TOKENS // max(1, int(lengths[order[start]])))
        yield order[start : start + size]
        start += size

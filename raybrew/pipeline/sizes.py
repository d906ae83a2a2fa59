"""How much a teacher's outputs will take: rows, tokens and bytes by a sample of rows and the model's configuration."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raybrew.data.rows import row_ids, subset_indices
from raybrew.data.tables import taken
from raybrew.models.loading import load_config
from raybrew.models.shapes import dims_of
from raybrew.pipeline.resolve import ResolvedTask, ResolvedTeacher
from raybrew.signals import Signal
from raybrew.storage.open import is_remote
from raybrew.storage.staging import cache_root
from raybrew.store.compute import cut_batches
from raybrew.store.estimate import Amounts, Widths, estimate_bytes
from raybrew.store.forms.base import Forms
from raybrew.store.plan import unique_rows
from raybrew.tasks.base import Task

__all__ = [
    "SAMPLE_ROWS",
    "Sizes",
    "TokenSample",
    "free_bytes",
    "padded_tokens",
    "sample_of",
    "sizes_of_store",
    "token_columns",
]

#: More rows than this are not all tokenised: a random sample stands for them.
SAMPLE_ROWS = 20_000


@dataclasses.dataclass(frozen=True)
class TokenSample:
    """Lengths of all of `rows` rows, or of a random sample of them. `items` where the task has some."""

    rows: int
    lengths: npt.NDArray[np.int32]
    items: npt.NDArray[np.int32] | None
    columns: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether every row was tokenised."""
        return len(self.lengths) == self.rows


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Bytes of a store, by folder."""

    amounts: Amounts
    longest: int
    bytes: dict[str, int]
    #: Tokens of the teacher's batches, padding included, for each real one.
    padding: float

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.bytes.values())

    @staticmethod
    def text(count: float) -> str:
        """As a person reads it: `12.3 MiB`."""
        for unit in ("B", "KiB", "MiB", "GiB"):
            if count < 1024:
                return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
            count /= 1024
        return f"{count:.1f} TiB"


def sample_of(rows: pa.Table, most: int = SAMPLE_ROWS) -> pa.Table:
    """All of `rows`, or a seeded sample of `most` in their order."""
    if rows.num_rows <= most:
        return rows
    return taken(rows, subset_indices(rows.num_rows, most))


def token_columns(task: Task, tokenizer: Any, units: pa.Table, most: int = SAMPLE_ROWS) -> TokenSample:
    """Token counts of `units`, of a seeded sample of `most` where there are more."""
    chosen = sample_of(units, most)
    encoded = task.encode(tokenizer, {name: chosen.column(name).to_pylist() for name in task.content_columns})
    lengths = np.array([len(tokens) for tokens in encoded["input_ids"]], np.int32)
    items = np.array([len(places) for places in encoded["items"]], np.int32) if "items" in encoded else None
    kept = tuple(name for name in ("input_ids", "token_type_ids", "items") if name in encoded)
    return TokenSample(units.num_rows, lengths, items, kept)


def sizes_of_store(
    task: ResolvedTask,
    teacher: ResolvedTeacher,
    units: pa.Table,
    request: tuple[Signal, ...],
    num_labels: int,
    most: int = SAMPLE_ROWS,
) -> Sizes:
    """What a store of `request` for `units` will take. Only tokenizer and configuration of the teacher are loaded."""
    units = taken(units, unique_rows(row_ids(units)))
    store, config = task.store, load_config(teacher.source)
    sample = token_columns(task.task, task.models.tokenizer(teacher.source), units, most)
    amounts = Amounts.of(sample.lengths, sample.items, sample.columns, sample.rows)
    hidden, heads = _hidden_and_heads(config, request)
    widths, forms = Widths(num_labels, hidden, heads), Forms(store.element_type, store.forms)
    found = estimate_bytes(amounts, widths, request, forms, store.rows_per_shard)
    shard = sample.lengths[: store.rows_per_shard]
    padding = padded_tokens(shard, store.batch_tokens) / max(1, int(shard.sum()))
    return Sizes(amounts, int(sample.lengths.max(initial=0)), found, padding)


def padded_tokens(lengths: npt.NDArray[np.int32], batch_tokens: int) -> int:
    """Tokens of the batches that a shard of rows of these lengths is cut into, padding included."""
    return sum(len(batch) * int(lengths[batch].max()) for batch in cut_batches(lengths, batch_tokens))


def free_bytes(task: ResolvedTask) -> int | None:
    """Bytes free where the store (or this node's copies of a remote one) will lie; None if that cannot be told."""
    root = task.store_root
    path = cache_root(task.store.cache) if is_remote(root) else Path(root)
    there = next((folder for folder in (path, *path.parents) if folder.exists()), None)
    return None if there is None else shutil.disk_usage(there).free


def _hidden_and_heads(config: Any, request: tuple[Signal, ...]) -> tuple[int, int]:
    if all(signal.kind == "logits" for signal in request):
        return 0, 0  # families whose sizes are not known give logits too
    dims = dims_of(config)
    return dims.hidden, dims.heads

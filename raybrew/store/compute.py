"""Teacher outputs of the rows of one shard: encoded, batched by length, un-padded, in the order of the rows. No Ray."""

from __future__ import annotations

import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from raybrew.data.columns import RaggedColumn
from raybrew.errors import DataError, StoreError
from raybrew.models.forward import forward
from raybrew.signals import PAIR_KINDS, Signal, sorted_signals
from raybrew.store.forms.base import Forms
from raybrew.store.forms.columns import Collected, Encoded, Problem, encoded, parts_of
from raybrew.tasks.base import Task

__all__ = ["Teacher", "cut_batches"]

log = logging.getLogger("raybrew.store")

_AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

#: What to do about rows that are named in an error.
_SKIP = "; data.on_bad_row=skip sets such rows aside"

Indices = npt.NDArray[np.int64]


def cut_batches(lengths: npt.NDArray[np.int32], batch_tokens: int) -> list[Indices]:
    """Rows in batches of at most `batch_tokens` padded tokens (and at least one row), longest first.

    Longest first, so that memory runs out in the first batch or not at all. Rows without tokens are in none.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    order = order[lengths[order] > 0]
    batches, start = [], 0
    while start < len(order):
        size = max(1, batch_tokens // max(1, int(lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches


@dataclasses.dataclass
class Teacher:
    """A loaded model with its tokenizer, and how its outputs are computed and kept.

    `batch_tokens` shrinks when memory runs out; `notes` collects what a person should know of that.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    task: Task
    device: torch.device
    precision: str
    forms: Forms
    batch_tokens: int
    notes: list[str] = dataclasses.field(default_factory=list)

    def encode(self, rows: pa.Table, aside: dict[int, str] | None = None) -> pa.Table:
        """Examples of units: id, input_ids list<int32>; token_type_ids and items where tokenizer and task give them.

        A row that has no tokens, or whose tokenising fails, is a DataError; with `aside` it becomes an example without
        tokens, and `aside` gets its number and the reason.
        """
        content = {name: rows.column(name).to_pylist() for name in self.task.content_columns}
        encoded, reasons = self._tokens(content, rows.num_rows)
        arrays = {"id": rows.column("id").combine_chunks()}
        for name, kind in (("input_ids", pa.int32()), ("token_type_ids", pa.int8()), ("items", pa.int32())):
            if name in encoded:
                arrays[name] = pa.array(encoded[name], pa.list_(kind))
        if reasons and aside is None:
            row, reason = next(iter(reasons.items()))
            text = " | ".join(str(values[row]) for values in content.values())
            more = f"; {len(reasons) - 1} more rows like it" if len(reasons) > 1 else ""
            raise DataError(f"row {rows.column('id')[row].as_py().hex()}: {reason} {text[:60]!r}{more}{_SKIP}")
        if aside is not None:
            aside.update(reasons)
        return pa.table(arrays)

    def _tokens(self, content: dict[str, list[Any]], num_rows: int) -> tuple[dict[str, list[Any]], dict[int, str]]:
        """Token columns of all rows, empty for bad ones, and what is wrong with these."""
        reasons: dict[int, str] = {}
        try:
            encoded = self.task.encode(self.tokenizer, content)
        except Exception:
            # One by one, to find out which row it is. What a tokenizer may raise is its own affair.
            encoded = {}
            for row in range(num_rows):
                try:
                    one = self.task.encode(self.tokenizer, {name: [values[row]] for name, values in content.items()})
                except Exception as error:
                    reasons[row] = f"the tokenizer of the teacher fails ({type(error).__name__}: {error}) on"
                    continue
                for name, values in one.items():
                    encoded.setdefault(name, [[] for _ in range(num_rows)])[row] = values[0]
            if not encoded:
                raise
        for row, tokens in enumerate(encoded["input_ids"]):
            if not tokens and row not in reasons:
                reasons[row] = "the tokenizer of the teacher makes no tokens of"
        for row in reasons:
            for values in encoded.values():
                values[row] = []
        return encoded, reasons

    def compute(
        self,
        examples: pa.Table,
        request: Collection[Signal],
        on_batch: Callable[[int], None] | None = None,
        aside: dict[Signal, dict[int, str]] | None = None,
    ) -> dict[Signal, pa.Table]:
        """One table for each signal, rows as in `examples`; `on_batch` hears of rows as they are done.

        A value that is not finite in its element type is never stored: it is a StoreError. So is a row that alone does
        not fit into memory. With `aside` such rows are zeros, and `aside` gets their numbers and the reasons, by
        signal. Rows without tokens are zeros too.
        """
        request = sorted_signals(request)
        columns = {
            name: RaggedColumn(examples.schema.field(name).type, examples.column(name).chunks)
            for name in examples.column_names
            if name != "id"
        }
        lengths = columns["input_ids"].lengths
        collected = Collected({name: column.lengths for name, column in columns.items()}, request, self.forms)
        too_large: dict[int, str] | None = None if aside is None else {}
        # Results are taken one batch late: the device computes a batch while the last one is put in its place.
        waiting: deque[_Batch] = deque()

        def take() -> None:
            batch = waiting.popleft()
            if batch.done is not None:
                batch.done.synchronize()
            collected.add(batch.rows, batch.real, batch.outputs)

        with torch.inference_mode():
            for rows in cut_batches(lengths, self.batch_tokens):
                for batch in self._forward(columns, rows, request, too_large):
                    waiting.append(batch)
                    if len(waiting) > 1:
                        take()
                    if on_batch is not None:
                        on_batch(len(batch.rows))
            while waiting:
                take()
            if collected.lacks_all():
                collected.shape_like(
                    self._forward_once(_smallest(columns, self.tokenizer), np.zeros(1, int), request).outputs
                )
        problems = collected.problems()
        if aside is not None:
            for signal in request:
                reasons = dict(too_large or {}) | (problems[signal].reasons if signal in problems else {})
                if reasons:
                    aside[signal] = reasons
        elif problems:
            raise StoreError("; ".join(self._named(problem, examples) for problem in problems.values()) + _SKIP)
        return collected.tables()

    def _named(self, problem: Problem, examples: pa.Table) -> str:
        """The problem, with the first of its rows."""
        row = min(problem.reasons)
        where = f"in {len(problem.reasons)} rows, the first being" if len(problem.reasons) > 1 else "in row"
        return f"{problem.text}, {where} {self._row_name(examples, row)}"

    def _row_name(self, examples: pa.Table, row: int) -> str:
        """Id and beginning of a row, for messages."""
        text = self.tokenizer.decode(examples.column("input_ids")[row].as_py()[:20], skip_special_tokens=True)
        return f"{examples.column('id')[row].as_py().hex()} ({str(text)[:40]!r})"

    def _forward(
        self,
        columns: dict[str, RaggedColumn],
        rows: Indices,
        request: tuple[Signal, ...],
        too_large: dict[int, str] | None,
    ) -> Iterator[_Batch]:
        """Outputs of `rows`, in several parts if they do not fit into memory together.

        A row that does not even fit alone goes to `too_large`, or is a StoreError.
        """
        try:
            batch = self._forward_once(columns, rows, request)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            batch = None
        if batch is not None:
            yield batch
            return
        # Outside the except block: the error's traceback would keep the tensors alive.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if len(rows) == 1:
            length = int(columns["input_ids"].lengths[rows[0]])
            reason = f"a single row of {length} tokens does not fit into the memory of {self.device}"
            if too_large is None:
                raise StoreError(reason + _SKIP)
            too_large[int(rows[0])] = reason
            return
        self.batch_tokens = max(1, self.batch_tokens // 2)
        note = (
            f"{len(rows)} rows did not fit into the memory of {self.device}: "
            f"store.batch_tokens is now {self.batch_tokens}"
        )
        log.warning(note)
        self.notes.append(note)
        half = len(rows) // 2
        yield from self._forward(columns, rows[:half], request, too_large)
        yield from self._forward(columns, rows[half:], request, too_large)

    def _forward_once(self, columns: dict[str, RaggedColumn], rows: Indices, request: tuple[Signal, ...]) -> _Batch:
        lengths = columns["input_ids"].lengths[rows]
        longest = int(lengths.max())
        real = np.arange(longest) < lengths[:, None]
        pad_values = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}
        arrays = {
            name: columns[name].gather_padded(rows, value, longest)
            for name, value in pad_values.items()
            if name in columns
        }
        arrays["attention_mask"] = real
        masks = {"tokens": real}
        if "items" in columns:
            arrays["items"] = columns["items"].gather_padded(rows, 0)
            masks["items"] = np.arange(arrays["items"].shape[1]) < columns["items"].lengths[rows, None]
        inputs = {
            name: torch.from_numpy(array.astype(np.int64)).to(self.device, non_blocking=True)
            for name, array in arrays.items()
        }
        flat = {
            name: torch.from_numpy(np.flatnonzero(mask)).to(self.device, non_blocking=True)
            for name, mask in masks.items()
        }
        pairs = None
        if any(signal.kind in PAIR_KINDS for signal in request):
            tokens = inputs["attention_mask"] != 0
            pairs = (tokens.unsqueeze(2) & tokens.unsqueeze(1)).unsqueeze(1)
        with torch.autocast(
            self.device.type, dtype=_AUTOCAST_TYPES.get(self.precision), enabled=self.precision in _AUTOCAST_TYPES
        ):
            outputs = forward(self.model, inputs, request)
        kept: dict[Signal, Encoded] = {}
        for signal, output in outputs.items():
            parts = parts_of(signal, "items" in masks)
            places = flat.get(parts) if parts is not None else None
            kept[signal] = encoded(self.forms.of(signal), output, parts, places, pairs)
        done = None
        if self.device.type == "cuda":
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        return _Batch(rows, masks, kept, done)


def _smallest(columns: dict[str, RaggedColumn], tokenizer: PreTrainedTokenizerBase) -> dict[str, RaggedColumn]:
    """Columns of one made-up row of two tokens, which shows how wide the signals of a model are."""
    contents = {"input_ids": [[tokenizer.pad_token_id] * 2], "token_type_ids": [[0, 0]], "items": [[0]]}
    kind = pa.list_(pa.int32())
    return {name: RaggedColumn(kind, [pa.array(contents[name], kind)]) for name in columns}


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Outputs of some rows, perhaps still on their way from the device; `done` says when they are here.

    `real` masks what is no padding, (rows, longest).
    """

    rows: Indices
    real: dict[str, npt.NDArray[np.bool_]]
    outputs: dict[Signal, Encoded]
    done: Any


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)

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
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from raybrew.data.arrow import RaggedColumn
from raybrew.errors import DataError, StoreError
from raybrew.models.forward import forward
from raybrew.signals import LOGITS, Signal, sorted_signals
from raybrew.store.layout import ELEMENT_TYPES, element_type_of
from raybrew.tasks.base import Task

__all__ = ["Teacher", "cut_batches", "torch_dtype"]

log = logging.getLogger("raybrew.store")

_TORCH_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_AUTOCAST_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

Indices = npt.NDArray[np.int64]


def torch_dtype(element_type: str) -> torch.dtype:
    """Type of tensors that an element type stands for."""
    return _TORCH_TYPES[element_type]


def cut_batches(lengths: npt.NDArray[np.int32], batch_tokens: int) -> list[Indices]:
    """Rows in batches of at most `batch_tokens` padded tokens (and at least one row), longest first.

    Longest first, so that memory runs out in the first batch or not at all.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
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
    element_type: str
    batch_tokens: int
    notes: list[str] = dataclasses.field(default_factory=list)

    def encode(self, rows: pa.Table) -> pa.Table:
        """Examples of units: id, input_ids list<int32>; token_type_ids and items where tokenizer and task give them."""
        content = {name: rows.column(name).to_pylist() for name in self.task.content_columns}
        encoded = self.task.encode(self.tokenizer, content)
        arrays = {"id": rows.column("id").combine_chunks()}
        for name, kind in (("input_ids", pa.int32()), ("token_type_ids", pa.int8()), ("items", pa.int32())):
            if name in encoded:
                arrays[name] = pa.array(encoded[name], pa.list_(kind))
        for index, tokens in enumerate(encoded["input_ids"]):
            if not tokens:
                text = " | ".join(str(values[index]) for values in content.values())
                raise DataError(f"the tokenizer of the teacher makes no tokens of {text[:60]!r}")
        return pa.table(arrays)

    def compute(
        self, examples: pa.Table, request: Collection[Signal], on_batch: Callable[[int], None] | None = None
    ) -> dict[Signal, pa.Table]:
        """One table of one column for each signal, rows as in `examples`; `on_batch` hears of rows as they are done.

        StoreError if a value is not finite in its element type. It is never stored.
        """
        request = sorted_signals(request)
        columns = {
            name: RaggedColumn(examples.schema.field(name).type, examples.column(name).chunks)
            for name in examples.column_names
            if name != "id"
        }
        collected = _Collected({name: column.lengths for name, column in columns.items()}, request, self.element_type)
        # Results are taken one batch late: the device computes a batch while the last one is put in its place.
        waiting: deque[_Batch] = deque()
        with torch.inference_mode():
            for rows in cut_batches(columns["input_ids"].lengths, self.batch_tokens):
                for batch in self._forward(columns, rows, request):
                    waiting.append(batch)
                    if len(waiting) > 1:
                        collected.add(waiting.popleft())
                    if on_batch is not None:
                        on_batch(len(batch.rows))
            while waiting:
                collected.add(waiting.popleft())
        return collected.tables()

    def _forward(
        self, columns: dict[str, RaggedColumn], rows: Indices, request: tuple[Signal, ...]
    ) -> Iterator[_Batch]:
        """Outputs of `rows`, in several parts if they do not fit into memory together."""
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
            raise StoreError(f"a single row of {length} tokens does not fit into the memory of {self.device}")
        self.batch_tokens = max(1, self.batch_tokens // 2)
        note = (
            f"{len(rows)} rows did not fit into the memory of {self.device}: "
            f"store.batch_tokens is now {self.batch_tokens}"
        )
        log.warning(note)
        self.notes.append(note)
        half = len(rows) // 2
        yield from self._forward(columns, rows[:half], request)
        yield from self._forward(columns, rows[half:], request)

    def _forward_once(self, columns: dict[str, RaggedColumn], rows: Indices, request: tuple[Signal, ...]) -> _Batch:
        lengths = columns["input_ids"].lengths[rows]
        longest = int(lengths.max())
        real = np.arange(longest) < lengths[:, None]
        pad_values = {"input_ids": self.tokenizer.pad_token_id, "token_type_ids": self.tokenizer.pad_token_type_id}
        arrays = {
            name: columns[name].gather_padded(rows, pad_values[name], longest) for name in pad_values if name in columns
        }
        arrays["attention_mask"] = real
        places = {"tokens": real}
        if "items" in columns:
            arrays["items"] = columns["items"].gather_padded(rows, 0)
            places["items"] = np.arange(arrays["items"].shape[1]) < columns["items"].lengths[rows, None]
        inputs = {
            name: torch.from_numpy(array.astype(np.int64)).to(self.device, non_blocking=True)
            for name, array in arrays.items()
        }
        flat = {
            name: torch.from_numpy(np.flatnonzero(mask)).to(self.device, non_blocking=True)
            for name, mask in places.items()
        }
        with torch.autocast(
            self.device.type, dtype=_AUTOCAST_TYPES.get(self.precision), enabled=self.precision in _AUTOCAST_TYPES
        ):
            outputs = forward(self.model, inputs, request)
        values: dict[Signal, Tensor] = {}
        extremes: dict[Signal, Tensor] = {}
        for signal, output in outputs.items():
            parts = _parts_of(signal, "items" in columns)
            if parts is not None:
                output = output.flatten(0, 1).index_select(0, flat[parts])
            kept = output.to(torch_dtype(element_type_of(signal, self.element_type)))
            # Smallest and largest show every NaN and infinity, at a tenth of the cost of counting these.
            extremes[signal] = torch.stack([bound.float() for bound in (*kept.aminmax(), *output.aminmax())])
            values[signal] = kept.to("cpu", non_blocking=True)
        done = None
        if self.device.type == "cuda":
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        return _Batch(rows, places, values, extremes, done)


def _parts_of(signal: Signal, has_items: bool) -> str | None:
    """What of a row `signal` has a vector for: each of its `tokens` or `items`; None: the row as a whole."""
    if signal.layer is not None:
        return "tokens"
    return "items" if signal == LOGITS and has_items else None


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Outputs of some rows, perhaps still on their way from the device; `done` says when they are here.

    `real` masks what is no padding, (rows, longest), for tokens and items.
    """

    rows: Indices
    real: dict[str, npt.NDArray[np.bool_]]
    values: dict[Signal, Tensor]
    extremes: dict[Signal, Tensor]
    done: Any


class _Collected:
    """Outputs of a shard, put in their places batch by batch."""

    def __init__(
        self, lengths: dict[str, npt.NDArray[np.int32]], request: tuple[Signal, ...], element_type: str
    ) -> None:
        self._num_rows = len(lengths["input_ids"])
        self._offsets = {
            name: np.concatenate([[0], np.cumsum(lengths[column], dtype=np.int64)])
            for name, column in (("tokens", "input_ids"), ("items", "items"))
            if column in lengths
        }
        self._request = request
        self._element_type = element_type
        self._values: dict[Signal, npt.NDArray[Any]] = {}
        self._extremes: dict[Signal, list[Tensor]] = {signal: [] for signal in request}

    def add(self, batch: _Batch) -> None:
        if batch.done is not None:
            batch.done.synchronize()
        places = {
            name: (self._offsets[name][batch.rows][:, None] + np.arange(real.shape[1]))[real]
            for name, real in batch.real.items()
        }
        for signal, tensor in batch.values.items():
            values = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
            if tensor.dtype == torch.bfloat16:
                values = values.view(np.uint16)
            parts = _parts_of(signal, "items" in self._offsets)
            if signal not in self._values:
                total = self._num_rows if parts is None else int(self._offsets[parts][-1])
                self._values[signal] = np.empty((total, values.shape[-1]), values.dtype)
            self._values[signal][batch.rows if parts is None else places[parts]] = values
            self._extremes[signal].append(batch.extremes[signal])

    def tables(self) -> dict[Signal, pa.Table]:
        self._check()
        tables = {}
        for signal in self._request:
            values = self._values[signal]
            kind = ELEMENT_TYPES[element_type_of(signal, self._element_type)]
            column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), kind), values.shape[-1])
            parts = _parts_of(signal, "items" in self._offsets)
            if parts is not None:
                column = pa.LargeListArray.from_arrays(pa.array(self._offsets[parts], pa.int64()), column)
            tables[signal] = pa.table({signal.kind: column})
        return tables

    def _check(self) -> None:
        problems = []
        for signal, bounds in self._extremes.items():
            finite = torch.isfinite(torch.stack(bounds)).all(dim=0).tolist()
            if all(finite):
                continue
            values = self._values[signal]
            kept_bits = values.dtype == np.uint16
            count = int(((values & 0x7F80) == 0x7F80).sum() if kept_bits else (~np.isfinite(values)).sum())
            if all(finite[2:]):
                kept = element_type_of(signal, self._element_type)
                wider = "float32" if kept == "bfloat16" else "bfloat16 or float32"
                problems.append(
                    f"{signal}: {count} of {values.size} values overflow {kept}; set store.element_type={wider}"
                )
            else:
                problems.append(f"{signal}: the teacher gives {count} of {values.size} values that are NaN or infinite")
        if problems:
            raise StoreError("; ".join(problems))


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)

"""An exported student that answers in this process, without experiment files or folders: for services and scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from raybrew.config import Columns
from raybrew.config.kinds import task_spec
from raybrew.config.task import task_config_of
from raybrew.errors import DataError, RunError
from raybrew.exports.folder import EXPORT_MARK
from raybrew.exports.formats import FORMATS
from raybrew.exports.int8 import load_int8
from raybrew.exports.onnx_file import OnnxModel
from raybrew.models.forward import MODEL_INPUTS, forward
from raybrew.models.loading import ModelSource, load_model, load_tokenizer
from raybrew.signals import LOGITS
from raybrew.tasks.base import BadValue, Labels, Task, build_task
from raybrew.tasks.values import example_id

__all__ = ["Student", "load_student"]

#: Padded tokens of one forward pass.
_BATCH_TOKENS = 16384


class Student:
    """A student of one task; `predict` is all it does. Its content is that of a folder of `raybrew export`."""

    def __init__(self, network: nn.Module, tokenizer: Any, task: Task, labels: Labels) -> None:
        self.network = network
        self.tokenizer = tokenizer
        self.task = task
        self.labels = labels

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """What the task predicts of each row, as `raybrew predict` says it (README, "Tasks"); rows are not repeated.

        Rows have the columns of the experiment (`raybrew.json`, `columns`): `text`, and `text_pair` of pairs; `tokens`;
        or `question` and `context`. DataError names the row and column that cannot be used.
        """
        if not rows:
            return []
        table = self._table(rows)
        units = _Units(self.task, self.task.units(table, (self.tokenizer,)), self.tokenizer)
        return self.task.predictions(self._logits(units), units, table, self.labels)

    def _table(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """Source rows as the task reads them, none with a label."""
        columns: dict[str, list[Any]] = {}
        for number, raw in enumerate(rows):
            try:
                lacking = [name for name in self.task.columns if name not in raw]
                if lacking:
                    raise BadValue(lacking[0], f"missing; the row has {', '.join(map(str, raw)) or 'nothing'}")
                parsed = self.task.parse(raw)
            except BadValue as error:
                raise DataError(f"row {number}: column {error.column!r}: {error.reason}") from error
            values = parsed | {"id": example_id(self.task.content(parsed)), "label": self.task.no_label(parsed)}
            for name, value in values.items():
                columns.setdefault(name, []).append(value)
        schema = pa.schema([pa.field("id", pa.binary(16)), *self.task.schema()])
        return pa.table({field.name: pa.array(columns[field.name], field.type) for field in schema}, schema=schema)

    def _logits(self, units: _Units) -> np.ndarray | list[np.ndarray]:
        """float32 logits of all units, computed in batches of like length."""
        lengths = np.array([len(ids) for ids in units.columns["input_ids"]])
        found: list[Any] = [None] * len(lengths)
        order = np.argsort(-lengths, kind="stable")
        start = 0
        while start < len(order):
            size = max(1, _BATCH_TOKENS // max(1, int(lengths[order[start]])))
            chosen = order[start : start + size].tolist()
            with torch.inference_mode():
                logits = forward(self.network, self._batch(units, chosen), (LOGITS,))[LOGITS].float().numpy()
            for place, unit in enumerate(chosen):
                count = len(units.columns["items"][unit]) if "items" in units.columns else None
                found[unit] = logits[place] if count is None else logits[place][:count]
            start += size
        return found if "items" in units.columns else np.stack(found)

    def _batch(self, units: _Units, chosen: Sequence[int]) -> dict[str, torch.Tensor]:
        ids = [units.columns["input_ids"][unit] for unit in chosen]
        batch = {"attention_mask": _padded([[1] * len(each) for each in ids], 0)}
        filler = {"input_ids": self.tokenizer.pad_token_id}
        for name in (*MODEL_INPUTS, "items"):
            if name in units.columns:
                batch[name] = _padded([units.columns[name][unit] for unit in chosen], filler.get(name, 0))
        return batch


def load_student(folder: str | Path, format: str | None = None) -> Student:
    """The student that `raybrew export` wrote to `folder`, on the CPU.

    `format` is one of those exported; default: the first of hf, onnx, onnx-int8, int8, int8-weights that is there.
    RunError if the folder is no export or has no such format, EnvironmentProblem if a package is missing.
    """
    folder = Path(folder)
    try:
        facts = json.loads((folder / EXPORT_MARK).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RunError(f"{folder.absolute()} holds no {EXPORT_MARK}; make one with `raybrew export`") from error
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{folder / EXPORT_MARK} cannot be read ({error}); export the student again") from error
    there = [name for name in FORMATS if name in facts["formats"]]
    chosen = format or there[0]
    if chosen not in there:
        raise RunError(f"{folder} has no {chosen!r}; it was exported as {', '.join(there)}")
    kind = facts["task"]["kind"]
    if not task_spec(kind).row:
        raise RunError(f"{folder} is a masked language model, a start for other students; use transformers' fill-mask")
    file = folder / FORMATS[chosen].file
    network: nn.Module
    if chosen == "hf":
        network = load_model(ModelSource(str(folder)), kind)
    elif FORMATS[chosen].extra == "onnx":
        network = OnnxModel(file)
    else:
        network = load_int8(file.parent, kind)
    config: Any = task_config_of(facts["task"])
    task = build_task(config.model_validate(facts["task"]), Columns(**facts["columns"]))
    return Student(network.eval(), load_tokenizer(ModelSource(str(folder))), task, Labels(tuple(facts["labels"])))


class _Units:
    """Encoded units in memory, as tasks see them."""

    def __init__(self, task: Task, table: pa.Table, tokenizer: Any) -> None:
        given = {name: table.column(name).to_pylist() for name in table.column_names if name != "id"}
        self.columns: dict[str, list[Any]] = given | task.encode(tokenizer, given)

    @property
    def num_rows(self) -> int:
        return len(self.columns["input_ids"])

    def values(self, name: str) -> Any:
        column = self.columns[name]
        if column and isinstance(column[0], list):
            return [np.asarray(value) for value in column]
        return np.asarray(column)


def _padded(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
    """(rows, longest) int64."""
    width = max(1, *map(len, rows))
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows], dtype=torch.int64)

"""The contract of a task, and the literal table of tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from raybrew.config import TaskConfig

__all__ = ["TASKS", "BadValue", "Labels", "Task", "build_task"]


class BadValue(ValueError):  # noqa: N818 (it says what is there)
    """A value of one source row cannot be used. The reader adds file and row number to it."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(f"column {column!r}: {reason}")
        self.column = column
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Labels:
    """Label names in the order of a model's outputs."""

    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)


class Task(Protocol):
    """What the rest of raybrew asks of a task. Implementations hold a frozen config and nothing else."""

    kind: str

    @property
    def fixed_labels(self) -> Labels | None:
        """Labels that the configuration prescribes; None where the teacher or the rows decide."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Source columns that every row must have; the label column is only needed where labels are."""
        ...

    @property
    def label_column(self) -> str:
        """Source column of the label."""
        ...

    def schema(self) -> pa.Schema:
        """Arrow schema of parsed rows: content columns, then `label` (int32, -1 = none)."""
        ...

    def parse(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Content of one source row; BadValue where it cannot be used. Does not look at the label."""
        ...

    def raw_label(self, raw: Mapping[str, Any]) -> str | int | None:
        """The label as it stands in the source: text, number, or None where there is none. BadValue otherwise."""
        ...

    def label_id(self, value: str | int | None, labels: Labels, names_of_source: Sequence[str] | None) -> int:
        """Index into `labels`; -1 for none. `names_of_source`: the source's ClassLabel names, if it has them."""
        ...

    def content(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """The strings that make the example what it is: its id is a hash of them. Labels are no part of it."""
        ...

    def encode(self, tokenizer: Any, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[list[int]]]:
        """`input_ids`, and `token_type_ids` if the model has them, of a batch of parsed rows (column -> values)."""
        ...

    def encode_settings(self) -> dict[str, Any]:
        """Settings beside tokenizer and rows that `encode` depends on, as plain JSON values."""
        ...

    def metrics(self, logits: np.ndarray, label_ids: np.ndarray, num_labels: int) -> dict[str, float]:
        """Metrics of (rows, classes) float32 logits against (rows,) label ids, all >= 0."""
        ...

    def predictions(self, logits: np.ndarray, labels: Labels) -> list[dict[str, Any]]:
        """One mapping per row, as `raybrew predict` writes it."""
        ...


#: Task kind -> "module:Class". One line per task.
TASKS: Mapping[str, str] = {
    "classification": "raybrew.tasks.classification:Classification",
}


def build_task(config: TaskConfig, text: str = "text", text_pair: str | None = None, label: str = "label") -> Task:
    """The task that `config` describes, reading from the given source columns."""
    import importlib

    module, _, name = TASKS[config.kind].partition(":")
    task: Task = getattr(importlib.import_module(module), name)(config, text, text_pair, label)
    return task

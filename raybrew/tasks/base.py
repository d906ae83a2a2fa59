"""The contract of a task.

Source rows become *units*: what one forward pass takes. For most tasks a row is a unit; a sentence or context that is
too long for a model becomes several. A unit has an id made from its content, so a teacher's outputs are kept by unit.
Units are encoded for a tokenizer. The outputs of a model over a unit are one vector of logits or, for tasks that judge
parts of a text, one for each *item*: a word in tagging, a token of the context in question answering. Which tokens
carry an item stands in the column `items`; logits of others reach neither a store nor a loss nor a metric.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from raybrew.catalog.target import load_target

if TYPE_CHECKING:
    import pyarrow as pa

    from raybrew.config import Columns, TaskConfig
    from raybrew.tasks.heads import Head
    from raybrew.tasks.scores import RowScores

__all__ = ["BadValue", "Labels", "Masking", "Task", "Units", "build_task"]


class BadValue(ValueError):  # noqa: N818 (it says what is there)
    """A value of one source row cannot be used. The reader adds file and row number to it."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(f"column {column!r}: {reason}")
        self.column = column
        self.reason = reason


@dataclasses.dataclass(frozen=True)
class Labels:
    """Label names in the order of a model's outputs. Not `named`: any model with as many outputs fits."""

    names: tuple[str, ...]
    named: bool = True

    def __len__(self) -> int:
        return len(self.names)


@dataclasses.dataclass(frozen=True)
class Masking:
    """Which tokens of a row are to be guessed, and what a model reads in their place."""

    rate: float  #: share of the tokens that are no special ones
    masked: float  #: of these, the share that the mask token replaces
    randomised: float  #: and the share that a random token replaces; the rest stays
    whole_words: bool  #: all tokens of a word or none; where words begin stands in the column `begins`


class Units(Protocol):
    """Encoded units as tasks see them: what `encode` and `units` gave, by column."""

    @property
    def num_rows(self) -> int: ...
    def values(self, name: str) -> Any:
        """Column `name`: an array (units, ...), or a list of one array per unit where their lengths differ."""
        ...


class Task(Protocol):
    """What the rest of raybrew asks of a task. Implementations hold a frozen config and nothing else."""

    kind: str

    @property
    def fixed_labels(self) -> Labels | None:
        """Labels that the configuration or the task prescribes; None where the teacher or the rows decide."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Source columns that every row must have; the label column is only needed where labels are."""
        ...

    @property
    def optional_columns(self) -> tuple[str, ...]:
        """Further source columns that are read where a source has them."""
        ...

    @property
    def label_column(self) -> str | None:
        """Source column of the label; None where a text is its own label."""
        ...

    @property
    def content_columns(self) -> tuple[str, ...]:
        """Columns of a unit that `encode` makes token ids of. Nothing else of a unit matters to a teacher's store."""
        ...

    def schema(self) -> pa.Schema:
        """Arrow schema of parsed source rows, the last column being `label`."""
        ...

    def parse(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Content of one source row; BadValue where it cannot be used. Does not look at the label."""
        ...

    def raw_label(self, raw: Mapping[str, Any], names: Sequence[str] | None = None) -> Any:
        """The label as it stands in the source: a name or number, a tuple of them, or None where there is none.

        `names` are the source's class names or, lacking these, the labels known so far. BadValue for what is no label.
        Tasks whose labels are no names (`names_labels` false) return the value of the column `label`.
        """
        ...

    @property
    def names_labels(self) -> bool:
        """Whether labels are names out of a set."""
        ...

    def label_id(self, value: str | int | None, labels: Labels, names_of_source: Sequence[str] | None) -> int:
        """Index of one name into `labels`; -1 for none. `names_of_source`: the source's class names, if it has them."""
        ...

    def complete_labels(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The labels of a model for rows that have `names`, in order."""
        ...

    def no_label(self, parsed: Mapping[str, Any]) -> Any:
        """What stands in the column `label` of a row without one."""
        ...

    def untrainable(self, rows: pa.Table, labels: Labels) -> str | None:
        """Why nothing can be learnt from these labelled rows, or None."""
        ...

    def content(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """The strings that make a row or unit what it is: its id is a hash of them. Labels are no part of it."""
        ...

    def units(self, rows: pa.Table, tokenizers: Sequence[Any]) -> pa.Table:
        """The units of source rows (as `load_rows` gives them), each short enough for all of `tokenizers`.

        Columns: `id`, those of `content_columns`, `label`, and, where rows and units differ, `row` (int32, which source
        row) and whatever else is needed to map back.
        """
        ...

    def encode(self, tokenizer: Any, units: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Columns for models, of a batch of units (column -> values): `input_ids`, `token_type_ids` if the model has
        them, `items` (positions of tokens) if the task has items, and `label` where it depends on tokens."""
        ...

    def encode_settings(self) -> dict[str, Any]:
        """Settings beside tokenizer and units that `encode` depends on, as plain JSON values."""
        ...

    @property
    def unit_name(self) -> str:
        """What units are called where they are counted: rows, windows, ..."""
        ...

    def lost_labels(self, units: Units, rows: pa.Table) -> dict[int, str]:
        """Labelled source rows of which no encoded unit holds the label, and what to do about each."""
        ...

    @property
    def masking(self) -> Masking | None:
        """How tokens are hidden from models, in each epoch anew; None for tasks that show texts as they are."""
        ...

    @property
    def head(self) -> Head:
        """Losses on the outputs: against labels, and what of them is compared with the teacher's."""
        ...

    def metrics(self, outputs: Any, units: Units, rows: pa.Table | None, labels: Labels) -> dict[str, float]:
        """Metrics over labelled units. `rows`: the source rows, where `keeps_rows`.

        `outputs` is what `outputs` of the head makes of the logits of units in order: (units, classes), or a list of
        (items, classes) for each.
        """
        ...

    def row_scores(self, outputs: Any, units: Units, rows: pa.Table | None, labels: Labels) -> RowScores:
        """What each source row adds to the metrics. Takes what `metrics` takes; its `metrics()` are the same."""
        ...

    @property
    def keeps_rows(self) -> bool:
        """Whether `metrics` needs the source rows themselves."""
        ...

    def predictions(self, outputs: Any, units: Units, rows: pa.Table, labels: Labels) -> list[dict[str, Any]]:
        """One mapping per source row, as `raybrew predict` writes it; `outputs` as in `metrics`."""
        ...


def build_task(config: TaskConfig, columns: Columns | None = None) -> Task:
    """The task that `config` describes, reading from the given source columns."""
    from raybrew.config import Columns
    from raybrew.config.kinds import task_spec

    task: Task = load_target(task_spec(config.kind).target)(config, columns or Columns())
    return task

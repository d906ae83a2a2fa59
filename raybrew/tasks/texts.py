"""What tasks share that judge a text, or a pair of texts, as a whole: rows are units."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raybrew.config.data import Columns
from raybrew.config.task_kinds import ClassificationConfig, MultilabelConfig, RegressionConfig
from raybrew.tasks.base import Units
from raybrew.tasks.values import text_of

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["TextTask"]


@dataclasses.dataclass(frozen=True)
class TextTask:
    """Columns `text` and `text_pair`, truncated to `max_length` tokens."""

    config: ClassificationConfig | MultilabelConfig | RegressionConfig
    source: Columns = dataclasses.field(default_factory=Columns)

    keeps_rows = False
    unit_name = "rows"
    masking = None
    optional_columns: tuple[str, ...] = dataclasses.field(default=(), init=False)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.source.text,) if self.source.text_pair is None else (self.source.text, self.source.text_pair)

    @property
    def label_column(self) -> str:
        return self.source.label

    @property
    def content_columns(self) -> tuple[str, ...]:
        return ("text",) if self.source.text_pair is None else ("text", "text_pair")

    def parse(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        row = {"text": text_of(raw, self.source.text)}
        if self.source.text_pair is not None:
            row["text_pair"] = text_of(raw, self.source.text_pair)
        return row

    def complete_labels(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return names

    def content(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(row[name] for name in self.content_columns)

    def units(self, rows: pa.Table, tokenizers: Sequence[Any]) -> pa.Table:
        return rows

    def encode(self, tokenizer: Any, units: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        texts = [list(units[name]) for name in self.content_columns]
        encoded = tokenizer(*texts, truncation=True, max_length=self.config.max_length, return_attention_mask=False)
        return {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}

    def lost_labels(self, units: Units, rows: pa.Table) -> dict[int, str]:
        return {}

    def encode_settings(self) -> dict[str, Any]:
        return {"max_length": self.config.max_length}

    def _schema(self, label: pa.DataType) -> pa.Schema:
        import pyarrow as pa

        content = [pa.field(name, pa.string()) for name in self.content_columns]
        return pa.schema([*content, pa.field("label", label)])

"""Classification of single sentences and of sentence pairs into two or more classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raybrew.config.data import Columns
from raybrew.config.task import ClassificationConfig
from raybrew.tasks.base import Labels, Units
from raybrew.tasks.names import label_id, name_or_number
from raybrew.tasks.text import text_of

if TYPE_CHECKING:
    import pyarrow as pa

    from raybrew.tasks.heads import Head

__all__ = ["Classification"]


@dataclasses.dataclass(frozen=True)
class Classification:
    """Rows of text (and text_pair) with one label each; see `raybrew.tasks.base.Task` for the contract."""

    config: ClassificationConfig
    source: Columns = dataclasses.field(default_factory=Columns)

    kind = "classification"
    names_labels = True
    keeps_rows = False

    @property
    def fixed_labels(self) -> Labels | None:
        return None if self.config.labels is None else Labels(self.config.labels)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.source.text,) if self.source.text_pair is None else (self.source.text, self.source.text_pair)

    @property
    def label_column(self) -> str:
        return self.source.label

    @property
    def content_columns(self) -> tuple[str, ...]:
        return ("text",) if self.source.text_pair is None else ("text", "text_pair")

    def schema(self) -> pa.Schema:
        import pyarrow as pa

        content = [pa.field(name, pa.string()) for name in self.content_columns]
        return pa.schema([*content, pa.field("label", pa.int32())])

    def parse(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        row = {"text": text_of(raw, self.source.text)}
        if self.source.text_pair is not None:
            row["text_pair"] = text_of(raw, self.source.text_pair)
        return row

    def raw_label(self, raw: Mapping[str, Any], names: Sequence[str] | None = None) -> str | int | None:
        return name_or_number(raw.get(self.source.label), self.source.label)

    def label_id(self, value: str | int | None, labels: Labels, names_of_source: Sequence[str] | None) -> int:
        return label_id(value, labels, names_of_source, self.source.label)

    def complete_labels(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return names

    def no_label(self, parsed: Mapping[str, Any]) -> int:
        return -1

    def untrainable(self, rows: pa.Table, labels: Labels) -> str | None:
        present = rows.column("label").unique().to_pylist()
        if len(present) > 1:
            return None
        name = labels.names[present[0]]
        return (
            f"all {rows.num_rows} rows have the label {name!r} (column {self.source.label!r}); training needs two "
            "classes at least"
        )

    def content(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(row[name] for name in self.content_columns)

    def units(self, rows: pa.Table, tokenizers: Sequence[Any]) -> pa.Table:
        return rows

    def encode(self, tokenizer: Any, units: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        return encode_texts(tokenizer, units, self.content_columns, self.config.max_length)

    def encode_settings(self) -> dict[str, Any]:
        return {"max_length": self.config.max_length}

    @property
    def head(self) -> Head:
        from raybrew.tasks.heads import ClassHead

        return ClassHead()

    def metrics(self, outputs: Any, units: Units, rows: pa.Table | None, labels: Labels) -> dict[str, float]:
        """Accuracy, macro-F1 over all classes of the model, and Matthews' correlation, by scikit-learn."""
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

        label_ids, predicted = units.values("label"), outputs.argmax(axis=-1)
        classes = list(range(len(labels)))
        return {
            "accuracy": float(accuracy_score(label_ids, predicted)),
            "macro_f1": float(f1_score(label_ids, predicted, average="macro", labels=classes, zero_division=0.0)),
            "mcc": float(matthews_corrcoef(label_ids, predicted)),
        }

    def predictions(self, outputs: Any, units: Units, rows: pa.Table, labels: Labels) -> list[dict[str, Any]]:
        """The best label of each row with its probability, and the probability of every label."""
        from scipy.special import softmax

        found = []
        for probabilities in softmax(outputs, axis=-1):
            best = int(probabilities.argmax())
            scores = {name: round(float(value), 6) for name, value in zip(labels.names, probabilities, strict=True)}
            found.append({"label": labels.names[best], "score": scores[labels.names[best]], "scores": scores})
        return found


def encode_texts(
    tokenizer: Any, units: Mapping[str, Sequence[Any]], columns: Sequence[str], max_length: int
) -> dict[str, list[Any]]:
    """Token ids of one text or of pairs of texts, truncated to `max_length`."""
    texts = [list(units[name]) for name in columns]
    encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
    return {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}

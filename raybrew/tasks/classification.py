"""Classification of single sentences and of sentence pairs into two or more classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raybrew.config.task_kinds import ClassificationConfig
from raybrew.tasks.base import Labels, Units
from raybrew.tasks.texts import TextTask
from raybrew.tasks.values import label_id, name_or_number

if TYPE_CHECKING:
    import pyarrow as pa

    from raybrew.tasks.heads import Head
    from raybrew.tasks.scores import RowScores

__all__ = ["Classification"]


@dataclasses.dataclass(frozen=True)
class Classification(TextTask):
    """Rows of text (and text_pair) with one label each; see `raybrew.tasks.base.Task` for the contract."""

    config: ClassificationConfig

    kind = "classification"
    names_labels = True

    @property
    def fixed_labels(self) -> Labels | None:
        return None if self.config.labels is None else Labels(self.config.labels)

    def schema(self) -> pa.Schema:
        import pyarrow as pa

        return self._schema(pa.int32())

    def raw_label(self, raw: Mapping[str, Any], names: Sequence[str] | None = None) -> str | int | None:
        return name_or_number(raw.get(self.source.label), self.source.label)

    def label_id(self, value: str | int | None, labels: Labels, names_of_source: Sequence[str] | None) -> int:
        return label_id(value, labels, names_of_source, self.source.label)

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

    def row_scores(self, outputs: Any, units: Units, rows: pa.Table | None, labels: Labels) -> RowScores:
        """Counts of each class."""
        from raybrew.tasks.scores import answers_key, label_counts, one_hot

        truth = units.values("label")
        true, named = one_hot(truth, len(labels)), one_hot(outputs.argmax(axis=-1), len(labels))
        key = answers_key(labels.names, units.values("id"), truth)
        return label_counts("classes", labels.names, right=true.multiply(named), named=named, true=true, key=key)

    def predictions(self, outputs: Any, units: Units, rows: pa.Table, labels: Labels) -> list[dict[str, Any]]:
        """The best label of each row with its probability, and the probability of every label."""
        from scipy.special import softmax

        found = []
        for probabilities in softmax(outputs, axis=-1):
            best = int(probabilities.argmax())
            scores = {name: round(float(value), 6) for name, value in zip(labels.names, probabilities, strict=True)}
            found.append({"label": labels.names[best], "score": scores[labels.names[best]], "scores": scores})
        return found

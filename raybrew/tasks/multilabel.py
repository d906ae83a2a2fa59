"""Multi-label classification: any number of labels per row, each a question of its own to the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raybrew.config.task_kinds import MultilabelConfig
from raybrew.tasks.base import BadValue, Labels, Units
from raybrew.tasks.texts import TextTask
from raybrew.tasks.values import label_id, name_or_number

if TYPE_CHECKING:
    import pyarrow as pa

    from raybrew.tasks.heads import Head
    from raybrew.tasks.scores import RowScores

__all__ = ["Multilabel"]


@dataclasses.dataclass(frozen=True)
class Multilabel(TextTask):
    """Rows of text (and text_pair) with a set of labels each; see `raybrew.tasks.base.Task` for the contract.

    The column `label` holds class numbers; [-2] marks a row without labels, [] one to which none applies.
    """

    config: MultilabelConfig

    kind = "multilabel"
    names_labels = True

    @property
    def fixed_labels(self) -> Labels | None:
        return None if self.config.labels is None else Labels(self.config.labels)

    def schema(self) -> pa.Schema:
        import pyarrow as pa

        return self._schema(pa.list_(pa.int32()))

    def raw_label(self, raw: Mapping[str, Any], names: Sequence[str] | None = None) -> tuple[str | int, ...] | None:
        column = self.source.label
        value = raw.get(column)
        if value is None:
            return None
        if isinstance(value, str):
            value = [part for part in value.split(self.config.separator) if part.strip()]
        if not isinstance(value, list):
            raise BadValue(
                column,
                f"a list of labels, or text with {self.config.separator!r} between them, expected, "
                f"got {type(value).__name__}",
            )
        found = [name_or_number(part, column) for part in value]
        if any(name is None for name in found):
            raise BadValue(column, "one of the labels is empty")
        return tuple(dict.fromkeys(name for name in found if name is not None))

    def label_id(self, value: str | int | None, labels: Labels, names_of_source: Sequence[str] | None) -> int:
        return label_id(value, labels, names_of_source, self.source.label)

    def no_label(self, parsed: Mapping[str, Any]) -> list[int]:
        return [-2]

    def untrainable(self, rows: pa.Table, labels: Labels) -> str | None:
        if len({tuple(sorted(row)) for row in rows.column("label").to_pylist()}) > 1:
            return None
        return f"all {rows.num_rows} rows have the same labels (column {self.source.label!r}): nothing to learn"

    @property
    def head(self) -> Head:
        from raybrew.tasks.heads import BinaryHead

        return BinaryHead()

    def metrics(self, outputs: Any, units: Units, rows: pa.Table | None, labels: Labels) -> dict[str, float]:
        """Micro and macro F1 over labels, and the share of rows whose set is right, by scikit-learn."""
        from sklearn.metrics import accuracy_score, f1_score

        truth = self._truth(outputs, units)
        predicted = self._chosen(outputs).astype(np.int8)
        return {
            "micro_f1": float(f1_score(truth, predicted, average="micro", zero_division=0.0)),
            "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0.0)),
            "subset_accuracy": float(accuracy_score(truth, predicted)),
        }

    def row_scores(self, outputs: Any, units: Units, rows: pa.Table | None, labels: Labels) -> RowScores:
        """Counts of each label, and whether the set of a row is right."""
        from raybrew.tasks.scores import answers_key, label_counts

        truth, named = self._truth(outputs, units), self._chosen(outputs).astype(np.int8)
        exact = (truth == named).all(axis=1)
        key = answers_key(labels.names, units.values("id"), truth)
        return label_counts(
            "label sets", labels.names, right=truth * named, named=named, true=truth, key=key, others={"exact": exact}
        )

    def predictions(self, outputs: Any, units: Units, rows: pa.Table, labels: Labels) -> list[dict[str, Any]]:
        """`labels` whose probability reaches `task.threshold`, and `scores`, the probability of every label."""
        from scipy.special import expit

        return [
            {
                "labels": [name for name, yes in zip(labels.names, chosen, strict=True) if yes],
                "scores": {
                    name: round(float(value), 6) for name, value in zip(labels.names, probabilities, strict=True)
                },
            }
            for probabilities, chosen in zip(expit(outputs), self._chosen(outputs), strict=True)
        ]

    def _truth(self, outputs: Any, units: Units) -> Any:
        truth = np.zeros(outputs.shape, np.int8)
        for row, present in zip(truth, units.values("label"), strict=True):
            row[present] = 1
        return truth

    def _chosen(self, outputs: Any) -> Any:
        from scipy.special import expit

        return expit(outputs) >= self.config.threshold

"""Regression: one number per text or pair of texts, as the similarity of STS-B."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raybrew.config.task_kinds import RegressionConfig
from raybrew.tasks.base import BadValue, Labels, Units
from raybrew.tasks.texts import TextTask

if TYPE_CHECKING:
    import pyarrow as pa

    from raybrew.tasks.heads import Head
    from raybrew.tasks.scores import RowScores

__all__ = ["Regression"]


@dataclasses.dataclass(frozen=True)
class Regression(TextTask):
    """Rows of text (and text_pair) with one number each; see `raybrew.tasks.base.Task` for the contract."""

    config: RegressionConfig

    kind = "regression"
    names_labels = False

    @property
    def fixed_labels(self) -> Labels:
        return Labels(("score",), named=False)

    def schema(self) -> pa.Schema:
        import pyarrow as pa

        return self._schema(pa.float32())

    def raw_label(self, raw: Mapping[str, Any], names: Sequence[str] | None = None) -> float | None:
        column = self.source.label
        value = raw.get(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise BadValue(column, f"a number expected, got {type(value).__name__}")
        try:
            number = float(value)
        except (ValueError, OverflowError):  # text; a whole number of 400 digits
            raise BadValue(column, f"a number expected, got {value!r}") from None
        if not math.isfinite(number) or abs(number) > 3e38:
            raise BadValue(column, f"a finite number of at most 3e38 expected, got {value!r}")
        return number

    def label_id(self, value: str | int | None, labels: Labels, names_of_source: Sequence[str] | None) -> int:
        raise AssertionError("a number is no name")

    def no_label(self, parsed: Mapping[str, Any]) -> float:
        return math.nan

    def untrainable(self, rows: pa.Table, labels: Labels) -> str | None:
        present = rows.column("label").unique().to_pylist()
        if len(present) > 1:
            return None
        return f"all {rows.num_rows} rows have the number {present[0]:g} (column {self.source.label!r})"

    @property
    def head(self) -> Head:
        from raybrew.tasks.heads import NumberHead

        return NumberHead()

    def metrics(self, outputs: Any, units: Units, rows: pa.Table | None, labels: Labels) -> dict[str, float]:
        """Pearson's and Spearman's correlation by scipy (0 where a side is constant), and the mean squared error."""
        from scipy.stats import pearsonr, spearmanr

        truth, predicted = units.values("label").astype(float), outputs[:, 0].astype(float)
        varied = len(truth) > 1 and truth.std() > 0 and predicted.std() > 0
        return {
            "pearson": float(pearsonr(truth, predicted).statistic) if varied else 0.0,
            "spearman": float(spearmanr(truth, predicted).statistic) if varied else 0.0,
            "mse": float(((truth - predicted) ** 2).mean()),
        }

    def row_scores(self, outputs: Any, units: Units, rows: pa.Table | None, labels: Labels) -> RowScores:
        """Moments of true and predicted numbers and of their ranks."""
        from raybrew.tasks.scores import answers_key, number_scores

        truth = units.values("label").astype(float)
        return number_scores(truth, outputs[:, 0].astype(float), answers_key(units.values("id"), truth))

    def predictions(self, outputs: Any, units: Units, rows: pa.Table, labels: Labels) -> list[dict[str, Any]]:
        """`score`, the number."""
        return [{"score": round(float(value), 6)} for value in outputs[:, 0]]

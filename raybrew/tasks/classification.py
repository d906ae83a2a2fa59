"""Classification of single sentences and of sentence pairs into two or more classes."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raybrew.config.task import ClassificationConfig
from raybrew.tasks.base import BadValue, Labels

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

__all__ = ["Classification"]

#: `int` alone would also take "1_0" and digits of other scripts.
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")


@dataclasses.dataclass(frozen=True)
class Classification:
    """Rows of text (and text_pair) with one label each; see `raybrew.tasks.base.Task` for the contract."""

    config: ClassificationConfig
    text: str = "text"
    text_pair: str | None = None
    label: str = "label"

    kind = "classification"

    @property
    def fixed_labels(self) -> Labels | None:
        return None if self.config.labels is None else Labels(self.config.labels)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.text,) if self.text_pair is None else (self.text, self.text_pair)

    @property
    def label_column(self) -> str:
        return self.label

    def schema(self) -> pa.Schema:
        import pyarrow as pa

        content = [pa.field("text", pa.string())]
        if self.text_pair is not None:
            content.append(pa.field("text_pair", pa.string()))
        return pa.schema([*content, pa.field("label", pa.int32())])

    def parse(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        row = {"text": _text_of(raw, self.text)}
        if self.text_pair is not None:
            row["text_pair"] = _text_of(raw, self.text_pair)
        return row

    def raw_label(self, raw: Mapping[str, Any]) -> str | int | None:
        value = raw.get(self.label)
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float):
            if math.isnan(value):
                return None
            if not value.is_integer():
                raise BadValue(self.label, f"{value!r} is no class number; a label is a name or a whole number")
            return int(value)
        if isinstance(value, int):
            return value
        if isinstance(value, str):
            return _checked(value, self.label).strip()
        raise BadValue(self.label, f"a label is text or a whole number, got {type(value).__name__}")

    def label_id(self, value: str | int | None, labels: Labels, names_of_source: Sequence[str] | None) -> int:
        if value is None:
            return -1
        if isinstance(value, int) and names_of_source is not None:
            if value == -1:
                return -1  # the hub's mark of a hidden label
            if not 0 <= value < len(names_of_source):
                raise BadValue(self.label, f"class number {value} is outside 0..{len(names_of_source) - 1}")
            value = names_of_source[value]
        if str(value) in labels.names:
            return labels.names.index(str(value))
        # Models and data often differ in case only (POSITIVE, positive); a name that fits two labels fits none.
        alike = [index for index, name in enumerate(labels.names) if name.casefold() == str(value).casefold()]
        if len(alike) == 1:
            return alike[0]
        number = _as_number(value)
        if number is not None:
            if number == -1:
                return -1
            # "0" and 0 mean the first class unless some class is itself named by a number.
            if 0 <= number < len(labels) and not any(_as_number(name) is not None for name in labels.names):
                return number
        allowed = ", ".join(labels.names[:20]) + (", ..." if len(labels) > 20 else "")
        raise BadValue(self.label, f"unknown label {value!r}; known labels: {allowed}")

    def content(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return (row["text"],) if self.text_pair is None else (row["text"], row["text_pair"])

    def encode(self, tokenizer: Any, rows: Mapping[str, Sequence[Any]]) -> dict[str, list[list[int]]]:
        pair = list(rows["text_pair"]) if self.text_pair is not None else None
        encoded = tokenizer(
            list(rows["text"]), pair, truncation=True, max_length=self.config.max_length, return_attention_mask=False
        )
        return {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}

    def encode_settings(self) -> dict[str, Any]:
        return {"max_length": self.config.max_length}

    def metrics(self, logits: np.ndarray, label_ids: np.ndarray, num_labels: int) -> dict[str, float]:
        """Accuracy, macro-F1 over all `num_labels` classes, and Matthews' correlation, by scikit-learn."""
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

        predicted = logits.argmax(axis=-1)
        classes = list(range(num_labels))
        return {
            "accuracy": float(accuracy_score(label_ids, predicted)),
            "macro_f1": float(f1_score(label_ids, predicted, average="macro", labels=classes, zero_division=0.0)),
            "mcc": float(matthews_corrcoef(label_ids, predicted)),
        }

    def predictions(self, logits: np.ndarray, labels: Labels) -> list[dict[str, Any]]:
        """The best label of each row with its probability, and the probability of every label."""
        from scipy.special import softmax

        rows = []
        for probabilities in softmax(logits, axis=-1):
            best = int(probabilities.argmax())
            scores = {name: round(float(value), 6) for name, value in zip(labels.names, probabilities, strict=True)}
            rows.append({"label": labels.names[best], "score": scores[labels.names[best]], "scores": scores})
        return rows


def _text_of(raw: Mapping[str, Any], column: str) -> str:
    if column not in raw:
        raise BadValue(column, f"missing; the row has {', '.join(map(repr, raw)) or 'no columns'}")
    value = raw[column]
    if value is None:
        raise BadValue(column, "empty")
    if not isinstance(value, str):
        raise BadValue(column, f"text expected, got {type(value).__name__}")
    if not value.strip():
        raise BadValue(column, "empty")
    if "\ufffd" in value:
        raise BadValue(column, "holds U+FFFD, the mark left where bytes of another encoding were read as UTF-8")
    return _checked(value, column)


def _checked(value: str, column: str) -> str:
    if "\0" in value:
        raise BadValue(column, "holds a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        code = ord(value[error.start])
        raise BadValue(column, f"holds U+{code:04X}, half of a surrogate pair, which is no character") from None
    return value


def _as_number(value: str | int) -> int | None:
    if isinstance(value, int):
        return value
    return int(value) if _WHOLE_NUMBER.fullmatch(value) else None

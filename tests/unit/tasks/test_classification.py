"""Classification: values of source rows, label numbers, metrics, predictions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raybrew.catalog.target import load_target
from raybrew.catalog.tasks import TASKS
from raybrew.config import TASK_CONFIGS, ClassificationConfig, Columns
from raybrew.models.loading import auto_class
from raybrew.tasks.base import BadValue, Labels, build_task
from raybrew.tasks.classification import Classification
from tests.task_helpers import InMemory

POLAR = Labels(("negative", "positive"))


def single(**settings: Any) -> Classification:
    return Classification(ClassificationConfig(**settings))


def test_every_task_of_the_table_builds_and_knows_its_kind() -> None:
    assert set(TASKS) == set(TASK_CONFIGS)
    assert all(auto_class(kind) is not None for kind in TASKS)
    assert all(load_target(spec.config) is TASK_CONFIGS[kind] for kind, spec in TASKS.items())
    for kind in TASKS:
        assert build_task(TASK_CONFIGS[kind]()).kind == kind


def test_schema_and_content_of_single_sentences_and_pairs() -> None:
    pair = build_task(ClassificationConfig(), Columns(text="question", text_pair="answer", label="gold"))
    assert pair.columns == ("question", "answer")
    assert pair.label_column == "gold"
    assert pair.schema().names == ["text", "text_pair", "label"]
    row = pair.parse({"question": "why?", "answer": " so. ", "gold": 1, "more": None})
    assert row == {"text": "why?", "text_pair": " so. "}
    assert pair.content(row) == ("why?", " so. ")
    assert single().schema().names == ["text", "label"]
    assert single().content({"text": "a"}) == ("a",)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "empty"),
        ("", "empty"),
        (" \t\n", "empty"),
        (3, "text expected, got int"),
        (b"bytes", "text expected, got bytes"),
        (["a"], "text expected, got list"),
        ("a\0b", "NUL"),
        ("a\ufffdb", "U+FFFD"),
        ("a\ud800b", "U+D800, half of a surrogate pair"),
    ],
)
@pytest.mark.parametrize("column", ["text", "text_pair"])
def test_bad_text_names_column_and_reason(value: Any, reason: str, column: str) -> None:
    raw = {"text": "fine", "text_pair": "fine", column: value}
    with pytest.raises(BadValue) as caught:
        Classification(ClassificationConfig(), Columns(text_pair="text_pair")).parse(raw)
    assert caught.value.column == column
    assert reason in caught.value.reason


def test_missing_column_of_one_row_names_those_it_has() -> None:
    with pytest.raises(BadValue, match=r"column 'text': missing; the row has 'sentence', 'label'"):
        single().parse({"sentence": "a", "label": 1})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        ("  ", None),
        (math.nan, None),
        (" positive ", "positive"),
        (True, "true"),
        (False, "false"),
        (2, 2),
        (2.0, 2),
        ("2", "2"),
    ],
)
def test_raw_label(value: Any, expected: str | int | None) -> None:
    result = single().raw_label({"label": value})
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize("value", [0.5, math.inf, [1], {"a": 1}, b"x", "a\0", "\ud800"])
def test_raw_label_refuses_what_is_no_label(value: Any) -> None:
    with pytest.raises(BadValue) as caught:
        single().raw_label({"label": value})
    assert caught.value.column == "label"


def test_raw_label_of_a_row_without_the_column_is_none() -> None:
    assert single().raw_label({"text": "a"}) is None


@pytest.mark.parametrize(
    ("value", "labels", "names_of_source", "expected"),
    [
        (None, POLAR, None, -1),
        ("positive", POLAR, None, 1),
        ("POSITIVE", POLAR, None, 1),
        (1, POLAR, None, 1),
        ("1", POLAR, None, 1),
        (-1, POLAR, None, -1),
        ("-1", POLAR, None, -1),
        # A source that names its classes in another order: the name decides, not the number.
        (0, POLAR, ("positive", "negative"), 1),
        (-1, POLAR, ("positive", "negative"), -1),
        ("negative", POLAR, ("positive", "negative"), 0),
        # Labels that are numbers themselves: by name, never by place.
        (1, Labels(("1", "2")), None, 0),
        ("2", Labels(("1", "2")), None, 1),
        (-1, Labels(("-1", "1")), None, 0),
        # Case decides where it must.
        ("a", Labels(("A", "a")), None, 1),
    ],
)
def test_label_id(
    value: str | int | None, labels: Labels, names_of_source: tuple[str, ...] | None, expected: int
) -> None:
    assert single().label_id(value, labels, names_of_source) == expected


@pytest.mark.parametrize(
    ("value", "labels", "names_of_source", "reason"),
    [
        ("neutral", POLAR, None, "unknown label 'neutral'; known labels: negative, positive"),
        (2, POLAR, None, "unknown label 2"),
        ("1_0", Labels(tuple("abcdefghijkl")), None, "unknown label '1_0'"),
        ("٣", Labels(tuple("abcd")), None, "unknown label"),
        (0, Labels(("1", "2")), None, "unknown label 0"),
        (2, POLAR, ("negative", "positive"), "class number 2 is outside 0..1"),
        (-2, POLAR, ("negative", "positive"), "class number -2 is outside 0..1"),
        ("AB", Labels(("ab", "Ab")), None, "unknown label 'AB'"),
        ("x", Labels(tuple(f"l{i}" for i in range(30))), None, "l19, ..."),
    ],
)
def test_unknown_labels_name_what_is_known(
    value: str | int, labels: Labels, names_of_source: tuple[str, ...] | None, reason: str
) -> None:
    with pytest.raises(BadValue) as caught:
        single().label_id(value, labels, names_of_source)
    assert caught.value.column == "label"
    assert reason in caught.value.reason


def test_fixed_labels_and_encode_settings_come_from_the_config() -> None:
    assert single().fixed_labels is None
    assert single(labels=("b", "a")).fixed_labels == Labels(("b", "a"))
    assert single(max_length=16).encode_settings() == {"max_length": 16}


def test_metrics_agree_with_hand_counts() -> None:
    # Truth a a a b b c, predicted a a b b b a: of class c nothing is found.
    truth = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 1, 0])
    logits = np.eye(3, dtype=np.float32)[predicted]
    found = single().metrics(logits, InMemory(label=truth), None, Labels(("a", "b", "c")))
    assert found["accuracy"] == pytest.approx(4 / 6)
    f1_a, f1_b = 2 * 2 / (3 + 3), 2 * 2 / (2 + 3)
    assert found["macro_f1"] == pytest.approx((f1_a + f1_b + 0) / 3)
    # Gorodkin's R_K from the confusion matrix: (c s - sum p t) / sqrt((s2 - sum p2)(s2 - sum t2)).
    pairs = 3 * 3 + 3 * 2 + 0 * 1
    expected = (4 * 6 - pairs) / math.sqrt((36 - (9 + 9)) * (36 - (9 + 4 + 1)))
    assert found["mcc"] == pytest.approx(expected)


def test_macro_f1_counts_classes_that_no_row_has() -> None:
    logits = np.eye(4, dtype=np.float32)[[0, 1]]
    found = single().metrics(logits, InMemory(label=np.array([0, 1])), None, Labels(tuple("abcd")))
    assert found["macro_f1"] == pytest.approx(0.5)


def test_predictions_give_every_label_its_probability() -> None:
    logits = np.log(np.array([[0.25, 0.75], [0.9, 0.1]], dtype=np.float32))
    first, second = single().predictions(logits, InMemory(), pa.table({}), POLAR)
    assert first == {"label": "positive", "score": 0.75, "scores": {"negative": 0.25, "positive": 0.75}}
    assert second["label"] == "negative"
    assert sum(second["scores"].values()) == pytest.approx(1, abs=1e-5)

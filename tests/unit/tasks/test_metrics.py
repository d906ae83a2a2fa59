"""Metrics and predictions of tagging, question answering, multi-label and regression against independent counts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from seqeval.metrics import classification_report
from seqeval.scheme import IOB2

from raybrew.config import MultilabelConfig, QAConfig, RegressionConfig, TaggingConfig
from raybrew.tasks.base import Labels, build_task
from tests.task_helpers import InMemory

TAGS = Labels(("O", "B-LOC", "I-LOC", "B-PER", "I-PER"))


def one_hot(numbers: list[int]) -> np.ndarray:
    return np.eye(len(TAGS), dtype=np.float32)[numbers]


def test_tagging_joins_units_and_counts_spans_by_hand() -> None:
    # A LOC span that two units share; of three true spans two are found, and one is found that is none.
    truth = [[1, 2], [2, 0, 3], [3, 0]]
    found = [[1, 2], [2, 0, 3], [0, 1]]
    units = InMemory(label=[np.array(row) for row in truth], row=np.array([0, 0, 1]), start=np.array([0, 2, 0]))
    metrics = build_task(TaggingConfig()).metrics([one_hot(row) for row in found], units, None, TAGS)
    assert metrics["precision"] == pytest.approx(2 / 3)
    assert metrics["recall"] == pytest.approx(2 / 3)
    assert metrics["f1"] == pytest.approx(2 / 3)
    assert metrics["accuracy"] == pytest.approx(5 / 7)


def test_tagging_agrees_with_seqeval_in_strict_mode_on_whole_schemes() -> None:
    random = np.random.default_rng(0)

    def sentence() -> list[int]:
        tags: list[int] = []
        while len(tags) < 12:
            kind = int(random.integers(3))
            tags += [0] if kind == 0 else [2 * kind - 1, *[2 * kind] * int(random.integers(3))]
        return tags[:12]

    truth = [sentence() for _ in range(40)]
    found = [row if place % 2 else sentence() for place, row in enumerate(truth)]
    units = InMemory(label=[np.array(row) for row in truth], row=np.arange(40))
    metrics = build_task(TaggingConfig()).metrics([one_hot(row) for row in found], units, None, TAGS)
    names = [[[TAGS.names[tag] for tag in row] for row in rows] for rows in (truth, found)]
    report = classification_report(*names, mode="strict", scheme=IOB2, output_dict=True)["micro avg"]
    assert 0 < metrics["f1"] < 1
    for ours, theirs in (("f1", "f1-score"), ("precision", "precision"), ("recall", "recall")):
        assert metrics[ours] == pytest.approx(report[theirs])


def test_tagging_without_spans_has_metrics_of_words() -> None:
    units = InMemory(label=[np.array([0, 1, 1])], row=np.array([0]))
    task = build_task(TaggingConfig(scheme="none", metric="accuracy"))
    metrics = task.metrics([one_hot([0, 1, 0])], units, None, Labels(("A", "B", "C", "D", "E")))
    assert metrics == {"accuracy": pytest.approx(2 / 3), "macro_f1": pytest.approx((2 / 3 + 2 / 3) / 5)}


def test_regression_agrees_with_scipy_and_is_0_where_nothing_varies() -> None:
    random = np.random.default_rng(1)
    truth, found = random.normal(size=30), random.normal(size=(30, 1)).astype(np.float32)
    task = build_task(RegressionConfig())
    metrics = task.metrics(found, InMemory(label=truth), None, Labels(("score",)))
    assert metrics["pearson"] == pytest.approx(scipy.stats.linregress(truth, found[:, 0]).rvalue)
    ranks = [scipy.stats.rankdata(values) for values in (truth, found[:, 0])]
    assert metrics["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    constant = task.metrics(np.ones((30, 1), np.float32), InMemory(label=truth), None, Labels(("score",)))
    assert (constant["pearson"], constant["spearman"]) == (0.0, 0.0)


def test_multilabel_by_hand() -> None:
    # Rows: {a}, {a, b}, {}; found: {a}, {a, c}, {b}.
    labels = Labels(("a", "b", "c"))
    outputs = np.array([[2, -2, -2], [2, -2, 2], [-2, 2, -2]], np.float32)
    units = InMemory(label=[np.array([0]), np.array([1, 0]), np.array([], np.int32)])
    task = build_task(MultilabelConfig())
    metrics = task.metrics(outputs, units, None, labels)
    assert metrics["micro_f1"] == pytest.approx(2 * 2 / (3 + 4))
    assert metrics["macro_f1"] == pytest.approx((1 + 0 + 0) / 3)
    assert metrics["subset_accuracy"] == pytest.approx(1 / 3)
    assert [row["labels"] for row in task.predictions(outputs, units, pa.table({}), labels)] == [
        ["a"],
        ["a", "c"],
        ["b"],
    ]
    strict = build_task(MultilabelConfig(threshold=0.9)).predictions(outputs, units, pa.table({}), labels)
    assert [row["labels"] for row in strict] == [[], [], []]


CONTEXT = "one two three four five six"
#: Characters of the words; a window from `three` on, and one up to `four`.
ROWS = pa.table({"context": [CONTEXT], "scored": pa.array([["four five"]], pa.list_(pa.string()))})
UNITS = InMemory(
    row=np.array([0, 0]),
    start=np.array([0, 7]),
    spans=[
        np.array([[0, 0], [0, 3], [4, 7], [8, 13], [14, 18]]),
        np.array([[0, 0], [1, 6], [7, 11], [12, 16], [17, 20]]),
    ],
)
PAIR = Labels(("start", "end"), named=False)


def span_logits(start: int, end: int, none: float = -9.0, size: int = 5) -> np.ndarray:
    logits = np.full((size, 2), -5.0, np.float32)
    logits[start, 0] = logits[end, 1] = 3.0
    logits[0] = none
    return logits


def test_answers_come_from_the_best_window_in_characters_of_the_context() -> None:
    task = build_task(QAConfig())
    outputs = [span_logits(1, 1) * 0.5, span_logits(2, 3)]
    (found,) = task.predictions(outputs, UNITS, ROWS, PAIR)
    assert found["answer"] == "four five" == CONTEXT[found["start"] : found["end"]]
    assert task.metrics(outputs, UNITS, ROWS, PAIR) == {"f1": 1.0, "exact_match": 1.0}
    answers = [entry["answer"] for entry in found["n_best"]]
    assert len(set(map(str, answers))) == len(answers), "`three` and `four` lie in both windows"
    assert found["n_best"][0]["answer"] == found["answer"]
    scores = [entry["score"] for entry in found["n_best"]]
    assert scores == sorted(scores, reverse=True)


def test_an_end_before_its_start_or_too_far_is_no_answer() -> None:
    outputs = [span_logits(4, 1), np.full((5, 2), -8.0, np.float32)]
    (found,) = build_task(QAConfig()).predictions(outputs, UNITS, ROWS, PAIR)
    assert found["end"] > found["start"]
    wide = [np.full((5, 2), -8.0, np.float32), span_logits(1, 4)]
    (found,) = build_task(QAConfig(max_answer=2)).predictions(wide, UNITS, ROWS, PAIR)
    assert len(found["answer"].split()) <= 2


def test_no_answer_is_said_only_where_every_window_says_so() -> None:
    task = build_task(QAConfig(no_answer=True))
    nowhere = [span_logits(1, 1, none=9.0), span_logits(2, 3, none=9.0)]
    (found,) = task.predictions(nowhere, UNITS, ROWS, PAIR)
    assert (found["answer"], found["start"], found["end"]) == ("", None, None)
    one_window = [span_logits(1, 1, none=9.0) - 4.0, span_logits(2, 3, none=-9.0)]
    (found,) = task.predictions(one_window, UNITS, ROWS, PAIR)
    assert found["answer"] == "four five"
    (found,) = build_task(QAConfig(no_answer=True, no_answer_margin=50.0)).predictions(nowhere, UNITS, ROWS, PAIR)
    assert found["answer"] != ""
    (found,) = build_task(QAConfig()).predictions(nowhere, UNITS, ROWS, PAIR)
    assert found["answer"] != "", "without no_answer there always is one"


@pytest.mark.parametrize(("none", "margin", "place"), [(-9.0, 0.0, 2), (2.5, 0.0, 1), (9.0, 0.0, 0), (9.0, 50.0, 1)])
def test_the_empty_answer_is_among_the_best_with_its_share(none: float, margin: float, place: int) -> None:
    task = build_task(QAConfig(no_answer=True, n_best=2, no_answer_margin=margin))
    # Sums of start and end: 6 for `four five`, 4 for `five`, twice `none` for no answer.
    elsewhere, here = np.full((5, 2), -11.0, np.float32), span_logits(2, 3, none=none)
    elsewhere[0], here[3, 0] = none, 1.0
    (found,) = task.predictions([elsewhere, here], UNITS, ROWS, PAIR)
    answers = [entry["answer"] for entry in found["n_best"]]
    assert answers.index("") == place
    assert len(answers) == 3
    assert sum(entry["score"] for entry in found["n_best"]) == pytest.approx(1, abs=1e-5)

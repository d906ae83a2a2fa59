"""Metrics from row scores: equal to the libraries' on all rows, and to those of the rows drawn on resamples."""

import numpy as np
import pyarrow as pa
import pytest

from raybrew.config.task_kinds import (
    ClassificationConfig,
    MaskedLMConfig,
    MultilabelConfig,
    QAConfig,
    RegressionConfig,
    TaggingConfig,
)
from raybrew.tasks.base import Labels, build_task
from raybrew.tasks.scores import load_scores, save_scores


class Units:
    def __init__(self, **columns):
        self.columns = columns
        self.num_rows = len(columns["id"])

    def values(self, name):
        return self.columns[name]


RNG = np.random.default_rng(3)
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
LABELS = Labels(("a", "b", "c"))
ROWS = 40


def ids(rows=ROWS):
    return RNG.integers(0, 256, (rows, 16), np.uint8)


def classes():
    truth = RNG.integers(0, 3, ROWS)
    return build_task(ClassificationConfig()), RNG.normal(size=(ROWS, 3)), Units(id=ids(), label=truth), None, LABELS


def sets():
    truth = [np.flatnonzero(RNG.random(3) < 0.4) for _ in range(ROWS)]
    outputs = RNG.normal(size=(ROWS, 3))
    return build_task(MultilabelConfig(kind="multilabel")), outputs, Units(id=ids(), label=truth), None, LABELS


def numbers():
    truth = RNG.normal(size=ROWS).round(1)
    outputs = (truth + RNG.normal(size=ROWS)).round(1)[:, None]
    return build_task(RegressionConfig(kind="regression")), outputs, Units(id=ids(), label=truth), None, Labels(())


def tags(scheme="bio"):
    lengths = RNG.integers(1, 9, ROWS + 5)
    truth = [RNG.integers(0, len(TAGS), length) for length in lengths]
    outputs = [np.eye(len(TAGS))[row] + 0.7 * RNG.normal(size=(len(row), len(TAGS))) for row in truth]
    row = np.sort(np.concatenate([np.arange(ROWS), RNG.integers(0, ROWS, 5)]))
    units = Units(id=ids(ROWS + 5), label=truth, row=row)
    return build_task(TaggingConfig(kind="tagging", scheme=scheme)), outputs, units, None, Labels(TAGS)


def words():
    return tags("none")


def texts():
    outputs = [np.column_stack([-RNG.random(n), RNG.random(n) < 0.5]) for n in RNG.integers(1, 6, ROWS)]
    units = Units(id=ids(), row=np.arange(ROWS))
    return build_task(MaskedLMConfig(kind="masked_lm")), outputs, units, None, Labels(())


def answers():
    context = "the cat sat on the mat and the dog ran"
    spans = [[0, 0]] + [[start, start + len(word)] for start, word in word_places(context)]
    rows = pa.table(
        {
            "question": [f"q{row}" for row in range(ROWS)],
            "context": [context] * ROWS,
            "scored": [[RNG.choice(["the cat", "mat", "dog ran", "sat on"])] for _ in range(ROWS)],
        }
    )
    outputs = [RNG.normal(size=(len(spans), 2)) for _ in range(ROWS)]
    units = Units(
        id=ids(), row=np.arange(ROWS), start=np.zeros(ROWS, int), spans=[np.array(spans) for _ in range(ROWS)]
    )
    return build_task(QAConfig(kind="qa")), outputs, units, rows, Labels(())


def word_places(text):
    start = 0
    for word in text.split():
        start = text.index(word, start)
        yield start, word
        start += len(word)


CASES = [classes, sets, numbers, tags, words, texts, answers]


def one_by_one(case, rows):
    """The metrics that the task gives for these rows alone, repeated as they are."""
    task, outputs, units, table, labels = case
    if "row" in units.columns:
        chosen = [unit for row in rows for unit in np.flatnonzero(units.columns["row"] == row)]
        places = [place for place, row in enumerate(rows) for _ in np.flatnonzero(units.columns["row"] == row)]
    else:
        chosen, places = list(rows), None
    columns = {
        name: value[chosen] if isinstance(value, np.ndarray) else [value[unit] for unit in chosen]
        for name, value in units.columns.items()
    }
    if places is not None:
        columns["row"] = np.array(places)
    given = outputs[chosen] if isinstance(outputs, np.ndarray) else [outputs[unit] for unit in chosen]
    return task.metrics(given, Units(**columns), None if table is None else table.take(rows), labels)


@pytest.mark.parametrize("make", CASES)
def test_row_scores_give_the_metrics_of_the_libraries(make):
    task, outputs, units, table, labels = make()
    expected = task.metrics(outputs, units, table, labels)
    found = task.row_scores(outputs, units, table, labels)
    assert len(found) == ROWS
    assert found.metrics().keys() == expected.keys()
    assert found.metrics() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("make", [case for case in CASES if case is not numbers])
def test_weights_give_the_metrics_of_the_rows_drawn(make):
    case = make()
    task, outputs, units, table, labels = case
    scores = task.row_scores(outputs, units, table, labels)
    drawn = RNG.integers(0, ROWS, (3, ROWS))
    weights = np.stack([np.bincount(rows, minlength=ROWS) for rows in drawn])
    found = scores.metrics(weights)
    for index, rows in enumerate(drawn):
        expected = one_by_one(case, rows)
        assert {name: values[index] for name, values in found.items()} == pytest.approx(expected, abs=1e-9)


def test_correlations_of_resamples():
    task, outputs, units, table, labels = numbers()
    scores = task.row_scores(outputs, units, table, labels)
    rows = RNG.integers(0, ROWS, ROWS)
    found = scores.metrics(np.bincount(rows, minlength=ROWS)[None])
    expected = one_by_one((task, outputs, units, table, labels), rows)
    assert found["pearson"][0] == pytest.approx(expected["pearson"])
    assert found["mse"][0] == pytest.approx(expected["mse"])
    assert found["spearman"][0] == pytest.approx(expected["spearman"], abs=0.05)  # ranks are those among all rows


def test_constant_predictions_correlate_with_nothing():
    task, outputs, units, table, labels = numbers()
    found = task.row_scores(np.full_like(outputs, 0.3), units, table, labels).metrics()
    assert (found["pearson"], found["spearman"]) == (0.0, 0.0)


@pytest.mark.parametrize("make", CASES)
def test_scores_are_read_as_they_were_written(make, tmp_path):
    task, outputs, units, table, labels = make()
    scores = task.row_scores(outputs, units, table, labels)
    save_scores(tmp_path / "scores" / "test.npz", scores)
    found = load_scores(tmp_path / "scores" / "test.npz")
    assert found is not None
    assert (found.kind, found.labels, found.names, found.key) == (
        scores.kind, scores.labels, scores.names, scores.key,
    )  # fmt: skip
    assert (found.values != scores.values).nnz == 0


def test_damaged_scores_are_none(tmp_path):
    path = tmp_path / "test.npz"
    assert load_scores(path) is None
    path.write_bytes(b"PK\x03\x04 cut off")
    assert load_scores(path) is None


def test_key_names_rows_and_true_answers_not_the_model():
    task, outputs, units, table, labels = classes()
    key = task.row_scores(outputs, units, table, labels).key
    assert task.row_scores(-outputs, units, table, labels).key == key
    other = Units(id=units.columns["id"], label=(units.columns["label"] + 1) % 3)
    assert task.row_scores(outputs, other, table, labels).key != key


def test_per_label_and_correct_rows():
    task, outputs, units, table, labels = classes()
    from sklearn.metrics import precision_recall_fscore_support

    scores = task.row_scores(outputs, units, table, labels)
    truth, named = units.columns["label"], outputs.argmax(axis=1)
    expected = precision_recall_fscore_support(truth, named, labels=[0, 1, 2], zero_division=0.0)
    found = scores.per_label()
    for place, name in enumerate(labels.names):
        values = [found[name][key] for key in ("precision", "recall", "f1", "support")]
        assert values == pytest.approx([float(column[place]) for column in expected])
    assert (scores.correct == (truth == named)).all()


def test_spans_are_counted_by_type():
    task, outputs, units, table, labels = tags()
    found = task.row_scores(outputs, units, table, labels).per_label()
    assert set(found) == {"PER", "LOC"}
    assert all(line["support"] > 0 for line in found.values())

"""Planted faults of a model's labels and worth are found by its answers, and sound models raise no doubt."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from task_helpers import InMemory
from transformers import BertConfig

from raybrew.config.task_kinds import ClassificationConfig, MultilabelConfig, QAConfig, RegressionConfig, TaggingConfig
from raybrew.data.cautions import Caution
from raybrew.data.model_cautions import BetterOrder, OtherScale, WeakAnswers, WeakCorrelation, WeakModel
from raybrew.models.loading import ModelSource
from raybrew.pipeline.model_checks import (
    better_order,
    confirms_order,
    model_cautions,
    renamed_outputs,
    unnamed_outputs,
)
from raybrew.records.cautions import caution_of
from raybrew.tasks.agreement import Agreement, AnswerScores, LabelCounts, NumberFit, agreement_from, agreement_of
from raybrew.tasks.base import Labels, build_task

NAMES = ("a", "b", "c", "d", "e", "f")


def counts_of(true: Any, given: Any, size: int, unit: str = "rows") -> LabelCounts:
    """By a plain loop."""
    cells: dict[tuple[int, int], int] = {}
    for pair in zip(np.asarray(true).tolist(), np.asarray(given).tolist(), strict=True):
        cells[pair] = cells.get(pair, 0) + 1
    totals = [np.bincount(side, minlength=size).tolist() for side in (true, given)]
    return LabelCounts(
        len(true),
        unit,
        False,
        tuple(totals[0]),
        tuple(totals[1]),
        tuple((*pair, cells[pair]) for pair in sorted(cells)),
    )


def answers(size: int, rows: int, accuracy: float, seed: int, share: float | None = None) -> tuple[Any, Any]:
    """Labels, the first with probability `share`, and answers that are right with probability `accuracy`."""
    rng = np.random.default_rng(seed)
    weights = None if share is None else [share, *([(1 - share) / (size - 1)] * (size - 1))]
    true = rng.choice(size, rows, p=weights)
    wrong = (true + rng.integers(1, size, rows)) % size
    return true, np.where(rng.random(rows) < accuracy, true, wrong)


def cautions(agreement: Agreement, size: int = 6, metric: str = "accuracy", **metrics: float) -> list[Caution]:
    found = model_cautions("the teacher", None, agreement, metrics, Labels(NAMES[:size]), metric)
    for each in found:
        again = caution_of(json.loads(json.dumps(each.plain())))
        assert again is not None
        assert again.text() == each.text()
    return found


@pytest.mark.parametrize("size", [2, 3, 6])
@pytest.mark.parametrize("rows", [60, 500, 5000])
def test_permuted_labels_are_found_with_their_order(size: int, rows: int) -> None:
    true, given = answers(size, rows, 0.9, seed=size)
    order = np.roll(np.arange(size), 1)
    # Output j of the model is said to mean label j and means label order[j].
    permuted = np.argsort(order)[given]
    found = better_order(counts_of(true, permuted, size))
    assert found == tuple(order.tolist())
    kinds = {each.kind: each for each in cautions(counts_of(true, permuted, size), size)}
    assert set(kinds) == {"better order", "weak model"}
    better, weak = kinds["better order"], kinds["weak model"]
    assert isinstance(better, BetterOrder)
    assert isinstance(weak, WeakModel)
    assert better.value == pytest.approx((true == permuted).mean())
    assert better.better_value == pytest.approx((true == given).mean())
    assert tuple(better.better) == tuple(NAMES[place] for place in order)
    assert weak.high < 1 / size
    assert weak.baseline == "chance"
    assert not confirms_order(counts_of(true, permuted, size))


def test_two_exchanged_labels_of_many() -> None:
    true, given = answers(6, 600, 0.95, seed=3)
    exchanged = np.array([0, 1, 2, 4, 3, 5])[given]
    found = cautions(counts_of(true, exchanged, 6))
    assert [type(each) for each in found] == [BetterOrder], "accuracy is above the majority, yet the order is wrong"
    assert better_order(counts_of(true, exchanged, 6)) == (0, 1, 2, 4, 3, 5)


@pytest.mark.parametrize("accuracy", [0.65, 0.8, 1.0])
@pytest.mark.parametrize("size", [2, 6])
def test_sound_models_raise_no_doubt(accuracy: float, size: int) -> None:
    for seed in range(20):
        true, given = answers(size, 1000, accuracy, seed)
        counts = counts_of(true, given, size)
        assert not cautions(counts, size)
        assert confirms_order(counts)


def test_models_that_know_nothing_get_no_order() -> None:
    """The best of all orders always gains by chance; a constant answer fits the majority under another name."""
    rng = np.random.default_rng(0)
    for size in (2, 3, 6):
        for rows in (20, 200, 2000):
            for _ in range(30):
                true, given = rng.integers(0, size, rows), rng.integers(0, size, rows)
                assert better_order(counts_of(true, given, size)) is None
            true = np.arange(rows) % size
            true[: rows // 3] = 0
            constant = np.full(rows, size - 1)
            assert better_order(counts_of(true, constant, size)) is None
            assert not confirms_order(counts_of(true, constant, size))


def test_a_biased_model_is_weak_and_not_permuted() -> None:
    true, _ = answers(3, 1000, 1.0, 0, share=0.7)
    given = np.where(np.random.default_rng(1).random(1000) < 0.9, 2, true)
    (found,) = cautions(counts_of(true, given, 3), 3)
    assert isinstance(found, WeakModel)


def test_below_chance_below_majority_and_equal_to_it() -> None:
    def only(true: Any, given: Any, metric: str = "accuracy") -> WeakModel | None:
        found = [each for each in cautions(counts_of(true, given, 3), 3, metric) if isinstance(each, WeakModel)]
        return found[0] if found else None

    true, _ = answers(3, 900, 1.0, 0, share=0.8)
    share = float((true == 0).mean())
    worse = only(*answers(3, 900, 0.5, 1, share=0.8))
    assert worse is not None
    assert (worse.baseline, worse.label) == ("majority", "a")
    assert worse.high < worse.baseline_value
    same = only(true, np.zeros(900, int))
    assert same is not None
    assert same.value == same.baseline_value == pytest.approx(share)
    # A model that finds the rare labels may be right less often, which is no fault where macro-F1 counts.
    rare = np.where((true == 0) & (np.random.default_rng(2).random(900) < 0.3), 1, true)
    assert only(true, rare) is not None
    assert only(true, rare, "macro_f1") is None
    assert only(true, np.random.default_rng(3).permutation(true), "macro_f1") is not None


def units_of(labels: list[Any], **columns: Any) -> InMemory:
    return InMemory(label=labels, **columns)


def one_hot(classes: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.float32]:
    return np.eye(size, dtype=np.float32)[classes]


def test_agreement_of_classes_and_tags() -> None:
    true, given = answers(6, 300, 0.6, 0)
    task = build_task(ClassificationConfig())
    found = agreement_of(task, one_hot(given, 6), units_of(true), None, Labels(NAMES))
    assert found == counts_of(true, given, 6)
    assert (
        agreement_from(json.loads(json.dumps(dataclasses.asdict(found)))).matrix().tolist() == found.matrix().tolist()
    )  # type: ignore[union-attr]
    assert found.matrix().sum() == 300
    parts = [slice(0, 100), slice(100, 101), slice(101, 300)]
    units = units_of([true[part] for part in parts])
    outputs = [one_hot(given[part], 6) for part in parts]
    found = agreement_of(
        build_task(TaggingConfig(scheme="none", metric="accuracy")), outputs, units, None, Labels(NAMES)
    )
    assert found == counts_of(true, given, 6, "words")


def label_sets(rows: int, seed: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    rng = np.random.default_rng(seed)
    true = rng.random((rows, 4)) < [0.5, 0.3, 0.3, 0.2]
    return true, true ^ (rng.random((rows, 4)) < 0.05)


def set_agreement(true: npt.NDArray[np.bool_], given: npt.NDArray[np.bool_]) -> LabelCounts:
    task = build_task(MultilabelConfig())
    units = units_of([np.flatnonzero(row) for row in true])
    found = agreement_of(task, np.where(given, 3.0, -3.0), units, None, Labels(NAMES[:4]))
    assert isinstance(found, LabelCounts)
    metrics = task.metrics(np.where(given, 3.0, -3.0), units, None, Labels(NAMES[:4]))
    right = int(np.trace(found.matrix()))
    assert 2 * right / (sum(found.true) + sum(found.given)) == pytest.approx(metrics["micro_f1"])
    return found


def test_label_sets() -> None:
    true, given = label_sets(400, 0)
    sound = set_agreement(true, given)
    assert not cautions(sound, 4, "micro_f1")
    assert confirms_order(sound)
    order = [2, 0, 3, 1]
    permuted = set_agreement(true, given[:, order])
    assert better_order(permuted) == tuple(order)
    better = next(each for each in cautions(permuted, 4, "micro_f1") if isinstance(each, BetterOrder))
    assert (better.metric, better.better_value) == (
        "micro_f1",
        pytest.approx(2 * (true & given).sum() / (true.sum() + given.sum())),
    )
    rng = np.random.default_rng(1)
    guesses = set_agreement(true, rng.random(true.shape) < 0.3)
    assert [each.kind for each in cautions(guesses, 4, "micro_f1")] == ["weak model"]


def numbers(true: Any, given: Any) -> NumberFit:
    task = build_task(RegressionConfig())
    found = agreement_of(
        task, np.asarray(given)[:, None], units_of(np.asarray(true)), None, Labels(("score",), named=False)
    )
    assert isinstance(found, NumberFit)
    return found


def test_numbers() -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(0, 5, 300)
    sound = true + rng.normal(0, 1, 300)
    assert not cautions(numbers(true, sound), metric="pearson")
    (none,) = cautions(numbers(true, rng.uniform(0, 5, 300)), metric="pearson")
    assert isinstance(none, WeakCorrelation)
    assert none.low < 0 < none.high
    (constant,) = cautions(numbers(true, np.full(300, 2.5)), metric="pearson")
    assert isinstance(constant, WeakCorrelation)
    assert constant.value is None
    against, scale = cautions(numbers(true, 5 - sound), metric="pearson")
    assert isinstance(against, WeakCorrelation)
    assert against.high < 0
    assert isinstance(scale, OtherScale)
    assert scale.slope < 0
    (scale,) = cautions(numbers(true, sound / 5), metric="pearson")
    assert isinstance(scale, OtherScale)
    slope, intercept = np.polyfit(sound / 5, true, 1)
    assert (scale.slope, scale.intercept) == (pytest.approx(slope), pytest.approx(intercept))
    assert scale.fitted_mse == pytest.approx(((slope * sound / 5 + intercept - true) ** 2).mean())
    assert scale.fitted_mse < true.var() < scale.mse
    # Half the spread costs less than the labels' variance, and is another scale all the same.
    (scale,) = cautions(numbers(true, 2.5 + (true - 2.5) / 3), metric="pearson")
    assert isinstance(scale, OtherScale)
    assert (scale.slope, scale.intercept) == (pytest.approx(3), pytest.approx(-5, rel=0.05))
    assert not cautions(numbers(true, 2.5 + (true - 2.5) * 0.8), metric="pearson")


def test_answers() -> None:
    """Contexts of forty words, one answer of two words each; outputs that know it, that have it swapped, that guess."""
    import pyarrow as pa

    rng = np.random.default_rng(0)
    rows, items = 30, 41
    words = [[f"w{row}x{place}" for place in range(items - 1)] for row in range(rows)]
    contexts, spans, scored, outputs = [], [], [], []
    for row in range(rows):
        places, position = [[0, 0]], 0
        for word in words[row]:
            places.append([position, position + len(word)])
            position += len(word) + 1
        first = int(rng.integers(1, items - 5))
        values = rng.normal(0, 0.1, (items, 2)).astype(np.float32)
        values[first, 0] = values[first + 3, 1] = 9.0
        contexts.append(" ".join(words[row]))
        spans.append(np.array(places))
        scored.append([contexts[-1][places[first][0] : places[first + 3][1]]])
        outputs.append(values)
    table = pa.table({"question": ["?"] * rows, "context": contexts, "scored": scored})
    units = InMemory(row=np.arange(rows), start=np.zeros(rows, int), spans=spans)
    task, labels = build_task(QAConfig()), Labels(("start", "end"), named=False)

    def of(values: list[Any]) -> Any:
        return agreement_of(task, values, units, table, labels)

    assert of(outputs) == AnswerScores(1.0, None, None)
    swapped = of([values[:, ::-1] for values in outputs])
    (found,) = cautions(swapped, metric="f1")
    assert isinstance(found, WeakAnswers)
    assert found.swapped == 1.0
    (found,) = cautions(of([np.zeros_like(values) for values in outputs]), metric="f1")
    assert isinstance(found, WeakAnswers)
    assert found.swapped is None


def test_a_language_model_worse_than_guessing(tmp_path: Path) -> None:
    BertConfig(vocab_size=50).save_pretrained(tmp_path)
    source = ModelSource(str(tmp_path))

    def kinds(perplexity: float) -> list[str]:
        metrics = {"perplexity": perplexity}
        return [each.kind for each in model_cautions("it", source, None, metrics, Labels((), False), "perplexity")]

    assert kinds(70.0) == ["weak answers"]
    assert not kinds(20.0)


def test_names_of_outputs(tmp_path: Path) -> None:
    BertConfig(num_labels=2).save_pretrained(tmp_path / "unnamed")
    BertConfig(id2label={0: "a", 1: "b"}).save_pretrained(tmp_path / "named")
    unnamed, named = (ModelSource(str(tmp_path / name)) for name in ("unnamed", "named"))
    labels = Labels(("a", "b"))
    (found,) = unnamed_outputs("the teacher", unnamed, labels)
    assert tuple(found.names) == ("a", "b")  # type: ignore[attr-defined]
    assert [each.serious for each in unnamed_outputs("the teacher", unnamed, labels, confirmed=True)] == [False]
    assert not list(unnamed_outputs("the teacher", named, labels))
    assert not list(unnamed_outputs("the teacher", unnamed, Labels(("score",), named=False)))
    true, given = answers(2, 200, 0.9, 0)
    kinds = [each.kind for each in model_cautions("it", unnamed, counts_of(true, 1 - given, 2), {}, labels, "accuracy")]
    assert kinds == ["better order", "weak model", "unnamed outputs"]
    (found,) = renamed_outputs("the teacher", [["b", "a"], ["a", "b"]], labels)
    assert tuple(found.captured) == ("b", "a")  # type: ignore[attr-defined]
    assert not list(renamed_outputs("the teacher", [], labels))

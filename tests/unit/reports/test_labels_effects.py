"""Labels that lost and keys that make a difference: named only where an interval, and enough rows, say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from raybrew.config.sweep import ParameterConfig
from raybrew.records.runs import load_runs
from raybrew.reports.compare import compare
from raybrew.reports.comparison import Comparison
from raybrew.reports.decision import decide
from raybrew.reports.html import render_report
from raybrew.reports.labels import LEAST_SUPPORT, LabelTable, label_tables, lost_labels
from raybrew.reports.statistics.effects import Configuration, effect_of
from raybrew.reports.statistics.intervals import Sample
from raybrew.sweeps.result import best_values
from raybrew.tasks.scores import mean_scores, save_scores
from unit.reports_helpers import judged_run, make_run

Array = np.ndarray[Any, Any]
LABELS = ("plenty", "rare", "lost")


def wrong(rng: np.random.Generator, truth: Array, share: dict[int, float]) -> list[int]:
    """Answers that miss this share of the rows of each label."""
    missed = rng.random(len(truth)) < np.array([share.get(int(label), 0.1) for label in truth])
    return [int(v) for v in np.where(missed, (truth + 1) % len(LABELS), truth)]


@pytest.fixture
def judged(tmp_path: Path) -> Comparison:
    """900 rows of two labels, 6 of a third; students lose the label `lost` and all 6 rows of `rare`."""
    rng = np.random.default_rng(0)
    truth = np.array([0] * 450 + [2] * 450 + [1] * 6)
    teacher = wrong(rng, truth, {1: 0.0})
    for seed in range(3):
        given = {"eval": wrong(rng, truth, {2: 0.45, 1: 1.0}), "teacher-eval": teacher}
        judged_run(tmp_path, "student", truth.tolist(), given, LABELS, seed=seed)
        judged_run(tmp_path, "control", truth.tolist(), {"eval": wrong(rng, truth, {})}, LABELS, seed=seed)
    return compare(load_runs([tmp_path]))


def only(tables: list[LabelTable]) -> LabelTable:
    (table,) = tables
    return table


def test_labels_are_compared_with_teacher_and_control(judged: Comparison) -> None:
    best = judged.best
    assert best is not None
    table = only(label_tables(best, best.control))
    lines = {line.label: line for line in table.lines}
    assert {label: line.support for label, line in lines.items()} == {"plenty": 450, "lost": 450, "rare": 6}
    assert table.lines[0].label == "lost", "what lost most comes first"
    assert lines["lost"].lost
    assert lines["lost"].teacher is not None
    assert lines["lost"].control is not None
    assert lines["lost"].over_teacher is not None
    gap = lines["lost"].student["f1"] - lines["lost"].teacher["f1"]
    assert lines["lost"].over_teacher.value == pytest.approx(gap)
    assert lines["rare"].support < LEAST_SUPPORT
    assert not lines["rare"].lost, "six rows show no loss"
    assert table.sentence.index("lost (") < table.sentence.index("too few rows to tell: rare (6 rows)")
    assert table.lines[-1].label == "rare", "labels with few rows come last"
    heads, rows = table.cells()
    assert all(len(row) == len(heads) for row in rows)
    assert rows[-1][-2:] == ["too few rows (6)"] * 2


def test_a_label_that_the_student_never_names_is_a_caution(judged: Comparison) -> None:
    best = judged.best
    assert best is not None
    (caution,) = lost_labels(best, best.control)
    assert "rare (6 rows): student F1 0.0, labels only" in caution
    assert "few rows, check before shipping" in caution
    assert "plenty" not in caution
    assert decide(judged).cautions[0] == caution


def test_the_page_shows_labels_only_where_they_are_known(judged: Comparison, tmp_path: Path) -> None:
    page = render_report([run for row in judged.rows for run in row.runs])
    assert "<h2>Labels</h2>" in page
    assert "teacher P / R / F1 %" in page
    make_run(tmp_path / "old", accuracy=0.9)
    assert "<h2>Labels</h2>" not in render_report(load_runs([tmp_path / "old"]))


def test_no_label_lost_is_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    truth = np.array([0, 1, 2] * 100)
    judged_run(
        tmp_path, "student", truth.tolist(), {name: wrong(rng, truth, {}) for name in ("eval", "teacher-eval")}, LABELS
    )
    table = only(label_tables(compare(load_runs([tmp_path])).best, None))
    assert not any(line.lost for line in table.lines)
    assert table.sentence.startswith("No label is shown to have lost")


def configurations(qualities: dict[tuple[Any, ...], float], names: tuple[str, ...]) -> list[Configuration]:
    return [
        Configuration(dict(zip(names, values, strict=True)), Sample((quality,), 872))
        for values, quality in qualities.items()
    ]


GRID = {(t, w): 0.80 + 0.03 * (t == 8) + 0.01 * w + 0.001 * ((t + w) % 3) for t in (1, 8) for w in (0, 1, 2, 3)}
CHOICE = ParameterConfig.model_validate([1, 8])


def test_an_effect_compares_twins_that_agree_in_all_other_keys() -> None:
    found = effect_of(configurations(GRID, ("a", "b")), "a", CHOICE)
    assert found is not None
    assert (found.high, found.low, found.num_configurations) == ("8", "1", 8)
    gaps = [GRID[8, w] - GRID[1, w] for w in range(4)]
    half = stats.t.ppf(0.975, 3) * np.std(gaps, ddof=1) / 2
    assert found.interval.value == pytest.approx(np.mean(gaps))
    assert found.interval.half == pytest.approx(half)
    assert found.shown
    assert "adds" in found.sentence("accuracy")
    among = effect_of(configurations(GRID, ("a", "b")), "a", CHOICE, keys=5)
    assert among is not None
    assert among.interval.half is not None
    assert among.interval.half > half, "five keys were asked"


def test_without_an_effect_none_is_claimed() -> None:
    rng = np.random.default_rng(0)
    noise = {(t, w): 0.8 + 0.01 * rng.normal() for t in (1, 8) for w in range(4)}
    found = effect_of(configurations(noise, ("a", "b")), "a", CHOICE)
    assert found is not None
    assert not found.shown
    assert found.sentence("accuracy").startswith("No effect could be shown")
    two = effect_of(configurations({(1, 0): 0.8, (8, 0): 0.9}, ("a", "b")), "a", CHOICE)
    assert two is not None
    assert two.interval.low is None, "two configurations tell no spread"
    assert effect_of(configurations({(1, 0): 0.8}, ("a", "b")), "a", CHOICE) is None


def test_effects_of_chance_are_rare() -> None:
    """Of 400 sweeps in which a key does nothing, about 5 % claim an effect."""
    rng, claimed = np.random.default_rng(3), 0
    parameter = ParameterConfig.model_validate([1, 2, 4])
    for _ in range(400):
        noise = {(t, w): 0.8 + 0.01 * rng.normal() for t in (1, 2, 4) for w in range(5)}
        found = effect_of(configurations(noise, ("a", "b")), "a", parameter)
        assert found is not None
        claimed += found.shown
    assert claimed / 400 <= 0.08


def test_a_key_with_a_range_is_a_straight_line() -> None:
    rng = np.random.default_rng(0)
    rates = np.geomspace(1e-5, 1e-3, 12)
    values = {(float(rate),): 0.8 + 0.02 * np.log10(rate / 1e-5) + 0.002 * rng.normal() for rate in rates}
    parameter = ParameterConfig.model_validate({"loguniform": [1e-5, 1e-3]})
    found = effect_of(configurations(values, ("train.learning_rate",)), "train.learning_rate", parameter)
    assert found is not None
    line = stats.linregress(np.log(rates), list(values.values()))
    assert found.interval.value == pytest.approx(line.slope * np.log(100))
    half = stats.t.ppf(0.975, 10) * line.stderr * np.log(100)
    assert found.interval.half == pytest.approx(half)
    assert found.shown
    assert (found.high, found.low) == ("0.001", "1e-05")


def test_several_tasks_are_resampled_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tasks = {name: {"task": {"kind": "classification", "metric": "accuracy"}} for name in ("a", "b")}
    right = {name: (rng.random(200) < 0.8).astype(float) for name in tasks}
    values = {f"{name}.accuracy": float(each.mean()) for name, each in right.items()}
    mean = sum(values.values()) / 2
    best = {"step": 1, "epoch": 1.0, "metric": "mean", "value": mean, "metrics": {"mean": mean, **values}}
    changes = {"task": {"kind": "multi", "metric": "mean", "tasks": tasks}}
    folder = make_run(tmp_path, changes=changes, summary={"best": best})
    for name, each in right.items():
        save_scores(folder / "scores" / name / "eval.npz", mean_scores("means", {"accuracy": each}, key=name))
    (row,) = [row for row in compare(load_runs([tmp_path])).rows if row.role == "student"]
    found = row.intervals["eval"]
    assert found is not None
    assert found.basis == "rows"
    assert found.rows == 400
    error = np.sqrt(sum(each.var() / 200 for each in right.values())) / 2
    assert found.half == pytest.approx(stats.t.ppf(0.975, 399) * error, rel=0.08)


def test_wandb_values_begin_with_the_rows_that_chose_nothing(tmp_path: Path) -> None:
    test = {"metric": "accuracy", "value": 0.87, "metrics": {"accuracy": 0.87}, "rows": 4000, "source": "t"}
    make_run(tmp_path, accuracy=0.9, summary={"test": test})
    make_run(tmp_path, "control", accuracy=0.88)
    best = compare(load_runs([tmp_path])).best
    assert best is not None
    values = best_values(best)
    assert next(iter(values)) == "test/accuracy"
    assert values["test/accuracy_low"] < 0.87 < values["test/accuracy_high"]
    assert values["best/accuracy"] == 0.9
    assert values["over_control"] == pytest.approx(0.02)
    json.dumps(values)

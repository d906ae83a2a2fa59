"""What reports say of times: only what was measured in one round, under the same conditions, is compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from raybrew.records.runs import load_runs
from raybrew.records.summary import RunSummary
from raybrew.records.timing import relative_latency
from raybrew.reports.compare import compare
from raybrew.reports.comparison import Comparison
from raybrew.reports.decision import Tile, decide
from raybrew.reports.figures.runs import cost_of_row
from raybrew.reports.numbers import kept_share
from raybrew.reports.rows import Row
from unit.reports_helpers import CONDITIONS, make_run

SHAPE = {"architecture": "BertForSequenceClassification", "layers": 4, "hidden": 312}
CPU = {"device": "cpu (AMD EPYC 7763)", "precision": "fp32", "threads": 1}


def comparison(path: Path) -> Comparison:
    return compare(load_runs([path]))


def by_role(found: Comparison) -> dict[str, Row]:
    return {row.role: row for row in found.rows}


def tiles(found: Comparison) -> dict[str, Tile]:
    return {tile.label: tile for tile in decide(found).tiles}


def test_equal_models_in_one_round_are_equally_fast(tmp_path: Path) -> None:
    make_run(tmp_path, latency=(2.0, 0.4), teacher_latency=(2.0, 0.4))
    found = comparison(tmp_path)
    assert by_role(found)["student"].faster == {"batch_1": 1.0, "batch_32": 1.0}
    assert "faster" not in decide(found).detail


def test_a_teacher_timed_in_another_round_gives_no_ratio(tmp_path: Path) -> None:
    """Even on equal hardware: other load, another clock."""
    make_run(tmp_path, "teacher", accuracy=0.95, latency=(6.05, 0.95))
    make_run(tmp_path, accuracy=0.9)
    found = comparison(tmp_path)
    assert by_role(found)["student"].faster == {}
    assert by_role(found)["teacher"].latency_ms["batch_1"].mean == 6.05
    assert "faster" not in tiles(found)
    assert "not timed in the same round" in tiles(found)["per example"].note


def test_runs_of_older_versions_show_their_time_but_no_ratio(tmp_path: Path) -> None:
    """Their teacher was timed by another process, perhaps on another device."""
    folder = make_run(tmp_path, latency=(1.0, 0.05))
    summary = json.loads((folder / "summary.json").read_text())
    del summary["latency"]
    summary["teacher"]["latency_ms"] = {"batch_1": 40.0, "batch_32": 20.0}
    (folder / "summary.json").write_text(json.dumps(summary))
    found = comparison(tmp_path)
    assert by_role(found)["student"].latency_ms["batch_1"].mean == 1.0
    assert by_role(found)["student"].faster == {}
    assert by_role(found)["teacher"].latency_ms == {}
    assert "8 x AMD EPYC 7763" in tiles(found)["per example"].note


def test_the_teacher_has_one_time_in_a_report(tmp_path: Path) -> None:
    """Not the one that it had after its own training, hours before."""
    make_run(tmp_path, "teacher", accuracy=0.95, latency=(63.7, 9.5))
    together = {"conditions": {"round": "shared"}, "teacher_latency": (6.0, 0.9)}
    make_run(tmp_path, accuracy=0.9, latency=(2.0, 0.3), **together)
    make_run(tmp_path, "control", accuracy=0.88, latency=(2.0, 0.3), **together)
    small = {"description": "BERT 2x128", "parameters": 4_386_000}
    make_run(
        tmp_path, accuracy=0.8, latency=(1.0, 0.1), changes={"student": {"shape": "T2"}}, student=small, **together
    )
    found = comparison(tmp_path)
    teacher = by_role(found)["teacher"]
    assert teacher.latency_ms["batch_1"].values == (6.0,)
    assert sorted(row.faster["batch_1"] for row in found.rows if row.role == "student") == [3.0, 6.0]
    assert tiles(found)["faster"].note.startswith("2.00 ms instead of 6.00 per example")


def test_the_teachers_time_of_some_rounds_is_not_told_beside_that_of_all(tmp_path: Path) -> None:
    make_run(tmp_path, accuracy=0.9, latency=(2.0, 0.3), teacher_latency=(6.0, 0.9))
    small = {"description": "BERT 2x128", "parameters": 4_386_000}
    changes = {"student": {"shape": "T2"}}
    make_run(tmp_path, accuracy=0.8, latency=(1.5, 0.1), teacher_latency=(9.0, 2.0), changes=changes, student=small)
    found = comparison(tmp_path)
    assert by_role(found)["teacher"].latency_ms["batch_1"].mean == 7.5
    assert sorted(row.faster["batch_1"] for row in found.rows if row.role == "student") == [3.0, 6.0]
    assert "instead of" not in tiles(found)["faster"].note


def test_time_is_that_of_the_architecture_not_of_one_measurement(tmp_path: Path) -> None:
    make_run(tmp_path, "student", latency=(2.0, 0.4), teacher_latency=(6.0, 1.2), student=SHAPE)
    make_run(tmp_path, "control", latency=(1.0, 0.2), teacher_latency=(4.0, 1.0), student=SHAPE)
    rows = by_role(comparison(tmp_path))
    assert rows["student"].latency_ms == rows["control"].latency_ms
    assert sorted(rows["student"].latency_ms["batch_1"].values) == [1.0, 2.0]
    assert rows["student"].faster["batch_1"] == pytest.approx(10 / 3)
    assert rows["teacher"].latency_ms["batch_1"].mean == 5.0


@pytest.mark.parametrize(
    "other",
    [CPU, {"machine": "another"}, {"precision": "fp32"}, {"threads": 1}, {"tokens": 128}, {"alone": False}],
    ids=lambda other: next(iter(other)),
)
def test_one_architecture_under_other_conditions_is_another_time(tmp_path: Path, other: dict[str, Any]) -> None:
    seeds = {"latency": (2.0, 0.4), "teacher_latency": (6.0, 1.2), "student": SHAPE}
    make_run(tmp_path, seed=0, **seeds)
    make_run(tmp_path, seed=1, **seeds)
    slow = {"latency": (40.0, 8.0), "teacher_latency": (80.0, 16.0), "student": SHAPE}
    make_run(tmp_path, "control", conditions=other, **slow)
    found = comparison(tmp_path)
    rows = by_role(found)
    assert rows["student"].latency_ms["batch_1"].mean == 2.0
    assert rows["student"].faster["batch_1"] == pytest.approx(3.0)
    assert rows["control"].faster["batch_1"] == pytest.approx(2.0)
    assert rows["teacher"].latency_ms["batch_1"].mean == 6.0
    assert [row.timed_alike for row in (rows["student"], rows["control"], rows["teacher"])] == [True, False, True]
    assert cost_of_row(rows["control"], "batch_1") is None, "no point of the same figure"
    assert any("do not compare them" in note for note in found.notes)


def test_seeds_timed_under_different_conditions_have_no_common_mean(tmp_path: Path) -> None:
    make_run(tmp_path, seed=0, latency=(1.0, 0.05), teacher_latency=(3.0, 0.1))
    make_run(tmp_path, seed=1, latency=(40.0, 20.0), teacher_latency=(200.0, 70.0), conditions=CPU)
    row = by_role(comparison(tmp_path))["student"]
    assert row.seeds == (0, 1)
    assert row.latency_ms["batch_1"].values == (1.0,)
    assert row.faster["batch_1"] == pytest.approx(3.0)


def test_conditions_are_told(tmp_path: Path) -> None:
    make_run(tmp_path, teacher_latency=(6.0, 1.0), conditions=CPU)
    assert "cpu (AMD EPYC 7763), 1 thread, 24 tokens" in tiles(comparison(tmp_path))["faster"].note


def test_the_latency_objective_is_relative_to_the_teacher_of_the_same_round() -> None:
    latency = {**CONDITIONS, "student": {"batch_1": 2.0}, "teacher": {"batch_1": 8.0}}
    teacher = {"model": "hub/teacher"}
    assert relative_latency(RunSummary.read({"latency": latency, "teacher": teacher})) == 0.25
    assert relative_latency(RunSummary.read({"latency": {**latency, "teacher": None}, "teacher": teacher})) is None
    assert relative_latency(RunSummary.read({"latency": {**latency, "teacher": None}, "teacher": None})) == 2.0
    assert relative_latency(RunSummary.read({"latency_ms": {"batch_1": 2.0}, "teacher": teacher})) is None


@pytest.mark.parametrize(
    ("student", "teacher", "kept"),
    [(0.9, 0.96, 0.9375), (0.61, 0.03, None), (0.5, -0.02, None), (-0.1, 0.5, None), (None, 0.9, None)],
)
def test_nothing_is_kept_of_a_teacher_near_zero(student: float | None, teacher: float, kept: float | None) -> None:
    found = kept_share(student, teacher)
    assert found == (None if kept is None else pytest.approx(kept))


def test_a_decision_says_why_no_share_of_the_teacher_is_shown(tmp_path: Path) -> None:
    make_run(tmp_path, accuracy=0.61, teacher_accuracy=0.03)
    found = comparison(tmp_path)
    tile = tiles(found)["% of teacher"]
    assert tile.missing
    assert "3.0" in tile.note
    assert "beats" not in decide(found).headline

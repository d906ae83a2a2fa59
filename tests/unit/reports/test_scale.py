"""What a table of thousands of runs reads and compares: each run once, and no more of it than the table shows."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from raybrew.config.controls import is_searched
from raybrew.records import details
from raybrew.records.runs import load_runs
from raybrew.reports import relations
from raybrew.reports.compare import compare
from raybrew.reports.statistics import evidence
from raybrew.reports.tables import comparison_table
from unit.reports_helpers import judged_run, make_run

RATES = (1e-5, 3e-5, 1e-4, 3e-4)


def test_curves_and_configurations_of_finished_runs_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, rate in enumerate(RATES):
        make_run(tmp_path, changes={"train": {"learning_rate": rate}}, accuracy=0.9 + place / 100)
        make_run(tmp_path, "control", changes={"train": {"learning_rate": rate}}, accuracy=0.8)
    read: list[str] = []
    monkeypatch.setattr(details, "_parse_config", lambda text, problems: read.append("config") or {})
    monkeypatch.setattr(details, "read_metrics", lambda path: read.append("metrics") or [])
    comparison = compare(load_runs([tmp_path]))
    comparison_table(comparison, 140, plain=True)
    assert len(comparison.rows) >= 2 * len(RATES)
    assert read == []


def test_students_of_a_kind_are_compared_with_controls_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of each is the one that comparing all pairs finds."""
    epochs = (1, 2, 3)
    for place, (rate, epoch) in enumerate(itertools.product(RATES, epochs)):
        train = {"learning_rate": rate, "epochs": epoch}
        make_run(tmp_path, changes={"train": train}, accuracy=0.9 + place / 1000)
        make_run(tmp_path, "control", changes={"train": train}, accuracy=0.8 + (7 * place % 12) / 1000)
    compared: list[int] = []
    differences = relations._differences
    monkeypatch.setattr(relations, "_differences", lambda row, other: compared.append(1) or differences(row, other))
    rows = compare(load_runs([tmp_path])).rows
    students = [row for row in rows if row.role == "student"]
    found = [row for row in rows if row.role == "control"]
    assert len(students) == len(found) == len(RATES) * len(epochs)
    # Once for each pair of kinds, and once for each student's gain.
    assert len(compared) == len(epochs) ** 2 + len(students)
    for row in students:
        best = min(
            found, key=lambda other: (sum(not is_searched(key) for key in differences(row, other)), -other.score)
        )
        assert row.control is not None
        assert row.control.runs == best.runs


def test_scores_of_rows_that_are_not_shown_stay_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = [0, 1] * 20
    for place in range(6):
        answers = [1 - answer for answer in truth[:place]] + truth[place:]
        changes = {"train": {"learning_rate": 1e-5 * (place + 1)}}
        judged_run(tmp_path, "student", truth, {"eval": answers}, changes=changes)
    read: list[str] = []
    resampled = evidence._resampled_of
    monkeypatch.setattr(
        evidence, "_resampled_of", lambda run, name: read.append(f"{run.run_id} {name}") or resampled(run, name)
    )
    comparison = compare(load_runs([tmp_path]))
    shown = comparison.first(2)
    comparison_table(shown, 140, plain=True)
    assert shown.left_out == len(comparison.rows) - len(shown.rows) > 0
    ids = {run.run_id for row in shown.rows for run in [*row.runs, *([row.told_by] if row.told_by else [])]}
    assert read
    assert {each.split()[0] for each in read} <= ids

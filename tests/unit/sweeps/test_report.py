"""What is read back from a finished sweep: one rule for the best, tables that equal the runs' own files, the page."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from raybrew.errors import RunError
from raybrew.records.runs import find_runs
from raybrew.records.sweeps import CANDIDATE, SweepRecord, TeacherRows, find_sweeps, load_sweep
from raybrew.reports import sweep_page
from raybrew.reports.decision import decide
from raybrew.reports.figures.sweeps import configurations_in, importances
from raybrew.reports.sweep_tables import best_run, leaderboard, rule_of, trial_rows
from raybrew.reports.tables import table_text
from raybrew.sweeps.jobs import Job
from raybrew.sweeps.result import Sweep
from raybrew.verbs.report import report
from unit.sweep_helpers import base, conductor_of, drive

SHAPES = [{"layers": 2, "hidden": 312}, {"layers": 4, "hidden": 312}]
SWEEP: dict[str, Any] = {
    "space": {
        "distill.temperature": [1, 4, 8],
        "distill.matches": [[], [{"loss": "hidden_mse"}]],
        "student.shape": SHAPES,
    },
    "search": "grid",
    "seeds": 2,
}


def by_values(job: Job) -> float:
    distill = job.experiment.distill
    layers = job.experiment.student.model_dump()["shape"]["layers"]
    bonus = 0.003 * distill.temperature + 0.02 * len(distill.matches) if job.role == CANDIDATE else 0.0
    return round(0.8 + 0.01 * layers + bonus + 0.001 * job.seed, 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    conductor = conductor_of(base(tmp_path_factory.mktemp("sweep"), SWEEP))
    drive(conductor, by_values)
    conductor.ledger.write("teacher", teacher="hub/teacher", rows=3200, computed=3200, signals=["logits"], seconds=3.0)
    conductor.ledger.write("close", reason="finished")
    return conductor.ledger.folder


@pytest.fixture(scope="module")
def record(folder: Path) -> SweepRecord:
    return load_sweep(folder)


def test_the_leaderboard_equals_what_the_runs_say(record: SweepRecord) -> None:
    rows = [row for row in leaderboard(record).rows if row.runs]
    assert len(rows) == 12 + 2
    for row in rows:
        summaries = [json.loads((run.folder / "summary.json").read_text()) for run in row.runs]
        assert len(summaries) == 2
        values = [summary["best"]["value"] for summary in summaries]
        assert row.quality is not None
        assert row.quality.mean == pytest.approx(statistics.fmean(values))
        assert row.quality.sd == pytest.approx(statistics.stdev(values))
        assert row.parameters == summaries[0]["student"]["parameters"]
    for trial in trial_rows(record):
        summary = json.loads((record.folder.parent / trial["run"] / "summary.json").read_text())
        assert (trial["value"], trial["seed"]) == (summary["best"]["value"], summary["seed"])
        assert trial["ms_batch_1"] == summary["latency_ms"]["batch_1"]


def test_gains_are_over_the_control_of_the_same_shape(record: SweepRecord) -> None:
    for row in leaderboard(record).rows:
        if row.role != "student":
            continue
        distill = row.runs[0].config["distill"]
        assert row.gain is not None
        assert row.gain.paired
        assert row.gain.mean == pytest.approx(0.003 * distill["temperature"] + 0.02 * len(distill["matches"]))
        assert row.gain.sd == pytest.approx(0.0, abs=1e-9)


def test_the_best_is_the_highest_mean_and_ties_go_to_fewer_parameters(tmp_path: Path) -> None:
    sweep = {"space": {"student.shape": [SHAPES[1], SHAPES[0]]}, "search": "grid"}
    conductor = conductor_of(base(tmp_path, sweep))
    drive(conductor, lambda job: 0.9 if job.role == CANDIDATE else 0.95)
    best = leaderboard(load_sweep(conductor.ledger.folder)).best
    assert best is not None
    assert (best.parameters, best.role) == (2000, "student"), "a control is no find of the search"
    assert best_run(load_sweep(conductor.ledger.folder)) == best.runs[0].folder.name


def test_one_lucky_seed_does_not_beat_those_that_were_run_again(tmp_path: Path) -> None:
    sweep = {
        "space": {"distill.temperature": [1, 4]},
        "search": "grid",
        "controls": False,
        "rerun_best": {"count": 1, "seeds": 3},
    }
    conductor = conductor_of(base(tmp_path, sweep))

    def luck(job: Job) -> float:
        if job.experiment.distill.temperature == 1:
            return 0.88
        return 0.9 if job.seed == 0 else 0.8

    drive(conductor, luck)
    record = load_sweep(conductor.ledger.folder)
    best = leaderboard(record).best
    assert best is not None
    assert best.runs[0].config["distill"]["temperature"] == 4
    assert best.seeds == (1, 2), "the seed that chose it does not count"
    assert best.quality is not None
    assert best.quality.mean == pytest.approx(0.8)
    assert "Left out of the means" in leaderboard(record).notes[-1]
    assert "temperature=4 90.00 (seed 0)" in leaderboard(record).notes[-1]


def test_the_rule_stands_in_every_table(record: SweepRecord, folder: Path) -> None:
    from raybrew.reports.tables import caption_lines

    rule = rule_of("accuracy", finalists=False)
    assert rule != rule_of("accuracy", finalists=True)
    assert rule in caption_lines(leaderboard(record))
    assert rule == Sweep.load(folder).rule


def test_the_shipped_seed_is_told_beside_the_mean(record: SweepRecord, folder: Path, tmp_path: Path) -> None:
    board = leaderboard(record)
    assert board.best is not None
    assert board.best.quality is not None
    assert board.shipped is not None
    assert (board.shipped.run_id, board.shipped.seed) == (best_run(record), 1)
    which = decide(board).answers[0].text
    assert "Shipped: seed 1, accuracy 88.5 % on data.eval" in which
    assert f"the mean of 2 seeds on data.eval is {100 * board.best.quality.mean:.1f}" in which
    page = report([folder], tmp_path / "r.html").read_text()
    assert page.count('<span class="badge done">shipped</span>') == 1
    assert rule_of("accuracy", finalists=False) not in decide(board).cautions, "a rule is not a caution"


def test_signals_of_layers_are_told_by_kind(record: SweepRecord) -> None:
    signals = ["logits", "hidden.00", "hidden.04", "module.encoder.x"]
    told = sweep_page._signals(dataclasses.replace(record, teachers=(TeacherRows.read({"signals": signals}),) * 2))
    assert told == "logits, hidden of layers 0, 4, module.encoder.x"


def test_rows_begin_with_the_teacher_then_the_chosen_and_end_with_controls(record: SweepRecord) -> None:
    board = leaderboard(record)
    roles = [row.role for row in board.rows]
    assert roles == ["teacher", *["student"] * 12, *["control"] * 2]
    assert board.rows[1] is board.best
    values = [row.leading.mean for row in board.rows[1:13] if row.leading is not None]
    assert values == sorted(values, reverse=True)
    assert table_text(board, 160).split("\n\n")[0].count(" chosen") == 1


def test_equal_means_go_to_the_configuration_tried_first(tmp_path: Path) -> None:
    sweep = {"space": {"distill.temperature": [4, 1, 8]}, "search": "grid", "seeds": 3}
    conductor = conductor_of(base(tmp_path, sweep))
    values = {4.0: (0.1, 0.2, 0.3), 1.0: (0.3, 0.1, 0.2), 8.0: (0.15, 0.1, 0.2)}
    drive(conductor, lambda job: values[job.experiment.distill.temperature][job.seed] if job.role == CANDIDATE else 0.1)
    board = leaderboard(load_sweep(conductor.ledger.folder))
    assert board.best is not None
    assert board.best.runs[0].config["distill"]["temperature"] == 4
    which = decide(board).answers[0].text
    assert "2 share the highest mean there, and this one was tried first" in which
    assert "Not shown to be better than temperature=1" in which
    text = table_text(board, 160)
    assert "equal in all students:" in text, "facts in which all agree stand below the table"
    assert "params" not in text.split("\n\n")[0]


def test_importance_finds_what_matters_and_says_from_how_many(record: SweepRecord) -> None:
    shares, count = importances(record, configurations_in(record))
    assert count == 12
    assert set(shares) == set(SWEEP["space"])
    assert max(shares, key=lambda key: shares[key]) in ("distill.temperature", "distill.matches", "student.shape")
    assert shares["student.shape"] > 0.05


def test_sweep_load_needs_stored_results_only(folder: Path, tmp_path: Path) -> None:
    sweep = Sweep.load(folder)
    frame = sweep.dataframe()
    assert len(frame) == 24 + 4
    assert set(frame["status"]) == {"done"}
    assert list(frame["distill.matches"].dropna().unique()) == ["none", "hidden_mse"]
    best = sweep.best()
    assert best.values == {
        "distill.temperature": 8,
        "distill.matches": [{"loss": "hidden_mse"}],
        "student.shape": SHAPES[1],
    }
    assert best.value == pytest.approx(0.8 + 0.04 + 0.024 + 0.02 + 0.0005)
    assert best.gain == pytest.approx(0.044)
    front = sweep.pareto("parameters")
    assert list(front["parameters"]) == [2000, 4000]
    assert {
        "effect-distill-temperature",
        "effect-distill-matches",
        "importance",
        "parallel",
        "pareto-parameters",
    } <= set(sweep.plots())
    assert sweep.cost()["teacher_rows"] == 3200
    assert sweep.cost()["overhead"] == pytest.approx(0.5)
    assert "runs compared" in sweep._repr_html_()
    assert Sweep.load(folder.parent).path == folder.resolve()
    with pytest.raises(RunError, match="found none"):
        Sweep.load(tmp_path)


def test_reports_take_sweeps_runs_and_both(folder: Path, tmp_path: Path) -> None:
    assert find_sweeps([folder.parent.parent]) == [folder.resolve()]
    assert len(find_runs([folder])) == 28
    page = report([folder], tmp_path / "r.html")
    text = page.read_text()
    for part in ("Sweep sweep-x", "Effect of temperature", "Effect of each match set", "Parallel coordinates", "n = 12",
                 "3,200 rows read once for all trials", "raybrew sweep e.yaml", "Best: the highest accuracy",
                 "Quality against parameters"):  # fmt: skip
        assert part in text, part
    assert text.index("Chosen student") < text.index("Comparison") < text.index("Search") < text.index("Trials</h2>")
    assert text.count("plotly.js v") <= 2, "plotly stands in the page once"
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert not re.search(r"(src|href)=\"https?:", own)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "r.trials.csv").read_text())))
    assert len(rows) == 28
    assert len(json.loads((tmp_path / "r.trials.json").read_text())) == 28
    assert len(json.loads((tmp_path / "r.json").read_text())) == 15, "12 configurations, 2 controls, the teacher"
    both = report([folder, next(folder.parent.glob("distill-*"))], tmp_path / "both.html").read_text()
    assert "Sweep sweep-x" in both


def test_values_and_errors_of_users_are_escaped(tmp_path: Path) -> None:
    nasty = "<img src=x onerror=alert(1)>"
    sweep = {"space": {"teacher.revision": [nasty, "b"]}, "search": "grid", "controls": False}
    conductor = conductor_of(base(tmp_path, sweep))
    drive(conductor, lambda job: f"RunError: {nasty}" if job.experiment.teacher.revision == "b" else 0.8)
    page = report([conductor.ledger.folder], tmp_path / "r.html").read_text()
    assert nasty not in page
    assert "&lt;img src=x" in page


def test_a_sweep_that_was_killed_still_reports(tmp_path: Path) -> None:
    conductor = conductor_of(base(tmp_path, SWEEP))
    count = iter(range(100))
    drive(conductor, lambda job: None if next(count) == 5 else by_values(job))
    record = load_sweep(conductor.ledger.folder)
    assert record.closed is None
    page = report([conductor.ledger.folder], tmp_path / "r.html").read_text()
    assert "running or interrupted" in page

"""What a sweep's driver does for one trial does not grow with their number: operations are counted, not timed."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raybrew.records.runs import RunRecord
from raybrew.records.sweeps import CANDIDATE, CONTROL, SweepRecord, TrialRecord, load_sweep
from raybrew.records.trial_index import Trials
from raybrew.reports.comparison import Comparison
from raybrew.reports.figures.runs import all_plots, pareto, pareto_front
from raybrew.reports.figures.sweeps import sweep_plots
from raybrew.reports.html import render_report
from raybrew.reports.sweep_page import sweep_section
from raybrew.reports.sweep_tables import leaderboard
from raybrew.sweeps.conductor import Conductor
from raybrew.sweeps.jobs import Job
from raybrew.sweeps.progress import live_table, news
from unit.sweep_helpers import base, conductor_of, drive

SPACE = {
    "distill.temperature": {"uniform": [1, 20]},
    # Each student has a control of its own, the worst case.
    "student.shape": {"choice": [{"layers": 2, "hidden": 8 * width} for width in range(2, 400)]},
}
SWEEP = {"space": SPACE, "budget": {"gpu_hours": 1e6, "money": 1e6, "price_per_hour": 1}, "resources": {"gpus": 1}}


def calls_of(work: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """Calls of functions of sweeps and reports while `work` runs, and trials that are looked at one after another.

    What makes an experiment of a trial's values is left out: it is much, and the same for each.
    """
    package = Path(sys.modules["raybrew"].__file__ or "").parent
    counted_files = tuple(str(package / room) for room in ("sweeps", "records", "reports"))
    count = 0

    def hear(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(counted_files)

    def counted(name: str) -> Callable[[Trials], Iterator[Any]]:
        original = getattr(dict, name)

        def passed(self: Trials) -> Iterator[Any]:
            nonlocal count
            count += len(self)
            return iter(list(original(self)))

        return passed

    with monkeypatch.context() as patch:
        for name in ("values", "items", "__iter__"):
            patch.setattr(Trials, name, counted(name), raising=False)
        sys.setprofile(hear)
        try:
            work()
        finally:
            sys.setprofile(None)
    return count


def by_run(job: Job) -> float:
    return 0.5 + int(job.run[-6:], 16) / 2**25


def run_sweep(folder: Path, trials: int, told: dict[str, str]) -> Conductor:
    conductor = conductor_of(base(folder, {**SWEEP, "trials": trials}))

    def outcome(job: Job) -> float:
        news(conductor, told)
        return by_run(job)

    assert len(drive(conductor, outcome)) >= 1.5 * trials, "nearly each configuration has its control"
    return conductor


def test_work_for_a_trial_does_not_grow_with_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: dict[str, list[int]] = {"running": [], "taking up again": [], "ranking": []}
    tables: list[int] = []
    for trials in (10, 40):
        folder = tmp_path / str(trials)
        told: dict[str, str] = {}
        found: list[Conductor] = []
        counts["running"].append(
            calls_of(lambda: found.append(run_sweep(folder, trials, told)), monkeypatch)  # noqa: B023
        )
        (conductor,) = found
        counts["ranking"].append(calls_of(conductor.ranking, monkeypatch))
        tables.append(calls_of(lambda: live_table(conductor, 4), monkeypatch))  # noqa: B023
        experiment = conductor.base
        counts["taking up again"].append(calls_of(lambda: conductor_of(experiment).over(), monkeypatch))  # noqa: B023
    for name, (few, many) in counts.items():
        assert few > 50, name
        assert many / few < 4.2, (name, few, many)
    assert tables[0] > 20
    assert tables[1] < 1.1 * tables[0], "a table shows as many trials of a large sweep as of a small one"


def test_a_report_does_for_a_trial_what_it_does_for_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Optuna's fANOVA counts no function of ours and takes long over hundreds of widths.
    monkeypatch.setattr("raybrew.reports.figures.sweeps.importances", lambda *given: ({}, 0))
    counts: dict[str, list[int]] = {}
    for trials in (8, 32):
        folder = run_sweep(tmp_path / str(trials), trials, {}).ledger.folder
        record = load_sweep(folder)
        runs = record.runs()
        board = leaderboard(record, runs)
        assert len(board.rows) >= 1.5 * trials

        def section(board: Comparison = board, record: SweepRecord = record, runs: list[RunRecord] = runs) -> None:
            sweep_section(record, board, runs)

        for name, work in {
            "comparing": lambda record=record, runs=runs: leaderboard(record, runs),
            "figures": lambda board=board, record=record: [*all_plots(board, True), *sweep_plots(record, board)],
            "trials": section,
            "page": lambda record=record, runs=runs: render_report(runs, sweeps=[record]),
        }.items():
            counts.setdefault(name, []).append(calls_of(work, monkeypatch))
    for name, (few, many) in counts.items():
        assert few > 50, name
        assert many / few < 4.3, (name, few, many)


def test_a_page_shows_the_details_of_the_best_runs_and_says_so(tmp_path: Path) -> None:
    record = load_sweep(run_sweep(tmp_path, 10, {}).ledger.folder)
    runs = record.runs()
    page = render_report(runs, sweeps=[record], most_runs=3)
    shown = re.findall(r'<summary><span class="name">([^<]+)</span>', page)
    assert shown == [run.run_id for row in leaderboard(record, runs).rows for run in row.runs][:3]
    assert f"The details of {len(runs) - 3} further runs" in page


def test_importance_is_of_a_sample_of_many_configurations_and_says_so(tmp_path: Path) -> None:
    space = {"distill.temperature": {"uniform": [1, 20]}, "train.learning_rate": {"loguniform": [1e-5, 1e-3]}}
    experiment = base(tmp_path, {"space": space, "trials": 12, "controls": False})
    conductor = conductor_of(experiment)
    drive(conductor, by_run)
    record = load_sweep(conductor.ledger.folder)
    whole = {plot.name: plot.caption for plot in sweep_plots(record, leaderboard(record))}
    assert "over n = 12 configurations" in whole["importance"]
    part = {plot.name: plot for plot in sweep_plots(record, leaderboard(record), most_lines=5, for_importance=8)}
    assert "over n = 8 of 12 configurations" in part["importance"].caption
    assert part["parallel"].caption == "5 of 12 configurations, from the worst to the best."
    assert len(part["parallel"].figure.data) == 5


@pytest.mark.parametrize("seed", range(5))
def test_the_front_is_what_no_other_point_dominates(seed: int) -> None:
    draw = random.Random(seed)
    points = [(float(draw.randrange(8)), float(draw.randrange(8))) for _ in range(draw.randrange(1, 30))]

    def dominated(point: tuple[float, float]) -> bool:
        return any(other != point and other[0] <= point[0] and other[1] >= point[1] for other in points)

    found = pareto_front(points)
    assert sorted(found) == [index for index, point in enumerate(points) if not dominated(point)]
    assert [points[index] for index in found] == sorted(points[index] for index in found)


def test_many_points_share_a_trace_and_those_of_the_front_keep_their_names(tmp_path: Path) -> None:
    record = load_sweep(run_sweep(tmp_path, 10, {}).ledger.folder)
    board = leaderboard(record)
    whole = pareto(board, "parameters")
    short = pareto(board, "parameters", most_named=3)
    assert whole
    assert short
    front = pareto_front([(row.parameters, row.quality.mean) for row in board.rows if row.parameters and row.quality])
    further = [entry.text for entry in short.legend if "further" in entry.text]
    assert len(short.figure.data) == 1 + len(front) + len(further)
    assert sum(len(trace.x) for trace in short.figure.data) == sum(len(trace.x) for trace in whole.figure.data)


def trial(number: int, **values: Any) -> TrialRecord:
    given = {"role": CANDIDATE, "values": {"a": number}, "seed": 0, "status": "waiting", **values}
    return TrialRecord(number=number, run=f"run-{number}", **given)


def test_what_trials_keep_is_what_a_look_through_all_of_them_finds() -> None:
    trials = Trials()
    steps = [
        trial(1, role=CONTROL, values={"s": 1}),
        trial(2),
        trial(3, values={"a": 2}, seed=1),
        trial(2, status="running"),
        trial(2, status="done", value=0.5, seconds=10.0, gpus=0.5),
        trial(3, values={"a": 2}, seed=1, status="failed", seconds=3.0),
        trial(1, values={"s": 1}, status="done", value=0.9, seconds=1.0),  # a control that the search came to
        trial(3, values={"a": 2}, seed=1, status="running", seconds=3.0),  # it is tried again
        trial(3, values={"a": 2}, seed=1, status="done", value=0.7, seconds=4.0),
        *(trial(number, status="done", value=number / 100) for number in range(4, 20)),
        trial(19, status="running"),
    ]
    for step in steps:
        trials[step.run] = step
        everything = list(dict.values(trials))
        searched = [one for one in everything if one.role == CANDIDATE]
        distinct: list[dict[str, Any]] = []
        for one in searched:
            if one.values not in distinct:
                distinct.append(one.values)
        assert trials.configurations() == distinct
        assert len(trials.known) == len(distinct)
        for values in distinct:
            assert trials.with_values(values, CANDIDATE) == [one for one in searched if one.values == values]
        assert trials.with_values({"s": 1}, CONTROL) == [one for one in everything if one.role == CONTROL]
        assert trials.seconds == pytest.approx(sum(one.seconds or 0 for one in everything))
        assert trials.gpu_seconds == pytest.approx(sum((one.seconds or 0) * one.gpus for one in everything))
        over = [one for one in everything if one.status in ("done", "stopped", "failed")]
        over.sort(key=lambda one: (-(one.value or 0) if one.status == "done" else 1, one.number))
        assert trials.best() == over[:8]
        for status in ("waiting", "running", "done", "failed"):
            assert trials.counts[status] == sum(one.status == status for one in everything)
    assert {one.run for one in trials.take_touched()} == set(trials)
    assert trials.take_touched() == []
    trials["run-19"] = trial(19, status="done", value=0.19)
    assert [one.number for one in trials.take_touched()] == [19]


def test_the_ledger_of_a_large_sweep_is_read_whole(tmp_path: Path) -> None:
    conductor = run_sweep(tmp_path, 20, {})
    assert load_sweep(conductor.ledger.folder).trials == tuple(
        sorted(conductor.trials.values(), key=lambda one: one.number)
    )

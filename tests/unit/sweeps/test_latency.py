"""Times per example of a sweep: one round of all architectures when no trial runs any more."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig

from raybrew.errors import ModelError
from raybrew.models.latency import Timings
from raybrew.pipeline.reporter import LineReporter
from raybrew.records.sweeps import load_sweep
from raybrew.reports.sweep_tables import leaderboard
from raybrew.runs.latency import TimedModel
from raybrew.sweeps import latency
from raybrew.sweeps.conductor import Conductor
from raybrew.sweeps.latency import measure_alone
from raybrew.sweeps.progress import SweepReporter, quiet_or
from unit.sweep_helpers import base, conductor_of, drive

SPACE = {
    "distill.temperature": [1, 4],
    "student.shape": [{"layers": 2, "hidden": 312}, {"layers": 4, "hidden": 312}],
}


class Bench:
    """Stands in for the clock: a model takes as many milliseconds as it has layers, on whatever device."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, Any]] = []

    def __call__(
        self,
        models: Mapping[str, Sequence[TimedModel]],
        tokens: int,
        device: torch.device,
        precision: str,
        budget_seconds: float,
    ) -> Timings:
        layers = {
            name: sum(
                json.loads(Path(one.source.model, "config.json").read_text())["num_hidden_layers"] for one in group
            )
            for name, group in models.items()
        }
        threads = torch.get_num_threads()
        self.rounds.append({"layers": sorted(layers.values()), "tokens": tokens, "threads": threads})
        times = {name: {"batch_1": float(count), "batch_32": count / 10} for name, count in layers.items()}
        where = {"device": f"{device.type} (a chip)", "machine": "a machine", "precision": precision}
        return Timings(times, **where, threads=threads, tokens=tokens, rounds=5, round=f"round {len(self.rounds)}")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    found = Bench()
    monkeypatch.setattr(latency, "time_in_turn", found)
    monkeypatch.setattr(latency, "alive_nodes", lambda: ["this one"])
    return found


def finished(tmp_path: Path, **changes: Any) -> Conductor:
    """A sweep of four runs of two architectures, all done, beside a teacher of twelve layers."""
    BertConfig(num_hidden_layers=12).save_pretrained(tmp_path / "teacher")
    sweep = {"space": SPACE, "search": "grid", "controls": False, **changes}
    conductor = conductor_of(base(tmp_path, sweep, teacher={"model": str(tmp_path / "teacher")}))
    conductor.ledger.write("room", slots=2, cpus=2, gpus=0)
    drive(conductor, lambda job: 0.9)
    for run in conductor.trials:
        layers = conductor.jobs[run].experiment.student.model_dump()["shape"]["layers"]
        BertConfig(num_hidden_layers=layers).save_pretrained(folder_of(conductor, run) / "architecture")
        change_summary(conductor, run, device="cpu", latency={"alone": False, "student": {"batch_1": 9.0}})
    return conductor


def folder_of(conductor: Conductor, run: str) -> Path:
    return conductor.ledger.folder.parent / run


def summary_of(conductor: Conductor, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder_of(conductor, run) / "summary.json").read_text())
    return found


def change_summary(conductor: Conductor, run: str, **values: Any) -> None:
    summary = summary_of(conductor, run) | values
    (folder_of(conductor, run) / "summary.json").write_text(json.dumps(summary))


def test_all_architectures_and_the_teacher_are_timed_in_one_round(tmp_path: Path, bench: Bench) -> None:
    conductor = finished(tmp_path)
    assert any("do not rely on them" in note for note in leaderboard(load_sweep(conductor.ledger.folder)).notes)
    measure_alone(conductor, quiet_or(None))
    assert bench.rounds == [{"layers": [2, 4, 12], "tokens": 24, "threads": 1}]
    for run in conductor.trials:
        summary = summary_of(conductor, run)
        layers = conductor.jobs[run].experiment.student.model_dump()["shape"]["layers"]
        assert (summary["latency"]["alone"], summary["latency"]["round"]) == (True, "round 1")
        assert summary["latency"]["student"] == {"batch_1": layers, "batch_32": layers / 10}
        assert summary["latency"]["teacher"] == {"batch_1": 12.0, "batch_32": 1.2}
        assert summary["latency_ms"] == {"batch_1": layers, "batch_32": layers / 10, "tokens": 24}
    board = leaderboard(load_sweep(conductor.ledger.folder))
    assert not any("do not rely on them" in note for note in board.notes)
    assert {row.parameters: row.faster["batch_1"] for row in board.rows if row.runs} == {2000: 6.0, 4000: 3.0}
    assert next(row for row in board.rows if row.role == "teacher").latency_ms["batch_1"].mean == 12.0
    measure_alone(conductor, quiet_or(None))
    assert len(bench.rounds) == 1, "once is enough"


def test_a_new_run_makes_a_new_round_for_all(tmp_path: Path, bench: Bench) -> None:
    """Also for students that the sweep has removed, and for runs that were there before it."""
    conductor = finished(tmp_path)
    measure_alone(conductor, quiet_or(None))
    first, second, *_ = conductor.trials
    shutil.rmtree(folder_of(conductor, first) / "student", ignore_errors=True)
    change_summary(conductor, second, latency={"alone": False, "student": {"batch_1": 9.0}})
    measure_alone(conductor, quiet_or(None))
    assert {summary_of(conductor, run)["latency"]["round"] for run in conductor.trials} == {"round 2"}


def test_runs_whose_architecture_is_unknown_keep_what_they_measured(tmp_path: Path, bench: Bench) -> None:
    conductor = finished(tmp_path)
    old, *others = conductor.trials
    for name in ("architecture", "student"):
        shutil.rmtree(folder_of(conductor, old) / name)
    before = summary_of(conductor, old)
    measure_alone(conductor, quiet_or(None))
    assert summary_of(conductor, old) == before
    assert all(summary_of(conductor, run)["latency"]["alone"] for run in others)
    measure_alone(conductor, quiet_or(None))
    assert len(bench.rounds) == 1


def test_a_failure_is_told_and_costs_no_sweep(tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Timings:
        raise ModelError("the model does not fit on cuda: out of memory\nand more")

    conductor = finished(tmp_path)
    monkeypatch.setattr(latency, "time_in_turn", broken)
    before = [summary_of(conductor, run) for run in conductor.trials]
    lines: list[str] = []
    measure_alone(conductor, SweepReporter(LineReporter(lines.append)))
    assert [summary_of(conductor, run) for run in conductor.trials] == before
    assert any("not measured again" in line and line.endswith("out of memory") for line in lines)


def test_what_gpu_workers_ran_is_not_timed_by_a_driver_without_gpu(
    tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    conductor = finished(tmp_path, resources={"cpus": 2, "gpus": 1})
    for run in conductor.trials:
        change_summary(conductor, run, device="cuda:0")
    asked: list[tuple[float, float, str]] = []

    def elsewhere(work: Any, cpus: float, gpus: float) -> Timings:
        asked.append((cpus, gpus, work.device))
        return bench(work.models, work.tokens, torch.device("cuda"), "bf16", 1.0)

    monkeypatch.setattr(latency, "_on_worker", elsewhere)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    measure_alone(conductor, quiet_or(None))
    assert asked == [(2, 1, "cuda")]
    assert summary_of(conductor, next(iter(conductor.trials)))["latency"]["device"] == "cuda (a chip)"


def test_a_driver_times_on_workers_when_there_are_other_nodes(
    tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def elsewhere(work: Any, cpus: float, gpus: float) -> Timings:
        asked.append(gpus)
        return bench(work.models, work.tokens, torch.device("cpu"), "fp32", 1.0)

    monkeypatch.setattr(latency, "_on_worker", elsewhere)
    monkeypatch.setattr(latency, "alive_nodes", lambda: ["this one", "another"])
    measure_alone(finished(tmp_path), quiet_or(None))
    assert asked == [0]

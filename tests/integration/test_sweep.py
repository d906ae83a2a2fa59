"""Sweeps through the command line in a local Ray cluster: to the end, killed and continued, failing trials, ASHA."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_project import cli, losses_of, make_project, start_cli

from raybrew.records.sweeps import CANDIDATE, CONTROL, load_sweep
from raybrew.sweeps.result import Sweep

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

#: A learning rate at which the loss is no number after the first step.
DIVERGES = 1e30


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a trained teacher and no sweep yet."""
    folder = tmp_path_factory.mktemp("sweeps")
    experiment = make_project(folder)
    values = yaml.safe_load(experiment.read_text())
    values["train"] |= {"epochs": 2, "eval_steps": 5, "log_steps": 1}
    experiment.write_text(yaml.safe_dump(values, sort_keys=False))
    cli("finetune", experiment)
    return folder


def with_sweep(project: Path, name: str, sweep: dict[str, Any]) -> Path:
    """An experiment file of its own name and folder of runs; the teacher is that of the project."""
    values = yaml.safe_load((project / "experiment.yaml").read_text())
    teacher = next(path for path in (project / "runs" / "tiny").glob("finetune-*") if path.is_dir())
    values["name"] = name
    values["teacher"] = {"model": str(teacher / "student")}
    values["sweep"] = sweep
    path = project / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def sweep_of(project: Path, name: str) -> Path:
    (found,) = (project / "runs" / name).glob("sweep-*")
    return found


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]


def test_to_the_end_with_a_failing_trial_and_continued_after_kills(project: Path) -> None:
    """Stopped by Ctrl-C, then killed; one trial diverges and leaves the others alone; the teacher runs once."""
    space = {"distill.matches": [[], [{"loss": "hidden_mse"}]], "train.learning_rate": [1e-3, DIVERGES]}
    experiment = with_sweep(project, "killed", {"space": space, "search": "grid"})
    for session in (1, 2):
        process = start_cli("sweep", experiment)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.1)
            try:
                kinds = [line["kind"] for line in lines_of(sweep_of(project, "killed"))]
            except (ValueError, OSError):
                continue
            if kinds.count("session") == session and "end" in kinds[len(kinds) - kinds[::-1].index("session") :]:
                break
        assert process.poll() is None, process.communicate()
        # As a terminal does it: to all processes of the group, Ray's too.
        os.killpg(process.pid, signal.SIGINT if session == 1 else signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        if session == 1:
            assert process.returncode == 130, err
            assert "Traceback" not in err
            last = err.splitlines()[-1]
            assert re.fullmatch(
                r"raybrew: stopped: \d trials? (is|are) done in .*; the same command continues .*", last
            )
            assert load_sweep(sweep_of(project, "killed")).closed == "interrupted"
    folder = sweep_of(project, "killed")
    before = {line["run"]: line for line in lines_of(folder) if line["kind"] == "end" and line["status"] == "done"}
    assert before
    stamps = {run: (folder.parent / run / "metrics.jsonl").stat().st_mtime_ns for run in before}

    out, err = cli("sweep", experiment, code=5)
    assert "DivergenceError" in err
    assert re.search(r"(Best|Chosen) student: ", out)
    record = load_sweep(folder)
    assert record.closed == "finished"
    assert len(record.sessions) == 3
    statuses = {(trial.role, trial.values.get("train.learning_rate")): trial.status for trial in record.trials}
    assert statuses == {
        (role, rate): "done" if rate == 1e-3 else "failed" for role in (CONTROL, CANDIDATE) for rate in (1e-3, DIVERGES)
    }, "controls have the learning rates of their students"
    assert {run: (folder.parent / run / "metrics.jsonl").stat().st_mtime_ns for run in before} == stamps
    # Students and teacher were timed in one round while nothing else ran.
    done = [folder.parent / trial.run for trial in record.trials_of("done")]
    summaries = [json.loads((run / "summary.json").read_text()) for run in done]
    assert all(summary["latency"]["alone"] for summary in summaries)
    assert len({summary["latency"]["round"] for summary in summaries}) == 1
    assert len({summary["latency_ms"]["batch_1"] for summary in summaries}) == 1, "one architecture, one time"
    assert sum(one.computed for one in record.teachers) == 160 + 60, "every row went through the teacher once"
    # What the leaderboard says is what the runs say.
    found = json.loads((folder / "report.json").read_text())
    for row in (row for row in found if row["runs"]):
        summary = json.loads((folder.parent / row["runs"][0] / "summary.json").read_text())
        assert row["value"] == summary["best"]["value"]
    assert (folder / "best" / "model.safetensors").is_file()
    mark = json.loads((folder / "best" / "best.json").read_text())
    assert mark["run"] == Sweep.load(folder).best().run.name
    assert "Failed trials" in (folder / "report.html").read_text()

    out, err = cli("sweep", experiment, code=5)
    assert "already done" in out
    out, _ = cli("compare", folder, project / "runs" / "tiny")
    assert re.search(r"3 of 6 trials done\): (Best|Chosen) student", out)


def test_methods_in_one_sweep(project: Path) -> None:
    """Equal steps, one teacher pass for what all of them ask, and the control among them, not twice."""
    space = {"distill.method": ["tinybert", "theseus", "labels"]}
    experiment = with_sweep(project, "methods", {"space": space, "search": "grid"})
    _, err = cli("sweep", experiment, code=3)
    assert "impossible with distill.method=theseus (1 of 3 corners): distill.matches: given, but" in err
    out, _ = cli("sweep", experiment, "distill.matches=[]")
    record = load_sweep(sweep_of(project, "methods"))
    assert {(trial.role, trial.values["distill.method"]): trial.status for trial in record.trials} == {
        (CANDIDATE, name): "done" for name in space["distill.method"]
    }
    (teacher,) = record.teachers
    layers = [f"hidden.{layer:02d}" for layer in (0, 2, 4)]
    assert list(teacher.signals) == ["logits", "attention.02", "attention.04", *layers]
    folder = record.folder.parent
    summaries = {trial.values["distill.method"]: folder / trial.run / "summary.json" for trial in record.trials}
    found = {name: json.loads(path.read_text()) for name, path in summaries.items()}
    assert {name: summary["role"] for name, summary in found.items()} == {
        "tinybert": "student",
        "theseus": "student",
        "labels": "control",
    }
    assert len({summary["steps"] for summary in found.values()}) == 1
    # Only the last stage is judged: 15 of 20 steps are tinybert's first, 10 theseus's.
    assert found["tinybert"]["best"]["step"] > 15
    assert found["theseus"]["best"]["step"] > 10
    shares = {trial.values["distill.method"]: [share for share, _ in trial.reports] for trial in record.trials}
    assert shares == {"tinybert": [1.0], "theseus": [0.75, 1.0], "labels": [0.25, 0.5, 0.75, 1.0]}
    assert "method=tinybert" in out
    assert "method=theseus" in out


def test_asha_stops_trials_at_its_rungs_and_overhead_is_low(project: Path) -> None:
    # Without a learning rate worth the name a student stays where it was: those are the ones to stop.
    space = {"train.learning_rate": [2e-3, 1e-12, 2e-12, 3e-12, 4e-12]}
    scheduler = {"kind": "asha", "grace": 0.25, "reduction_factor": 2}
    sweep = {"space": space, "search": "grid", "scheduler": scheduler, "concurrency": 1}
    experiment = with_sweep(project, "asha", sweep)
    cli("sweep", experiment, "train.epochs=12", "train.eval_steps=30", "student.init=random")
    folder = sweep_of(project, "asha")
    record = load_sweep(folder)
    stopped = record.trials_of("stopped")
    assert stopped
    assert all(trial.share in (0.25, 0.5) for trial in stopped), [trial.share for trial in stopped]
    assert all(trial.values["train.learning_rate"] < 1e-9 for trial in stopped)
    assert {trial.status for trial in record.trials if trial.role == CONTROL} == {"done"}
    for trial in stopped:
        run = folder.parent / trial.run
        assert not (run / "summary.json").exists()
        assert not list((run / "checkpoints").glob("*.pt")), "states of losers are pruned"
    assert "Early stops" in (folder / "report.html").read_text()
    # One process ran them all: only its first trial had to import and load.
    overheads = [trial.overhead for trial in record.trials if trial.overhead is not None]
    assert sum(overheads[1:]) / len(overheads[1:]) < 10, overheads


def test_optuna_from_python_with_more_seeds_for_the_best(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import raybrew

    space = {"distill.temperature": {"uniform": [1, 8]}, "student.shape": [{"layers": 1}, {"layers": 2}]}
    experiment = with_sweep(
        project,
        "python",
        {
            "space": space,
            "search": {"kind": "optuna", "objectives": ["quality", "parameters"], "startup_trials": 2},
            "trials": 3,
            "rerun_best": {"count": 1, "seeds": 3},
        },
    )
    monkeypatch.chdir(project)
    lines: list[str] = []
    result = raybrew.sweep(
        raybrew.load_experiment(experiment, ["tracking.wandb.mode=offline"]),
        reporter=raybrew.LineReporter(lines.append),
    )
    assert not result.failed
    frame = result.dataframe()
    assert sum(frame["role"] == CANDIDATE) == 3 + 2
    assert frame["rerun"].sum() == 4, "the best and its control"
    best = result.best()
    assert best.spread is not None, "of the further seeds"
    assert (best.student / "config.json").is_file()
    assert result.leaderboard.best is not None
    assert result.leaderboard.best.gain is not None
    assert any("waiting for one of" in line for line in lines)
    # A W&B run for each trial and one for the sweep, no second ones from Tune.
    wandb = [path.parent.parent.name for path in (project / "runs" / "python").glob("*/wandb/offline-run-*")]
    assert sorted(wandb) == sorted([*frame["run"], result.path.name])
    kept = [run for run in frame["run"] if (result.path.parent / run / "student").is_dir()]
    assert best.run.name in kept


def test_parts_from_outside_reach_the_workers(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task, a method's row, a searcher, a scheduler and a tracker from a file in the folder raybrew runs in."""
    own = Path(__file__).parents[1] / "contracts" / "extension.py"
    (project / "own_parts.py").write_text(own.read_text(encoding="utf-8"), encoding="utf-8")
    sweep = {
        "space": {"distill.temperature": [1, 2, 4]},
        "search": "own_parts:BACKWARDS",
        "scheduler": {"kind": "own_parts:IMPATIENT", "grace": 0.01},
        "controls": False,
    }
    path = with_sweep(project, "outside", sweep)
    values = yaml.safe_load(path.read_text())
    values["task"] = {"kind": "own_parts:MOOD", "max_length": 24}
    values["distill"] = {"method": "own_parts:GENTLE"}
    values["tracking"] = {"others": {"own_parts:NOTEBOOK": {"file": "notes.jsonl"}}}
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    monkeypatch.chdir(project)
    cli("sweep", path)
    record = load_sweep(sweep_of(project, "outside"))
    assert [trial.values["distill.temperature"] for trial in record.trials] == [4, 2, 1]
    assert {trial.status for trial in record.trials} == {"done"}
    notes = [json.loads(line) for line in (project / "notes.jsonl").read_text().splitlines()]
    assert {note["run_id"] for note in notes if "run_id" in note} == {trial.run for trial in record.trials}
    assert {note["group"] for note in notes if "group" in note} == {f"outside-{record.sweep_id}"}
    cli("distill", path, "train.workers=2", "distill.temperature=5")  # Ray Train's workers


def test_what_a_population_found_is_a_run_that_can_be_repeated(project: Path) -> None:
    """Trained from its start by its configuration, a member that took over another one's student is the same."""
    space = {"distill.temperature": {"uniform": [1, 8]}, "train.learning_rate": {"loguniform": [1e-4, 3e-3]}}
    scheduler = {"kind": "pbt", "interval": 0.5, "quantile": 0.4}
    sweep = {"space": space, "trials": 3, "scheduler": scheduler, "controls": False}
    out, _ = cli("sweep", with_sweep(project, "population", sweep))
    assert re.search(r"(Best|Chosen) student: ", out)
    folder = sweep_of(project, "population")
    record = load_sweep(folder)
    (decided,) = record.rounds
    (move,) = decided.moves
    assert list(move.begins[:2]) == [10, 0.5]
    statuses = {trial.run: trial.status for trial in record.trials}
    assert statuses.pop(move.of) == "stopped"
    assert list(statuses.values()) == ["done"] * 3
    assert not list((folder.parent / move.of / "checkpoints").glob("*.pt"))
    assert "Rounds of the population" in (folder / "report.html").read_text()

    clone = folder.parent / move.run
    cli("distill", clone / "config.yaml", f"store.storage_path={project / 'again'}", f"store.path={project}/runs/store")
    again = project / "again" / "population" / move.run
    assert len(losses_of(clone)) == 24, "20 steps, 4 evaluations"
    # Evaluation losses are those at a run's last values, which where the clone begins were those of the other member.
    ours, theirs = (
        [{name: value for name, value in record.items() if not name.startswith("eval/loss")} for record in records]
        for records in (losses_of(again), losses_of(clone))
    )
    assert ours == theirs
    later = [record for record in losses_of(clone) if record["step"] > 10]
    assert later
    assert [record for record in losses_of(again) if record["step"] > 10] == later


def test_trials_of_two_workers_are_runs_of_ray_train(project: Path) -> None:
    sweep = {"space": {"distill.temperature": [2]}, "controls": False}
    cli("sweep", with_sweep(project, "workers", sweep), "train.workers=2", "train.epochs=1")
    folder = sweep_of(project, "workers")
    record = load_sweep(folder)
    (room,) = (line for line in lines_of(folder) if line["kind"] == "room")
    assert room["slots"] == max(1, room["cpus"] // 2), "two CPUs for each"
    (trial,) = record.trials
    assert (trial.status, trial.reports[0][0]) == ("done", 0.5), "evaluations come through while the workers train"
    summary = json.loads((record.folder.parent / trial.run / "summary.json").read_text())
    assert (summary["workers"], summary["steps"]) == (2, 10)


def test_times_are_measured_with_the_resources_of_a_trial(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a Ray worker, as for trials on other nodes than the one of the command."""
    import raybrew
    from raybrew.sweeps import latency

    monkeypatch.chdir(project)
    monkeypatch.setattr(latency, "alive_nodes", lambda: ["the driver's", "the trials'"])
    timed_by: list[object] = []
    monkeypatch.setattr(latency, "_time", timed_by.append)
    experiment = with_sweep(project, "elsewhere", {"space": {"distill.temperature": [1, 2]}, "controls": False})
    result = raybrew.sweep(raybrew.load_experiment(experiment))
    summaries = [json.loads((result.path.parent / trial.run / "summary.json").read_text()) for trial in result.trials]
    assert len(summaries) == 2
    assert timed_by == [], "not this process"
    assert all(summary["latency"]["alone"] for summary in summaries)
    assert len({summary["latency"]["round"] for summary in summaries}) == 1
    students = [row for row in result.leaderboard.rows if row.runs]
    assert all(list(row.faster) == ["batch_1", "batch_32"] for row in students)


def test_a_continued_sweep_trains_a_pruned_student_again(project: Path) -> None:
    sweep = {"space": {"distill.temperature": [1, 2, 4]}, "search": "grid", "controls": False, "keep_students": 1}
    experiment = with_sweep(project, "pruned", sweep)
    cli("sweep", experiment, "train.epochs=1")
    folder = sweep_of(project, "pruned")
    runs = [folder.parent / trial.run for trial in load_sweep(folder).trials]
    kept = [run for run in runs if (run / "student").is_dir()]
    assert kept == [Sweep.load(folder).best().run]
    values = {run: json.loads((run / "summary.json").read_text())["best"]["value"] for run in runs}
    out, _ = cli("sweep", experiment, "train.epochs=1", "sweep.keep_students=2")
    assert "already done" not in out
    (again,) = [line["run"] for line in lines_of(folder) if line["kind"] == "again"]
    assert sum((run / "student").is_dir() for run in runs) == 2
    summary = json.loads((folder.parent / again / "summary.json").read_text())
    assert "pruned" not in summary
    assert summary["best"]["value"] == values[folder.parent / again], "the same training"
    assert all(trial.status == "done" for trial in load_sweep(folder).trials)
    gone = next(run for run in runs if not (run / "student").is_dir())
    out, _ = cli("show", gone)
    assert f"{folder.name} removed the student" in out
    out, err = cli("distill", gone / "config.yaml")
    assert "it is trained again" in out + err
    assert (gone / "student" / "model.safetensors").is_file()

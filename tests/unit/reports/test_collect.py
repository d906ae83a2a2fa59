"""Runs are read back as they were written; what is missing is said."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from raybrew.errors import RunError
from raybrew.records.runs import find_runs, load_run, load_runs
from unit.reports_helpers import make_run


def test_a_finished_run(tmp_path: Path) -> None:
    events = ((500, "interrupted", "stopped"), (500, "resumed", "resumed"))
    run = load_run(make_run(tmp_path, seed=3, accuracy=0.9, events=events))
    assert (run.status, run.role, run.seed, run.verb, run.experiment) == ("done", "student", 3, "distill", "reviews")
    assert run.best is not None
    assert run.best.final
    assert (run.best.metric, run.best.value, run.best.step) == ("accuracy", 0.9, 1000)
    assert (len(run.train), len(run.evals)) == (100, 10)
    assert [event.event for event in run.events] == ["started", "interrupted", "resumed", "finished"]
    assert run.command == "raybrew distill experiments/reviews.yaml train.seed=3"
    assert run.machine == "8 x AMD EPYC 7763, 1 x NVIDIA H200"
    assert run.eval_rows == 872
    assert run.config["distill"]["temperature"] == 8.0
    assert run.problems == ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.status = "failed"  # type: ignore[misc]


def test_roles_and_seeds_without_a_summary(tmp_path: Path) -> None:
    for role in ("teacher", "student", "control"):
        run = load_run(make_run(tmp_path, role, seed=7, done=False))
        assert (run.role, run.seed, run.status) == (role, 7, "running or interrupted")
        assert run.summary is None
        assert run.best is not None
        assert not run.best.final
        assert run.best.step == 500


def test_a_failed_run(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, done=False, events=((480, "failed", "out of memory"),)))
    assert run.status == "failed"


def test_missing_and_damaged_files_are_problems_not_errors(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    (folder / "environment.json").unlink()
    (folder / "config.yaml").write_text("a: [1\n")
    (folder / "summary.json").write_text("{")
    (folder / "metrics.jsonl").write_text("garbage\n{}\n")
    run = load_run(folder)
    assert len(run.problems) == 4
    for name in ("environment.json", "config.yaml", "summary.json", "metrics.jsonl"):
        assert any(name in problem for problem in run.problems), name
    assert (run.summary, run.best, run.machine, run.command) == (None, None, None, None)


def test_a_run_without_evaluation_has_no_best(tmp_path: Path) -> None:
    folder = make_run(tmp_path, summary={"best": None})
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "kind": "train", "loss": 1.0}) + "\n")
    assert load_run(folder).best is None


def test_secrets_written_by_others_do_not_come_back(tmp_path: Path) -> None:
    folder = make_run(tmp_path, events=((5, "note", "from https://me:pw123456@host/x"),))
    environment = json.loads((folder / "environment.json").read_text()) | {
        "command": "raybrew distill --api-key abcdef"
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    run = load_run(folder)
    assert run.command == "raybrew distill --api-key ***"
    assert "pw123456" not in str(run)


def test_find_runs_takes_runs_experiments_and_storage_paths(tmp_path: Path) -> None:
    one, two = make_run(tmp_path, seed=0), make_run(tmp_path, seed=1)
    other = make_run(tmp_path, name="other")
    (tmp_path / "store" / "abc").mkdir(parents=True)
    (tmp_path / "store" / "abc" / "manifest.json").write_text("{}")
    (tmp_path / "reviews" / ".hidden").mkdir()
    shutil.copy(one / "identity.json", tmp_path / "reviews" / ".hidden")
    assert find_runs([one]) == [one]
    assert find_runs([tmp_path / "reviews"]) == sorted([one, two])
    assert find_runs([tmp_path]) == [other, *sorted([one, two])]
    assert find_runs([two, tmp_path, one]) == [two, other, one], "each once, in the order given"
    assert [run.folder for run in load_runs([tmp_path / "other"])] == [other]


def test_find_runs_says_what_it_looked_for(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no folder"):
        find_runs([tmp_path / "absent"])
    with pytest.raises(RunError, match=r"holds no runs.*identity\.json"):
        find_runs([tmp_path])
    with pytest.raises(RunError, match="no run folder"):
        load_run(tmp_path)

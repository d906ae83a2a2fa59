"""What an earlier version made is read as before: names of runs, run folders, a sweep, a store.

`tests/data/kept` was written by the version that `environment.json` there names; nothing of it may be made again.
`tests/data/run_ids.json` names the runs of every published experiment file, so that no edit of the package moves one.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import raybrew
from raybrew.config.loading import load_experiment
from raybrew.errors import ConfigError
from raybrew.records.sweeps import load_sweep
from raybrew.signals import parse_signal
from raybrew.store.reader import Store

DATA = Path(__file__).parents[2] / "data"
EXPERIMENTS = Path(__file__).parents[3] / "experiments"
STORE = "42e1625c92c3be897ab419732fb8da5c"


def names_of(path: Path) -> dict[str, str]:
    """Verb -> run or sweep that an experiment file makes."""
    experiment = load_experiment(path, check_files=False)
    found = {"distill": experiment.run_id("distill")}
    if experiment.sweep is not None:
        found["sweep"] = experiment.sweep_id()
    with contextlib.suppress(ConfigError):  # one that takes its teacher as it is
        found["finetune"] = experiment.run_id("finetune")
    return found


def test_published_experiments_make_the_runs_that_they_made() -> None:
    """After a change that is meant: `python tests/unit/records/test_kept.py`, and a line in the changelog."""
    assert all_names() == json.loads((DATA / "run_ids.json").read_text(encoding="utf-8"))


def all_names() -> dict[str, dict[str, str]]:
    files = sorted(
        path for path in EXPERIMENTS.rglob("*.yaml") if "name:" in path.read_text() or "extends:" in path.read_text()
    )
    return {path.relative_to(EXPERIMENTS).as_posix(): names_of(path) for path in files}


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "kept"
    shutil.copytree(DATA / "kept", folder)
    monkeypatch.chdir(folder)
    return folder


def test_kept_runs_are_done(kept: Path) -> None:
    experiment = load_experiment("experiment.yaml")
    before = {path: path.read_bytes() for path in kept.rglob("student/*")}
    for result in (raybrew.finetune(experiment), raybrew.distill(experiment, report=False)):
        assert result.already_done
    assert sorted(path.name for path in (kept / "runs" / "kept").iterdir()) == sorted(
        path.name for path in (DATA / "kept" / "runs" / "kept").iterdir()
    )
    assert before == {path: path.read_bytes() for path in kept.rglob("student/*")}


@pytest.mark.parametrize("split", ["eval", "test"])
def test_kept_students_answer_as_they_did(kept: Path, split: str) -> None:
    experiment = load_experiment("experiment.yaml")
    (summary,) = (json.loads(path.read_text()) for path in kept.glob("runs/kept/distill-7*/summary.json"))
    told = {"eval": summary["best"]["metrics"], "test": summary["test"]["metrics"]}[split]
    found = raybrew.evaluate(experiment, split=split)  # type: ignore[arg-type]
    assert found.metrics == pytest.approx({name: told[name] for name in found.metrics})


def test_a_kept_store_is_complete_and_holds_what_it_held(kept: Path) -> None:
    experiment = load_experiment("experiment.yaml")
    marks = {path: path.stat().st_mtime_ns for path in (kept / "runs" / "store" / STORE / "shards").iterdir()}
    store = raybrew.capture(experiment)
    assert store.fingerprint == STORE, "the same teacher has the same name"
    assert marks == {path: path.stat().st_mtime_ns for path in marks}, "nothing was computed"
    held = json.loads((DATA / "kept" / "logits.json").read_text())
    rows = Store.open(kept / "runs" / "store" / STORE).gather(parse_signal("logits"), np.arange(len(held)))
    assert torch.allclose(rows, torch.tensor(held), atol=1e-6)


def test_a_kept_sweep_is_read(kept: Path) -> None:
    (folder,) = (kept / "runs" / "kept").glob("sweep-*")
    assert folder.name == load_experiment("experiment.yaml").sweep_id()
    record = load_sweep(folder)
    assert record.closed == "finished"
    assert [(trial.role, trial.status) for trial in record.trials] == [
        ("control", "done"),
        ("candidate", "done"),
        ("candidate", "done"),
    ]
    page = raybrew.report([kept / "runs"], kept / "page.html")
    assert "data.test" in page.read_text(encoding="utf-8")


if __name__ == "__main__":
    (DATA / "run_ids.json").write_text(json.dumps(all_names(), indent=1) + "\n", encoding="utf-8")

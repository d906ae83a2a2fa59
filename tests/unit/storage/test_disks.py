"""Disks that are full or read-only: one exit code, nothing lost, the same command continues; what is done is read."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import pytest
import torch
from family_models import without_latency

import raybrew
from raybrew.config import Experiment
from raybrew.errors import EnvironmentProblem, RunError, StoreNotWritable, machine_problem
from raybrew.records.ledger import Ledger
from raybrew.records.summary import RunSummary, write_summary
from raybrew.records.sweeps import load_sweep
from raybrew.storage import lock as store_lock
from raybrew.storage.local import LocalFolder
from raybrew.store.prune import PruneRules, plan_prune, prune_stores
from raybrew.store.reader import Store
from raybrew.sweeps.trial import run_trial
from raybrew.sweeps.tuning import _Asker, _Brain, _Listener
from raybrew.training.checkpoints import Checkpoints
from raybrew.training.run_folder import RunFolder
from unit.models.test_families import experiment_of
from unit.sweep_helpers import base, conductor_of, drive

SWEEP = {"space": {"distill.temperature": [1, 2, 4]}, "search": "grid", "controls": False}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    without_latency(monkeypatch)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of its own, with options, and again with others; the folder that it is at."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        again = "remount," if place.is_mount() else ""
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"{again}{options}", "none", str(place)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("no right to mount a disk here")
        return place

    try:
        yield mount
    finally:
        if place.is_mount():
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> Path:
    """A file that takes all room there is."""
    path = place / "fill"
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"0" * 4096)
    return path


def full(*given: Any, **more: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only(*given: Any, **more: Any) -> Any:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def stored(folder: Path, place: Path, **more: Any) -> Experiment:
    store = {"storage_path": str(place / "runs"), "launcher": "local"}
    return experiment_of(folder, "bert", "classification", store=store, **more)


def test_finished_work_is_read_where_nothing_can_be_written(tmp_path: Path, disk: Callable[[str], Path]) -> None:
    place = disk("size=32m")
    fine = {"model": str(tmp_path / "teacher"), "finetune": {"max_steps": 2, "batch_size": 4, "threads": 1}}
    experiment = stored(tmp_path, place)
    experiment = experiment.model_copy(update={"teacher": type(experiment.teacher).model_validate(fine)})
    teacher, store, run = raybrew.finetune(experiment), raybrew.capture(experiment), raybrew.distill(experiment)
    metrics = raybrew.evaluate(experiment).metrics
    disk("ro")
    with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
        (place / "x").touch()
    again = raybrew.finetune(experiment)
    assert (again.already_done, again.path) == (True, teacher.path)
    assert raybrew.capture(experiment).location == store.location
    again = raybrew.distill(experiment)
    assert (again.already_done, again.summary) == (True, run.summary)
    assert raybrew.evaluate(experiment).metrics == metrics
    assert raybrew.evaluate(experiment, model="teacher").metrics
    report = raybrew.report([place / "runs"], tmp_path / "report.html")
    assert Path(report).is_file()
    with pytest.raises(EnvironmentProblem, match=rf"cannot write .*{os.strerror(errno.EROFS)}"):
        raybrew.report([place / "runs"], place / "report.html")
    other = experiment.model_copy(update={"train": experiment.train.model_copy(update={"seed": 7})})
    with pytest.raises(EnvironmentProblem, match=rf"cannot write .*{os.strerror(errno.EROFS)}"):
        raybrew.distill(other)


def test_a_run_goes_on_when_a_full_disk_has_room_again(tmp_path: Path, disk: Callable[[str], Path]) -> None:
    place = disk("size=32m")
    experiment = stored(tmp_path, place)
    raybrew.capture(experiment)
    filler = fill(place)
    with pytest.raises(EnvironmentProblem, match=os.strerror(errno.ENOSPC)) as caught:
        raybrew.distill(experiment)
    assert caught.value.exit_code == 4
    filler.unlink()
    assert raybrew.distill(experiment).summary["steps"] == 2


def test_the_lock_of_what_is_finished_needs_no_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filelock.FileLock, "acquire", read_only)
    run = RunFolder(tmp_path / "runs" / "x" / "r", "r")
    with pytest.raises(EnvironmentProblem, match=rf"run folder .*{os.strerror(errno.EROFS)}"), run.locked():
        pass
    finished = RunSummary.read({"status": "done"})
    write_summary(run.path, finished)
    with run.locked():
        assert run.summary() == finished


def test_so_with_sweeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conductor = conductor_of(base(tmp_path, SWEEP))
    drive(conductor, lambda job: 0.5)
    monkeypatch.setattr(filelock.FileLock, "acquire", read_only)
    for folder in (conductor.ledger.folder, tmp_path / "reviews" / "sweep-new"):
        with pytest.raises(EnvironmentProblem, match="sweep folder"), Ledger(folder).locked():
            pass
    conductor.ledger.write("close", reason="finished")
    with conductor.ledger.locked():
        assert load_sweep(conductor.ledger.folder).closed == "finished"


def trial_that(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, distill: Callable[..., Any]) -> dict[str, Any]:
    """What a trial tells Tune last."""
    told: list[dict[str, Any]] = []
    monkeypatch.setattr("ray.tune.report", told.append)
    monkeypatch.setattr("raybrew.verbs.distill.distill", distill)
    monkeypatch.setattr("raybrew.sweeps.trial.assume_devices", lambda devices: None)
    experiment = base(tmp_path, SWEEP).model_copy(update={"sweep": None})
    devices = {"gpus": 0}
    spec = {"experiment": experiment.plain(), "cwd": "", "command": "", "until": None, "needs_student": False}
    run_trial({"spec": json.dumps({**spec, "device": "cpu", "devices": devices})})
    return told[-1]


def test_a_full_disk_is_no_failure_of_a_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def checkpoint(*given: Any, **more: Any) -> None:
        (tmp_path / "checkpoints").mkdir(exist_ok=True)
        monkeypatch.setattr(torch, "save", full)
        Checkpoints(tmp_path / "checkpoints", 1)._write(3, {})

    def cuda(*given: Any, **more: Any) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")

    told = trial_that(monkeypatch, tmp_path, checkpoint)
    assert told["status"] == "interrupted"
    assert told["disk"].startswith("cannot write checkpoint")
    assert told["disk"].endswith(os.strerror(errno.ENOSPC))
    assert trial_that(monkeypatch, tmp_path, cuda)["status"] == "failed", "another configuration needs less memory"


def test_torch_tells_of_a_full_disk_in_words_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:862] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", fail)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(EnvironmentProblem, match=os.strerror(errno.ENOSPC)) as caught:
        Checkpoints(tmp_path, 1)._write(3, {})
    assert machine_problem(caught.value, only_disk=True) == os.strerror(errno.ENOSPC)


def test_a_full_disk_ends_the_sweep_which_goes_on_later(tmp_path: Path) -> None:
    conductor = conductor_of(base(tmp_path, SWEEP))
    brain = _Brain(conductor, lambda: None)
    asker, listener = _Asker(brain), _Listener(brain)
    assert asker.suggest("a") is not None
    run, trial = brain.runs["a"], SimpleNamespace(trial_id="a", error_file=None)
    listener.on_trial_result(0, [], trial, {"status": "interrupted", "disk": "cannot write x: full", "seconds": 1.0})
    listener.on_trial_complete(0, [], trial)
    assert isinstance(brain.error, EnvironmentProblem)
    assert "cannot write x: full; make room" in str(brain.error)
    assert asker.suggest("b") == "FINISHED", "no other trial meets the same disk"
    (found,) = (each for each in load_sweep(conductor.ledger.folder).trials if each.run == run)
    assert (found.status, found.error) == ("running", None)
    assert run in conductor_of(base(tmp_path, SWEEP)).queue


@pytest.mark.parametrize("cause", [full, read_only])
def test_only_disks_end_a_sweep(cause: Callable[[], None]) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 (its words differ by cause)
        cause()
    wrapped = RunError("the training workers failed")
    wrapped.__cause__ = RuntimeError(f"worker 1: {caught.value}")
    assert machine_problem(caught.value, only_disk=True) == machine_problem(wrapped, only_disk=True) != None  # noqa: E711
    for other in (MemoryError(), PermissionError(errno.EACCES, "no"), RuntimeError("CUDA out of memory")):
        assert machine_problem(other) is not None
        assert machine_problem(other, only_disk=True) is None


def pruned(place: Path, rules: PruneRules) -> int:
    return prune_stores(plan_prune(place, rules))


def test_a_full_disk_gets_room_by_pruning(tmp_path: Path, disk: Callable[[str], Path]) -> None:
    place = disk("size=32m")
    experiment = stored(tmp_path, place)
    path = Path(raybrew.capture(experiment).location)
    filler = fill(place)
    assert pruned(path.parent, PruneRules(signals=("hidden.02",))) > 0
    store = Store.open(path)
    assert store.verify() == ()
    assert "signals/hidden.02" not in store.manifest["signals"]
    fill(place)
    assert pruned(path.parent, PruneRules(stores=(path.name,))) > 0
    assert not path.exists()
    filler.unlink()
    assert Store.open(Path(raybrew.capture(experiment).location)).verify() == ()
    disk("ro")
    with pytest.raises(StoreNotWritable, match=os.strerror(errno.EROFS)):
        pruned(path.parent, PruneRules(stores=(path.name,)))
    assert Store.open(path).verify() == ()


def test_pruning_needs_no_room_and_captures_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = experiment_of(tmp_path, "bert", "classification")
    path = Path(raybrew.capture(experiment).location)
    monkeypatch.setattr(store_lock, "write_json", full)
    with pytest.raises(StoreNotWritable, match="no space left"), capture_lock(path):
        pass
    assert pruned(path, PruneRules(stores=(path.name,))) > 0


def capture_lock(path: Path) -> Any:
    from raybrew.store.pending import locked_store

    return locked_store(LocalFolder(path))


def test_the_command_line_ends_in_its_one_code(tmp_path: Path, disk: Callable[[str], Path]) -> None:
    from raybrew.cli.main import main

    place = disk("size=32m")
    path = tmp_path / "experiment.yaml"
    path.write_text(stored(tmp_path, place).to_yaml(), encoding="utf-8")
    fill(place)
    for verb in ("capture", "distill"):
        with pytest.raises(SystemExit) as ended:
            main([verb, str(path)])
        assert ended.value.code == 4

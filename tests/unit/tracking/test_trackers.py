"""Trackers mirror, never stop a run, and send no secrets."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from raybrew.config.tracking import TrackingConfig, WandbConfig
from raybrew.tracking.base import Tracker, scalars
from raybrew.tracking.tensorboard import TensorBoardTracker
from raybrew.tracking.trackers import SafeTrackers, add_test, build_trackers
from raybrew.tracking.wandb import WandbTracker

needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")

HEAVY = ("torch", "ray", "transformers", "sklearn", "wandb", "tensorboard", "plotly", "numpy", "pandas")

TRAIN = {"step": 10, "epoch": 0.5, "time": 3.0, "kind": "train", "loss": 1.5, "loss/kd": 1.25, "learning_rate": 1e-4}
EVAL = {"step": 10, "epoch": 0.5, "time": 3.5, "kind": "eval", "eval/accuracy": 0.75, "eval/rows": 8, "best": True}
EVENT = {"step": 10, "kind": "event", "event": "note", "message": "hello"}


class Recorder:
    """Remembers calls and fails in those named."""

    def __init__(self, name: str, *fails: str) -> None:
        self.name = name
        self.fails = fails
        self.calls: list[Any] = []

    def _call(self, what: str, *values: Any) -> None:
        self.calls.append((what, *values))
        if what in self.fails:
            raise OSError(f"no {what}:\nhttps://me:secret@host is down")

    def start(self, run_id: str, config: Mapping[str, Any], folder: Path, resume: bool) -> None:
        self._call("start", run_id, config, folder, resume)

    def log(self, record: Mapping[str, Any]) -> None:
        self._call("log", record)

    def finish(self, status: str) -> None:
        self._call("finish", status)

    def state_dict(self) -> dict[str, Any]:
        self._call("state_dict")
        return {"id": self.name}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._call("load_state_dict", dict(state))


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "raybrew.tracking"]


@pytest.mark.parametrize("fails", ["start", "log", "finish", "state_dict", "load_state_dict"])
def test_a_failing_tracker_is_named_once_and_left_alone(
    fails: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = Recorder("bad", fails), Recorder("good")
    trackers = SafeTrackers([bad, good])
    trackers.load_state_dict({"good": {"id": "x"}})
    trackers.start("run-1", {"a": 1}, tmp_path, resume=False)
    for _ in range(3):
        trackers.log(TRAIN)
    state = trackers.state_dict()
    trackers.finish("done")
    said = messages(caplog)
    assert len(said) == 1
    assert said[0].startswith("tracker bad failed")
    assert "\n" not in said[0]
    assert "secret" not in said[0]
    assert bad.calls[-1][0] == fails, "not called again"
    assert [call[0] for call in good.calls] == [
        "load_state_dict", "start", "log", "log", "log", "state_dict", "finish",
    ]  # fmt: skip
    assert trackers.names == ("good",)
    assert state["good"] == {"id": "good"}


def test_interrupts_are_not_swallowed(tmp_path: Path) -> None:
    class Stop(Recorder):
        def log(self, record: Mapping[str, Any]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SafeTrackers([Stop("stop")]).log(TRAIN)


def test_configs_reach_trackers_without_secrets(tmp_path: Path) -> None:
    tracker = Recorder("one")
    SafeTrackers([tracker]).start("run", {"data": {"train": "https://me:pw@host/x"}, "password": "p"}, tmp_path)
    assert tracker.calls[0][2] == {"data": {"train": "https://***@host/x"}, "password": "***"}


def test_build_trackers() -> None:
    both = TrackingConfig(tensorboard=True, wandb=WandbConfig())
    assert build_trackers(both, experiment="e", job_type="distill").names == ("tensorboard", "wandb")
    assert build_trackers(both, experiment="e", job_type="distill", rank=1).names == ()
    assert build_trackers(TrackingConfig(), experiment="e", job_type="distill").names == ()
    assert isinstance(TensorBoardTracker(), Tracker)
    assert isinstance(WandbTracker(WandbConfig(), experiment="e", job_type="j"), Tracker)


def test_importing_trackers_and_tables_loads_nothing_heavy() -> None:
    modules = "raybrew.tracking.trackers, raybrew.tracking.jsonl, raybrew.records.runs, raybrew.reports.tables"
    code = f"import sys, {modules}; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.strip() == "[]"


def test_scalars() -> None:
    assert scalars(TRAIN) == {"train/loss": 1.5, "train/loss/kd": 1.25, "train/learning_rate": 1e-4}
    assert scalars(EVAL) == {"eval/accuracy": 0.75, "eval/rows": 8.0}
    assert scalars(EVENT) == {}


def test_tensorboard_files_hold_the_scalars_and_hide_repeated_steps(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for resume, steps in ((False, (10, 20, 30)), (True, (30, 40))):
        tracker = TensorBoardTracker()
        tracker.start("run", {}, tmp_path, resume)
        tracker.log(EVENT)
        for step in steps:
            tracker.log(TRAIN | {"step": step, "loss": float(step) + resume})
        tracker.finish("done" if resume else "failed")
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/loss/kd"} <= set(events.Tags()["scalars"])
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (10, 10),
        (20, 20),
        (30, 31),
        (40, 41),
    ]


@needs_wandb
def test_wandb_offline_says_how_to_sync_and_continues_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("RAYBREW_TEST_SECRET", "do-not-send-this")
    config = TrackingConfig(wandb=WandbConfig(mode="offline", project="tests", tags=("a",)))
    ids = []
    for resume in (False, True):
        trackers = build_trackers(config, experiment="exp", job_type="distill")
        trackers.start("distill-0123456789", {"note": "do-not-send-this", "lr": 1e-4}, tmp_path, resume)
        trackers.log(TRAIN | {"step": 10 + 10 * resume})
        trackers.log(EVAL | {"step": 10 + 10 * resume})
        trackers.log(EVENT)
        ids.append(trackers.state_dict()["wandb"]["id"])
        trackers.finish("done" if resume else "interrupted")
        assert trackers.names == ("wandb",), messages(caplog)
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    assert ids[0] == ids[1] == json.loads((tmp_path / "wandb" / "raybrew-run.json").read_text())["id"]
    assert ids[0].startswith("distill-0123456789-"), "two folders of one configuration need two W&B runs"
    said = messages(caplog)
    assert len(said) == 2
    for line, run in zip(said, runs, strict=True):
        assert "offline, as tracking.wandb.mode asks" in line
        assert f"wandb sync {run}" in line
    data = b"".join(path.read_bytes() for run in runs for path in run.rglob("*") if path.is_file())
    assert b"do-not-send-this" not in data
    assert b"train/loss/kd" in data
    assert b"best/accuracy" in data


@needs_wandb
def test_values_on_test_rows_join_the_wandb_run_of_a_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = WandbConfig(mode="offline", project="tests")
    test = {"metric": "accuracy", "value": 0.875, "metrics": {"accuracy": 0.875, "mcc": 0.5}, "rows": 400}
    add_test(TrackingConfig(wandb=config), experiment="exp", job_type="distill", folder=tmp_path, test=test)
    assert not (tmp_path / "wandb").exists(), "W&B does not know the run"
    tracker = WandbTracker(config, experiment="exp", job_type="distill")
    tracker.start(tmp_path.name, {}, tmp_path, resume=False)
    tracker.finish("done")
    add_test(TrackingConfig(wandb=config), experiment="exp", job_type="distill", folder=tmp_path, test=test)
    runs = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(runs) == 2
    until = time.monotonic() + 30
    while b"test/mcc" not in (data := b"".join(path.read_bytes() for path in runs[1].rglob("*.wandb"))):
        assert time.monotonic() < until, data
        time.sleep(0.2)  # W&B's own process writes the file
    assert b"test/accuracy" in data
    same = json.loads((tmp_path / "wandb" / "raybrew-run.json").read_text())["id"]
    assert all(same in path.name for path in runs)


@needs_wandb
@pytest.mark.parametrize(
    ("environ", "mode", "expected"),
    [
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": "x" * 40}, "online", ("offline", "WANDB_MODE=offline")),
        ({"WANDB_MODE": "disabled"}, "offline", ("disabled", "WANDB_MODE=disabled")),
        ({"WANDB_API_KEY": "x" * 40}, "offline", ("offline", "tracking.wandb.mode")),
        ({"WANDB_API_KEY": "x" * 40}, "auto", ("online", "")),
        ({}, "auto", ("offline", "no key")),
        ({}, "online", ("offline", "no key")),
    ],
)
def test_where_wandb_goes(
    environ: dict[str, str], mode: Any, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("WANDB_MODE", "WANDB_DISABLED", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    found, reason = WandbTracker(WandbConfig(mode=mode), experiment="e", job_type="j")._mode()
    assert found == expected[0]
    assert expected[1] in reason


@needs_wandb
def test_a_refused_login_turns_wandb_offline_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "too-short")
    tracker = WandbTracker(WandbConfig(mode="online"), experiment="e", job_type="distill")
    tracker.start("distill-1", {}, tmp_path, False)
    tracker.log(TRAIN)
    tracker.finish("done")
    (line,) = messages(caplog)
    assert "offline, because going online failed" in line
    assert "wandb sync" in line
    assert "too-short" not in line


@needs_wandb
def test_wandb_disabled_by_the_environment_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    trackers = build_trackers(TrackingConfig(wandb=WandbConfig()), experiment="e", job_type="distill")
    trackers.start("distill-1", {}, tmp_path)
    trackers.log(TRAIN)
    trackers.finish("done")
    assert list(tmp_path.iterdir()) == []
    assert len(messages(caplog)) == 1

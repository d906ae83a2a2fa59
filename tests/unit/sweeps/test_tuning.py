"""What Ray Tune tells of trials, as the conductor hears it; a trial that died at its pause; times. No cluster."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

from raybrew.records.sweeps import load_sweep
from raybrew.sweeps.progress import news
from raybrew.sweeps.trial import _has_paused
from raybrew.sweeps.tuning import _Asker, _Brain, _Listener
from raybrew.tracking.jsonl import MetricsLog
from unit.sweep_helpers import base, conductor_of

SWEEP = {"space": {"distill.temperature": [1, 2, 4]}, "search": "grid", "controls": False}


def _trial(name: str, folder: Path) -> Any:
    """As far as Tune's trials are looked at; its file of errors holds all of a trial, the last one at the end."""
    errors = (
        "Failure # 1 (occurred at now)\nThe actor died\nFailure # 2 (occurred at now)\nThe node was low on memory.\n"
    )
    (folder / "errors.txt").write_text(errors, encoding="utf-8")
    return types.SimpleNamespace(trial_id=name, error_file=str(folder / "errors.txt"))


def test_a_trial_whose_configuration_is_at_fault_is_not_tried_again(tmp_path: Path) -> None:
    conductor = conductor_of(base(tmp_path, SWEEP))
    brain = _Brain(conductor, lambda: None)
    asker, listener = _Asker(brain), _Listener(brain)
    for name, kind in (("a", "DivergenceError"), ("b", "OutOfMemoryError")):
        assert asker.suggest(name) is not None
        trial, run = _trial(name, tmp_path), brain.runs[name]
        failed = {"status": "failed", "error": f"{kind}: no", "error_type": kind, "seconds": 1.0}
        listener.on_trial_result(0, [], trial, failed)
        listener.on_trial_complete(0, [], trial)
        (found,) = (each for each in load_sweep(conductor.ledger.folder).trials if each.run == run)
        assert (found.status, found.error_type) == ("failed", kind)
        assert found.failed_for_good is (kind == "DivergenceError")


def test_every_end_of_a_trial_is_its_own(tmp_path: Path) -> None:
    """A process that is killed for its memory, an interruption and a pause are no end like any other."""
    conductor = conductor_of(base(tmp_path, SWEEP))
    brain = _Brain(conductor, lambda: None)
    asker, listener = _Asker(brain), _Listener(brain)
    runs = []
    for name in ("a", "b", "c"):
        spec = json.loads(asker.suggest(name)["spec"])
        assert spec["until"] is None
        runs.append(brain.runs[name])
    trials = {name: _trial(name, tmp_path) for name in ("a", "b", "c")}

    def reports(name: str, **result: Any) -> None:
        listener.on_trial_result(0, [], trials[name], result)

    reports("a", percent=50.0, quality=0.7)
    told = {run: (trial.status, trial.lost) for run, trial in conductor.trials.items()}
    listener.on_trial_recover(0, [], trials["a"])
    (line,) = news(conductor, told)
    assert line.endswith("its process is gone (The node was low on memory); goes on from its last checkpoint")
    listener.on_trial_error(0, [], trials["a"])  # after Tune has replaced its process as often as it does
    reports("b", status="done", value=0.8, seconds=1.0, overhead_inside=0.25)
    listener.on_trial_complete(0, [], trials["b"])
    reports("c", status="interrupted")
    listener.on_trial_complete(0, [], trials["c"])
    assert not conductor.running
    statuses = {trial.run: trial.status for trial in load_sweep(conductor.ledger.folder).trials}
    assert statuses == dict(zip(runs, ("failed", "done", "running"), strict=True))
    died = conductor.trials[runs[0]]
    assert str(died.error).startswith("ProcessDied: its process was lost more often than it is replaced")
    assert str(died.error).endswith("The node was low on memory")
    assert died.lost == 1
    assert died.reports == ((0.5, 0.7),)
    assert conductor.trials[runs[1]].overhead is not None
    # Both that did not end by themselves are tried again by the next session.
    again = conductor_of(base(tmp_path, SWEEP))
    assert sorted(again.queue) == sorted([runs[0], runs[2]])


def test_a_trial_pauses_where_it_is_told(tmp_path: Path) -> None:
    sweep = {**SWEEP, "trials": 2, "scheduler": {"kind": "pbt", "interval": 0.25}}
    conductor = conductor_of(base(tmp_path, sweep))
    brain = _Brain(conductor, lambda: None)
    asker, listener = _Asker(brain), _Listener(brain)
    assert json.loads(asker.suggest("a")["spec"])["until"] == 0.25
    trial, run = _trial("a", tmp_path), brain.runs["a"]
    paused = {"status": "paused", "step": 5, "share": 0.25, "value": 0.6, "seconds": 1.0, "overhead_inside": 0.1}
    listener.on_trial_result(0, [], trial, paused)
    listener.on_trial_complete(0, [], trial)
    found = conductor.trials[run]
    assert (found.status, found.paused_at, found.decided) == ("paused", (5, 0.25, 0.6), False)
    assert asker.suggest("b") is not None
    assert asker.suggest("c") is None, "the round waits for all members"
    assert not conductor.finished


def test_a_trial_that_died_at_its_pause_does_not_go_beyond(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert _has_paused(folder, 0.5, "accuracy") is None
    with MetricsLog(folder / "metrics.jsonl") as log:
        log.write({"step": 0, "kind": "event", "event": "started", "message": "begun", "total_steps": 20})
        for step in (5, 10):
            log.write({"step": step, "kind": "eval", "eval/accuracy": 0.1 * step})
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-00000009.pt").touch()
    assert _has_paused(folder, 0.5, "accuracy") is None, "the evaluation comes again"
    (folder / "checkpoints" / "step-00000010.pt").touch()
    assert _has_paused(folder, 0.5, "accuracy") == {"step": 10, "share": 0.5, "value": 1.0}
    assert _has_paused(folder, 0.75, "accuracy") is None
    assert _has_paused(folder, None, "accuracy") is None

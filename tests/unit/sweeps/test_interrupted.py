"""A sweep that is asked to stop at whatever moment: closed as interrupted, continued by the same call. No cluster."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raybrew.errors import Interrupted
from raybrew.pipeline.reporter import QuietReporter
from raybrew.records.sweeps import load_sweep
from raybrew.runtime import RayInfo
from raybrew.sweeps import run as module
from raybrew.sweeps import tuning
from raybrew.sweeps.conductor import Conductor
from raybrew.sweeps.tuning import _Brain, _Listener
from unit.sweep_helpers import base, end

SWEEP = {"space": {"distill.temperature": [1, 2]}, "search": "grid", "controls": False}
INFO = RayInfo(True, "here", None, 2.0, 0.0)


class Session:
    """What a sweep calls on its way; Ctrl-C comes where `at` says, once."""

    def __init__(self, at: str) -> None:
        self.at: str | None = at

    def passes(self, name: str, result: Any = None) -> Any:
        if name == self.at:
            self.at = None
            raise KeyboardInterrupt
        return result

    @contextlib.contextmanager
    def ray(self, purpose: str) -> Iterator[RayInfo]:
        self.passes("ray starts")
        yield INFO
        self.passes("ray stops")

    def trials(self, conductor: Conductor, info: RayInfo, changed: Any) -> str:
        while (job := conductor.next()) is not None:
            conductor.started(job.run)
            self.passes("a trial runs")
            end(conductor, job, 0.5)
        return "finished"


@pytest.mark.parametrize(
    ("at", "done"),
    [
        ("steps are counted", 0),
        ("teacher", 0),
        ("ray starts", 0),
        ("a trial runs", 0),
        ("ray stops", 2),
        ("times", 2),
        ("export", 2),
        ("report", 2),
    ],
)
def test_stopped_anywhere_it_is_interrupted_and_goes_on(
    at: str, done: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, reports = Session(at), []
    monkeypatch.setattr(module, "control_steps", lambda *given: session.passes("steps are counted"))
    monkeypatch.setattr(module, "prepare_teachers", lambda *given: session.passes("teacher", []))
    monkeypatch.setattr(module, "ray_runtime", session.ray)
    monkeypatch.setattr(module, "check_shared", lambda *given: None)
    monkeypatch.setattr(tuning, "room_for", lambda *given: 1)
    monkeypatch.setattr(tuning, "run_trials", session.trials)
    monkeypatch.setattr(module, "measure_alone", lambda *given: session.passes("times"))
    monkeypatch.setattr(module, "finish_sweep", lambda *given: session.passes("export"))
    monkeypatch.setattr(module, "mirror_summary", lambda *given: None)
    monkeypatch.setattr(module, "_report", lambda folder: reports.append(session.passes("report", folder)))
    experiment = base(tmp_path, SWEEP)
    trials = f"{done} trials are done"
    with pytest.raises(Interrupted, match=rf"^{trials} in .*sweep-.*; the same command continues the sweep$") as caught:
        module.sweep(experiment)
    assert caught.value.exit_code == 130
    folder = module.sweep_folder(experiment)
    closed = {"steps are counted": None, "report": "finished"}.get(at, "interrupted")
    assert load_sweep(folder).closed == closed
    said: list[str] = []

    class Told(QuietReporter):
        def say(self, message: str) -> None:
            said.append(message)

    result = module.sweep(experiment, reporter=Told())
    told = [line for line in said if "continuing" in line]
    assert told == ([] if at == "report" else [f"{done} of 2 trials done, continuing"])
    assert load_sweep(folder).closed == "finished"
    assert len(result.record.trials_of("done")) == 2
    assert reports == [folder], "once, by the second call"


def test_what_dies_while_the_sweep_stops_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal to the whole process group may end Ray before Tune has come to its end."""
    from unit.sweep_helpers import conductor_of

    conductor = conductor_of(base(tmp_path, SWEEP))
    job = conductor.next()
    assert job is not None
    conductor.started(job.run)
    brain = _Brain(conductor, lambda: None)
    brain.runs["a"] = job.run
    brain.stop("interrupted")
    _Listener(brain).on_trial_error(0, [], types.SimpleNamespace(trial_id="a", error_file=None))
    assert conductor.trials[job.run].status == "running", "it goes on when the sweep is continued"

    class Tuner:
        def __init__(self, *given: Any, **named: Any) -> None:
            pass

        def fit(self) -> None:
            raise RuntimeError("the cluster is gone")

    monkeypatch.setattr(tuning.tune, "Tuner", Tuner)
    monkeypatch.setattr(tuning, "room_for", lambda *given: 1)
    assert tuning.run_trials(conductor, INFO, lambda: None) == "interrupted"

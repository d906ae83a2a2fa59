"""Whatever a ledger holds: a sweep that is shown and continued, or one RunError that names the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fuzz import FIXED, broken_bytes, broken_values
from hypothesis import given, settings
from hypothesis import strategies as st

from raybrew.config import Experiment
from raybrew.errors import ConfigError, RunError
from raybrew.records.ledger import Ledger
from raybrew.records.sweeps import load_sweep
from raybrew.reports.sweep_page import sweep_section
from raybrew.reports.sweep_tables import leaderboard
from unit.sweep_helpers import base, conductor_of, drive

SPACE = {"distill.temperature": [1, 2], "train.learning_rate": {"loguniform": [1e-5, 1e-3]}}
REPLACEMENTS: tuple[Any, ...] = (
    *(None, True, 1, -1, 1.5, 10**30, float("nan"), float("inf"), "", "x", "nan", "../..", "/etc", "\0", "\ud800"),
    *([], {}, [1], [None], {"x": None}, [[1]], "candidate", "control", "done", "failed", "distill-0000000000"),
)
PIECES = (b"\n", b"\0", b"\xff", b'"', b"{", b"[1]\n", b"null\n", b"NaN", b"9" * 5000, b"[" * 3000)


def with_rounds(storage: Path) -> Experiment:
    """A population after its first round."""
    pbt = {"kind": "pbt", "interval": 0.4, "quantile": 0.5}
    found = base(storage, {"space": SPACE, "trials": 3, "scheduler": pbt, "controls": False})
    conductor = conductor_of(found)
    for number in range(4):
        job = conductor.next()
        assert job is not None
        conductor.started(job.run)
        conductor.reported(job.run, 0.4, 0.1 * number)
        conductor.paused(job.run, {"step": 4, "share": 0.4, "value": 0.1 * number, "seconds": 1.0})
    return found


def with_controls(storage: Path) -> Experiment:
    """A sweep with controls, a failed trial and an open one."""
    found = base(storage, {"space": SPACE, "trials": 4, "scheduler": "median"})
    outcomes: list[float | str | None] = [0.6, 0.7, "LossError: shapes differ", 0.8, None]
    drive(conductor_of(found), lambda job: outcomes.pop(0))
    return found


@pytest.fixture(scope="module")
def experiments(tmp_path_factory: pytest.TempPathFactory) -> list[Experiment]:
    """Sweeps whose ledgers have lines of all kinds."""
    return [make(tmp_path_factory.mktemp("ledgers")) for make in (with_controls, with_rounds)]


def folder_of(experiment: Experiment) -> Path:
    return Path(experiment.store.storage_path) / experiment.name / "sweep-x"


def check(experiment: Experiment) -> bool:
    """Whether the ledger is a sweep's; then it is shown, and continued in a copy of what it says."""
    ledger = folder_of(experiment) / "ledger.jsonl"
    before = ledger.read_bytes()
    try:
        record = load_sweep(folder_of(experiment))
        sweep_section(record, leaderboard(record))
        assert all(folder.parent == folder_of(experiment).parent for folder in record.run_folders())
        conductor = conductor_of(experiment)
        conductor.next()
        conductor.ranking()
        return True
    except (RunError, ConfigError):
        return False
    finally:
        ledger.write_bytes(before)


@settings(FIXED, max_examples=200)
@given(which=st.integers(0, 1), data=st.data())
def test_broken_ledgers(experiments: list[Experiment], which: int, data: st.DataObject) -> None:
    experiment = experiments[which]
    ledger = folder_of(experiment) / "ledger.jsonl"
    whole = ledger.read_bytes()
    if data.draw(st.booleans()):
        lines = data.draw(broken_values([json.loads(line) for line in whole.splitlines()], REPLACEMENTS))
        broken = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    else:
        broken = data.draw(broken_bytes(whole, PIECES))
    ledger.write_bytes(broken)
    try:
        check(experiment)
    finally:
        ledger.write_bytes(whole)


def test_whole_ledgers_pass_the_same_check(experiments: list[Experiment]) -> None:
    assert all(map(check, experiments))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"kind": "trial", "run": "../x", "number": 1, "role": "candidate", "values": {}, "seed": 0}, "`run`"),
        ({"kind": "trial", "run": "a", "number": "1", "role": "candidate", "values": {}, "seed": 0}, "`number`"),
        ({"kind": "trial", "run": "a", "number": 1, "role": "candidate", "values": [], "seed": 0}, "`values`"),
        ({"kind": "report", "run": "a", "share": None, "value": 1.0}, "`share`"),
        ({"kind": "close", "reason": 3}, "`reason`"),
        ({"kind": "sweep", "experiment": {"sweep": {"space": {"a": {"uniform": 1}}}}}, "`experiment`"),
        ({"kind": "interrupted", "run": "a", "seconds": "1"}, "`seconds`"),
        ({"kind": "end", "run": "a", "status": "done", "objectives": ["x"]}, "`objectives`"),
        ({"kind": "end", "run": "a", "status": "over"}, "`status`"),
        ({"kind": "teacher", "rows": None}, "`rows`"),
        ({"kind": "round", "number": 1, "scores": {}, "moves": [{"of": "a"}]}, "`moves`"),
        ({"kind": "round", "number": 1, "scores": {"a": 1.0}, "moves": []}, "names a trial"),
        ({"kind": "room"}, "`slots`"),
        ({"kind": "start", "run": "a", "at": "now"}, "`at`"),
        ({"at": 1.0}, "no kind"),
    ],
)
def test_a_line_that_no_sweep_writes_is_named(line: dict[str, Any], problem: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps({"kind": "sweep", "experiment": {}}) + "\n" + json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(RunError, match=f"line 2: .*{problem}"):
        Ledger(tmp_path).records()
    with pytest.raises(RunError, match="line 2"):
        load_sweep(tmp_path)

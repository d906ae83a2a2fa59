"""metrics.jsonl: strict JSON, no step twice and none missing after a crash."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybrew.errors import RunError
from raybrew.tracking.jsonl import MetricsLog, read_metrics


def train(step: int, loss: float = 1.0) -> dict[str, object]:
    return {"step": step, "epoch": step / 10, "time": 0.5 * step, "kind": "train", "loss": loss}


def steps(path: Path) -> list[int]:
    return [record["step"] for record in read_metrics(path)]


def test_lines_are_on_disk_at_once_and_append(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    log = MetricsLog(path)
    assert not path.parent.exists(), "the constructor only stores"
    log.write(train(1))
    log.sync()
    assert steps(path) == [1]
    log.write(train(2))
    assert steps(path) == [1, 2], "readable without close"
    log.close()
    with MetricsLog(path) as again:
        again.write(train(3))
    assert steps(path) == [1, 2, 3]


def test_not_finite_numbers_are_strict_json_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.write(train(1, math.nan) | {"a": math.inf, "b": -math.inf, "message": "nan"})

    def refuse(text: str) -> float:
        raise AssertionError(f"{text} is not JSON")

    json.loads(path.read_text(), parse_constant=refuse)
    (record,) = read_metrics(path)
    assert math.isnan(record["loss"])
    assert (record["a"], record["b"], record["message"]) == (math.inf, -math.inf, "nan")


def test_numpy_scalars_are_numbers_and_arrays_are_refused(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "m.jsonl") as log:
        log.write({"step": np.int64(3), "kind": "train", "loss": np.float32(0.5), "é": "ü"})
        with pytest.raises(TypeError, match="ndarray"):
            log.write({"step": 4, "loss": np.zeros(2)})
    assert read_metrics(tmp_path / "m.jsonl") == [{"step": 3, "kind": "train", "loss": 0.5, "é": "ü"}]


def test_truncate_keeps_everything_up_to_the_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    event = {"step": 20, "kind": "event", "event": "interrupted", "message": "stopped"}
    late = {"step": 25, "kind": "event", "event": "failed", "message": "out of memory"}
    log = MetricsLog(path)
    for record in (train(10), train(20), {"step": 20, "kind": "eval", "eval/accuracy": 0.5}, event, train(30), late):
        log.write(record)
    assert log.truncate_after(20) == 2
    log.write(train(30, 0.25))
    kept = read_metrics(path)
    assert [record["step"] for record in kept] == [10, 20, 20, 20, 30]
    assert kept[3] == event
    assert kept[4]["loss"] == 0.25
    assert log.truncate_after(30) == 0
    log.close()
    assert list(tmp_path.iterdir()) == [path], "no temporary files stay"


def test_truncate_without_a_file(tmp_path: Path) -> None:
    assert MetricsLog(tmp_path / "metrics.jsonl").truncate_after(5) == 0
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("torn", ['{"step": 30, "ki', '{"step": 30, "kind": "train", "note": "\u00e9', "\0\0\0\0"])
def test_a_torn_last_line_is_skipped_cut_and_written_over(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = "".join(json.dumps(train(step)) + "\n" for step in (10, 20))
    data = (whole + torn).encode()[:-1]  # the last character may itself be torn
    path.write_bytes(data)
    assert steps(path) == [10, 20]
    assert MetricsLog(path).truncate_after(100) == 1
    assert path.read_text() == whole
    path.write_bytes(data)
    with MetricsLog(path) as log:  # appending without truncating must not glue two lines together
        log.write(train(30))
    assert steps(path) == [10, 20, 30]


def test_a_last_line_that_lost_only_its_newline_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(train(10)))
    with MetricsLog(path) as log:
        log.write(train(20))
    assert steps(path) == [10, 20]


def test_damage_in_the_middle_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f"{json.dumps(train(1))}\ngarbage\n{json.dumps(train(2))}\n")
    with pytest.raises(RunError, match="line 2"):
        read_metrics(path)


def test_a_line_without_a_step_stops_truncation(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train"}\n{"step": 1}\n')
    with pytest.raises(RunError, match="step"):
        MetricsLog(path).truncate_after(1)


@settings(deadline=None, max_examples=50)
@given(written=st.integers(1, 40), checkpoint=st.integers(0, 40), cut=st.integers(0, 60))
def test_after_a_crash_anywhere_each_step_is_there_once(
    tmp_path_factory: pytest.TempPathFactory, written: int, checkpoint: int, cut: int
) -> None:
    """Die after `written` steps with `cut` bytes of the tail lost, resume from `checkpoint`, go on to 45."""
    path = tmp_path_factory.mktemp("crash") / "metrics.jsonl"
    checkpoint = min(checkpoint, written)
    with MetricsLog(path) as log:
        for step in range(1, written + 1):
            log.write(train(step))
    lines = path.read_bytes().splitlines(keepends=True)
    safe = sum(map(len, lines[:checkpoint]))  # `sync` put these on the disk before the checkpoint
    path.write_bytes(path.read_bytes()[: max(safe, len(b"".join(lines)) - cut)])
    with MetricsLog(path) as log:
        log.truncate_after(checkpoint)
        for step in range(checkpoint + 1, 46):
            log.write(train(step))
    assert steps(path) == list(range(1, 46))

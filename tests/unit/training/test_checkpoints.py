"""Checkpoints are whole or absent, damaged ones are passed over, and only as many as asked for stay."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from raybrew.errors import CheckpointError, EnvironmentProblem
from raybrew.training.checkpoints import Checkpoints


def state(step: int) -> dict[str, Any]:
    return {"weights": torch.full((1000,), float(step)), "best": {"value": 0.5}, "seconds": 1.5}


@pytest.fixture
def three(tmp_path: Path) -> Checkpoints:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    for step in (10, 20, 30):
        checkpoints.save(step, state(step))
    checkpoints.wait()
    return checkpoints


def test_the_newest_is_loaded_and_old_ones_go(three: Checkpoints) -> None:
    assert three.steps() == [20, 30]
    found = three.load_newest()
    assert found is not None
    step, loaded = found
    assert step == 30
    assert torch.equal(loaded["weights"], state(30)["weights"])
    assert loaded["best"] == {"value": 0.5}
    three.clear()
    assert three.steps() == []
    assert list(three.folder.iterdir()) == []


def test_nothing_to_load(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none", 1).load_newest() is None


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_checkpoint_is_passed_over(three: Checkpoints, damage: str) -> None:
    path = three.folder / "step-00000030.pt"
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes({"truncated": data[: len(data) // 2], "flipped": data, "empty": b""}[damage])
    found = three.load_newest()
    assert found is not None
    assert found[0] == 20
    for file in three.folder.glob("*.pt"):
        file.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged"):
        three.load_newest()


def test_a_file_that_was_being_written_is_no_checkpoint(three: Checkpoints) -> None:
    (three.folder / ".step-00000040.pt.123").write_bytes(b"half")
    assert three.steps() == [20, 30]
    three.save(50, state(50))
    three.wait()
    assert not list(three.folder.glob(".step-*"))


def test_a_full_disk_is_one_clear_error(three: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    three.save(60, state(60))
    with pytest.raises(EnvironmentProblem, match=r"step-00000060.pt: .*No space left") as caught:
        three.save(70, state(70))
    assert caught.value.exit_code == 4
    three.wait()  # an error is told once
    found = three.load_newest()
    assert found is not None
    assert found[0] == 30


def test_writing_goes_on_beside_the_training(three: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the training changes after `save` is not in the file, and the next save waits for this one."""
    go_on, order = threading.Event(), []
    write = torch.save

    def slow(value: Any, *rest: Any) -> None:
        assert go_on.wait(timeout=20)
        order.append(int(value["weights"][0]))
        write(value, *rest)

    monkeypatch.setattr(torch, "save", slow)
    content = {"weights": torch.full((1000,), 40.0), "inner": [{"moment": torch.zeros(3)}], "seconds": 1.5}
    three.save(40, content)
    content["weights"].fill_(-1)
    content["inner"][0]["moment"].fill_(-1)
    assert three.steps() == [20, 30]
    threading.Timer(0.2, go_on.set).start()
    three.save(50, state(50))
    assert order[0] == 40
    three.wait()
    loaded = three.load(40)
    assert loaded["weights"].eq(40).all()
    assert loaded["inner"][0]["moment"].eq(0).all()
    assert three.steps() == [40, 50]


def test_a_named_checkpoint_must_be_there(three: Checkpoints) -> None:
    assert three.load(20)["weights"].eq(20).all()
    with pytest.raises(CheckpointError, match=r"step-00000010.pt: not there or damaged"):
        three.load(10)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"0" * 32, "é".encode("latin-1") * 32])
def test_a_checkpoint_without_its_checksum_counts_as_none(three: Checkpoints, content: bytes | None) -> None:
    checksum = three.folder / "step-00000030.xxh3"
    checksum.unlink() if content is None else checksum.write_bytes(content)
    assert not three.has(30)
    found = three.load_newest()
    assert found is not None
    assert found[0] == 20


def test_a_checksum_is_on_the_disk_before_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        sync(descriptor)

    def replaced(source: Any, target: Any) -> None:
        done.append(f"name {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    told: list[int] = []
    checkpoints.save(1, state(1), lambda: told.append(len(done)))
    checkpoints.wait()
    checksum = next(i for i, line in enumerate(done) if line == "name step-00000001.xxh3")
    named = done.index("name step-00000001.pt")
    assert any(line.startswith("sync .step-00000001.xxh3") for line in done[:checksum])
    assert "sync checkpoints" in done[checksum:named]
    assert done[-1] == "sync checkpoints"
    assert told == [len(done)], "who waits for it is told when it is there"
    checkpoints.save(1, state(1))
    checkpoints.wait()
    assert len(done) == told[0], "a state is not replaced by itself: a kill in between would leave neither"


def test_a_folder_that_was_removed_does_not_come_back(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=1)
    checkpoints.save(1, state(1))
    with pytest.raises(EnvironmentProblem, match="cannot write checkpoint"):
        checkpoints.wait()
    assert not (tmp_path / "run").exists()

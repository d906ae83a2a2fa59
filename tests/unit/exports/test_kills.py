"""Exports that are killed (SIGKILL) leave the old one or none, and the same command then makes the new one.

A child forked from this process kills itself at the n-th time that it opens, makes, renames or removes something in the
export's folder or beside it. The points are drawn from all of a whole export, and are all of its last ones.
"""

from __future__ import annotations

import os
import random
import signal as signals
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from export_helpers import ROWS, make_model

import raybrew
from raybrew.exports import folder as export_folder
from raybrew.exports.formats import FORMATS

_EVENTS = {"open", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}
ROW = ROWS["text"][2:3]


def in_child(work: Callable[[], Any], folder: Path, die_at: int = 0) -> int | None:
    """Does `work` in a process that kills itself at touch `die_at` of what is in `folder`.

    Touches that it took, or None if it was killed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        touches = 0

        def touched(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal touches
            if event in _EVENTS and any(str(each).startswith(str(folder)) for each in arguments):
                touches += 1
                if touches == die_at:
                    os.kill(os.getpid(), signals.SIGKILL)

        sys.addaudithook(touched)
        try:
            work()
            os.write(writing, str(touches).encode())
        finally:
            os._exit(0)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signals.SIGKILL
        return None
    assert said, "the export failed"
    return int(said)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The student of an old export, and that of a new one."""
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("old", "new")):
        make_model(root / name, seed=seed)
    return {name: root / name for name in ("old", "new")}


@pytest.fixture(scope="module")
def scores(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """What each of the two says of a row."""
    root = tmp_path_factory.mktemp("scores")
    found = {name: raybrew.load_student(raybrew.export(model, root / name).path) for name, model in models.items()}
    values = {name: student.predict(ROW)[0]["scores"]["good"] for name, student in found.items()}
    assert abs(values["old"] - values["new"]) > 0.05
    return values


def export(model: Path, target: Path, formats: tuple[str, ...], force: bool) -> None:
    raybrew.export(model, target, formats=formats, evaluate=False, force=force)


def state_of(target: Path, scores: dict[str, float], formats: tuple[str, ...]) -> str:
    """`none`, or which model's export it is; all of its formats must answer as that model does."""
    if not target.exists():
        return "none"
    found = {raybrew.load_student(target, name).predict(ROW)[0]["scores"]["good"] for name in formats}
    first = min(scores, key=lambda name: abs(scores[name] - next(iter(found))))
    assert all(abs(value - scores[first]) < 0.01 for value in found), (found, scores)
    return first


def skip_without(formats: tuple[str, ...]) -> None:
    for package in {package for name in formats for package in FORMATS[name].packages}:
        pytest.importorskip(package, reason=f"needs the extra {FORMATS[formats[0]].extra}")


@pytest.mark.parametrize(("formats", "kills"), [(("hf",), 6), (("onnx",), 1), (("int8", "hf"), 2)])
def test_the_old_export_stays_until_the_new_one_is_there(
    tmp_path: Path, models: dict[str, Path], scores: dict[str, float], formats: tuple[str, ...], kills: int
) -> None:
    skip_without(formats)
    target = tmp_path / "out"
    touches = in_child(lambda: export(models["old"], target, formats, force=False), tmp_path)
    assert touches is not None
    assert touches > 10
    # Not of the last third, where the new one is there and the old one is being removed: that is below.
    points = random.Random(kills).sample(range(1, 2 * touches // 3), kills)
    for point in sorted(points, reverse=True):  # the latest first: then each finds what the one before has left
        assert in_child(lambda: export(models["new"], target, formats, force=True), tmp_path, point) is None
        assert state_of(target, scores, formats) == "old"
    export(models["new"], target, formats, force=True)
    assert state_of(target, scores, formats) == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_is_there_until_all_is(tmp_path: Path, models: dict[str, Path], scores: dict[str, float]) -> None:
    (tmp_path / "whole").mkdir()
    touches = in_child(lambda: export(models["new"], tmp_path / "whole" / "out", ("hf",), False), tmp_path / "whole")
    assert touches is not None
    seen = []
    for point in [*sorted(random.Random(7).sample(range(1, touches), 4)), touches]:
        parent = tmp_path / str(point)
        parent.mkdir()
        target = parent / "out"
        assert in_child(lambda target=target: export(models["new"], target, ("hf",), False), parent, point) is None
        seen.append(state_of(target, scores, ("hf",)))
        # The same command, although nothing is to be replaced: it makes the export, or finds that it is whole.
        export(models["new"], target, ("hf",), force=False)
        assert state_of(target, scores, ("hf",)) == "new"
        assert [path.name for path in parent.iterdir()] == ["out"]
    assert seen == sorted(seen, key=["none", "new"].index)
    assert (seen[0], seen[-1]) == ("none", "new")


def test_killed_between_two_renames(
    tmp_path: Path, models: dict[str, Path], scores: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Systems that cannot exchange two names in one step: macOS, NFS.
    monkeypatch.setattr(export_folder, "_exchange", lambda first, second: False)
    target = tmp_path / "out"
    export(models["old"], target, ("hf",), force=False)
    touches = in_child(lambda: export(models["new"], target, ("hf",), True), tmp_path)
    assert touches is not None
    seen = []
    for point in range(touches - 14, touches + 1, 2):
        export(models["old"], target, ("hf",), force=True)
        assert in_child(lambda: export(models["new"], target, ("hf",), True), tmp_path, point) is None
        seen.append(state_of(target, scores, ("hf",)))
    assert seen == sorted(seen, key=["old", "none", "new"].index)
    assert set(seen) >= {"old", "new"}
    export(models["new"], target, ("hf",), force=True)
    assert state_of(target, scores, ("hf",)) == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]

"""What commands leave on the device when they return, and when they say that it is free: nothing."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from commands import DEVICE, Project, work_on
from pretend import Accelerator, held_on_device

import raybrew
from raybrew.config import Experiment


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("given-back"))


def experiment_of(project: Project, **sections: Any) -> Experiment:
    data = {name: project.rows("classification", count) for name, count in (("train", 12), ("eval", 4), ("test", 5))}
    distill = {"matches": [{"loss": "hidden_mse"}]}
    return project.experiment(**{"data": data, "distill": distill, "train": {"max_steps": 2}, **sections})


def stored(project: Project) -> Experiment:
    return experiment_of(project, teacher={"model": project.teacher("classification"), "source": "auto"})


COMMANDS: dict[str, Callable[[Project], Any]] = {
    "finetune": lambda project: raybrew.finetune(
        experiment_of(project, teacher={"model": project.teacher("classification"), "finetune": {"max_steps": 2}})
    ),
    "capture": lambda project: raybrew.capture(stored(project)),
    "distil from a store": lambda project: raybrew.distill(stored(project)),
    "distil from a live teacher": lambda project: raybrew.distill(experiment_of(project)),
    "evaluate": lambda project: raybrew.evaluate(experiment_of(project), model="teacher"),
    "predict": lambda project: raybrew.predict(
        experiment_of(project), project.rows("classification", 3), model="teacher"
    ),
    "verify": lambda project: raybrew.verify_live(stored(project), 2),
    "inspect": lambda project: raybrew.inspect(project.teacher("classification"), latency=False),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_stays_on_the_device(project: Project, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's cache is emptied when nothing of the command's is on the device any more, and nothing comes after."""
    freed: list[int] = []
    moved: list[int] = []
    with Accelerator() as accelerator:
        work_on(DEVICE, monkeypatch)
        monkeypatch.setattr(accelerator, "note_wait", lambda operation: moved.append(1))
        monkeypatch.setattr("raybrew.models.devices.torch", _WithCuda(lambda: freed.append(len(held_on_device()))))
        result = COMMANDS[name](project)
        gc.collect()
        assert result is not None
        assert not held_on_device()
    assert set(freed) <= {0}
    if name not in ("inspect",):
        assert moved, "the command never used the device"

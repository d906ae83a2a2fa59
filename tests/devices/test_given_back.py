"""What commands leave on the device when they return, and when they say that it is free: nothing."""

from __future__ import annotations

import gc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import Project, work_on
from pretend import DEVICE, Accelerator, held_on_device

import raybrew
from raybrew.config import Experiment


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("given-back"))


def experiment_of(project: Project, **sections: Any) -> Experiment:
    data = {name: project.rows("classification", count) for name, count in (("train", 12), ("eval", 4), ("test", 5))}
    distill = {"matches": [{"loss": "hidden_mse"}]}
    train = {"max_steps": 2, "device": "cpu"}  # which `work_on` replaces
    teacher = {"model": project.teacher("classification"), "source": "live", "precision": "fp32", "device": "cpu"}
    given = {"data": data, "distill": distill, "train": train}
    return project.experiment(**given, teacher=teacher | sections)


COMMANDS: dict[str, Callable[[Project], Any]] = {
    "finetune": lambda project: raybrew.finetune(
        experiment_of(project, finetune={"max_steps": 2, "device": "cpu", "precision": "fp32"})
    ),
    "capture": lambda project: raybrew.capture(experiment_of(project, source="auto")),
    "distil from a store": lambda project: raybrew.distill(experiment_of(project, source="store")),
    "distil from a live teacher": lambda project: raybrew.distill(experiment_of(project)),
    "evaluate": lambda project: raybrew.evaluate(experiment_of(project), model="teacher"),
    "predict": lambda project: raybrew.predict(
        experiment_of(project), project.rows("classification", 3), model="teacher"
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_stays_on_the_device(project: Project, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the command's is on the device where torch is asked to empty its cache, nor when it has returned."""
    emptied: list[int] = []
    cuda = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, empty_cache=lambda: emptied.append(held_on_device())
    )
    with Accelerator() as accelerator:
        work_on(DEVICE, monkeypatch)
        monkeypatch.setattr("raybrew.models.devices.torch", SimpleNamespace(cuda=cuda, device=torch.device))
        result = COMMANDS[name](project)
        gc.collect()
        assert held_on_device() == 0
    assert accelerator.waits, "nothing was ever on the device"
    assert result
    assert set(emptied) == {0}

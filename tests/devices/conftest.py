"""Devices that tests here run on: a pretend accelerator always, a GPU where there is one (mark `gpu`)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# Small trainings in memory, which trajectories are tested with.
sys.path.append(str(Path(__file__).parents[1] / "trajectories"))


@pytest.fixture(params=["pretend", pytest.param("cuda", marks=pytest.mark.gpu)])
def machine(request: pytest.FixtureRequest) -> str:
    """What `on_machine` takes."""
    return str(request.param)

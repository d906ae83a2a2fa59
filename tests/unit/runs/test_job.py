"""What workers of one job must agree on when they start, and what is told of those that they replace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from raybrew.errors import CheckpointError
from raybrew.runs.hooks import describe_failure
from raybrew.runs.job import newest_state
from raybrew.training.checkpoints import Checkpoints
from raybrew.training.context import LocalContext


class Worker(LocalContext):
    """A worker whose peer of rank 0 says `first`."""

    def __init__(self, rank: int, first: int | None) -> None:
        super().__init__(torch.device("cpu"))
        self.rank = rank
        self.first = first

    def gather(self, value: Any) -> list[Any]:
        return [value if self.rank == 0 else self.first, value]


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    found = Checkpoints(tmp_path, keep=5)
    for step in (10, 20):
        found.save(step, {"step": step})
    found.wait()
    return found


def test_all_workers_go_on_from_what_rank_0_found(checkpoints: Checkpoints) -> None:
    """Though a dying process may still finish a newer checkpoint while they look."""
    assert newest_state(checkpoints, Worker(0, None)) == (20, {"step": 20})
    assert newest_state(checkpoints, Worker(1, 10)) == (10, {"step": 10})
    assert newest_state(checkpoints, Worker(1, None)) == (0, None)
    with pytest.raises(CheckpointError, match="step-00000030"):
        newest_state(checkpoints, Worker(1, 30))


def test_failures_are_told_in_one_line() -> None:
    assert describe_failure({}) == "the workers failed"
    assert describe_failure({"1": "Traceback\n  File x\nConnection reset by peer"}) == (
        "worker 1 failed (Connection reset by peer)"
    )
    assert describe_failure({"10": "late", "2": "x" * 500}).startswith("workers 2, 10 failed (xxx")
    assert len(describe_failure({"10": "late", "2": "x" * 500})) < 250

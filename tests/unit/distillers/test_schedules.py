"""Weight schedules: ends, direction, range, and progress."""

from __future__ import annotations

import pytest

from raybrew.catalog.projections import SCHEDULES
from raybrew.distillers.schedules import progress_of
from raybrew.errors import LossError

POINTS = [step / 20 for step in range(21)]
ENDS = {
    "constant": (1.0, 1.0, 1.0),
    "linear_decay": (1.0, 0.5, 0.0),
    "linear_growth": (0.0, 0.5, 1.0),
    "cosine_decay": (1.0, 0.5, 0.0),
    "cosine_growth": (0.0, 0.5, 1.0),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_start_middle_and_end(name: str) -> None:
    schedule = SCHEDULES[name].load()
    assert (schedule(0.0), schedule(0.5), schedule(1.0)) == pytest.approx(ENDS[name])


@pytest.mark.parametrize("name", SCHEDULES)
def test_factors_lie_between_zero_and_one_and_never_turn(name: str) -> None:
    values = [SCHEDULES[name].load()(point) for point in POINTS]
    assert all(0.0 <= value <= 1.0 for value in values)
    assert values in (sorted(values), sorted(values, reverse=True))


def test_decay_and_growth_mirror_each_other() -> None:
    for kind in ("linear", "cosine"):
        decay, growth = SCHEDULES[f"{kind}_decay"].load(), SCHEDULES[f"{kind}_growth"].load()
        assert [decay(point) + growth(point) for point in POINTS] == pytest.approx([1.0] * len(POINTS))


def test_cosine_is_flat_at_both_ends() -> None:
    decay = SCHEDULES["cosine_decay"].load()
    assert decay(0.0) - decay(0.01) < 0.001
    assert decay(0.99) - decay(1.0) < 0.001
    assert decay(0.25) == pytest.approx(0.8535534)


def test_progress_counts_finished_steps() -> None:
    assert [progress_of(step, 4) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize(("finished", "total"), [(0, 0), (-1, 4)])
def test_progress_of_nothing_is_refused(finished: int, total: int) -> None:
    with pytest.raises(LossError, match="total_steps >= 1"):
        progress_of(finished, total)

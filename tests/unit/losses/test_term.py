"""Counts of rows, tokens and pairs."""

from __future__ import annotations

import pytest
import torch

from raybrew.losses.term import LossTerm, Per, count_items


@pytest.mark.parametrize(
    ("per", "mask", "count"),
    [
        (Per.ROW, [1, 0, 1], 2),
        (Per.ROW, [[1, 1, 0], [0, 0, 0], [0, 1, 0]], 2),
        (Per.TOKEN, [1, 0, 1], 2),
        (Per.TOKEN, [[1, 1, 0], [0, 0, 0], [1, 1, 1]], 5),
        (Per.PAIR, [[1, 1, 0], [0, 0, 0], [1, 1, 1]], 13),
        (Per.PAIR, [[0, 0]], 0),
    ],
)
@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_counts(per: Per, mask: list[int], count: int, kind: torch.dtype) -> None:
    found = count_items(per, torch.tensor(mask, dtype=kind))
    assert found.dtype == torch.float32
    assert found.shape == ()
    assert float(found) == count


def test_a_term_is_sum_and_count() -> None:
    total, count = LossTerm(torch.tensor(3.0), torch.tensor(2.0))
    assert float(total / count) == 1.5

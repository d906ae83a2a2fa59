"""Batches out of encoded rows: contents, masks, errors of the background thread, and where a resumed run begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from raybrew.data.loader import StepLoader, collate
from raybrew.data.sampler import BatchSize, Order
from raybrew.signals import LOGITS


class Rows:
    def __init__(self, num_rows: int = 10, fail_at: int | None = None) -> None:
        self.lengths = (np.arange(num_rows) % 4 + 2).astype(np.int32)
        self.ids = np.arange(num_rows * 16, dtype=np.uint8).reshape(num_rows, 16)
        self.labels = (np.arange(num_rows) % 3 - 1).astype(np.int32)
        self.fail_at = fail_at

    def targets(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"labels": self.labels[rows].astype(np.int64)}

    def gather_padded(self, rows: np.ndarray, pad_token_id: int, length: int | None = None) -> dict[str, np.ndarray]:
        if self.fail_at is not None and self.fail_at in rows:
            raise OSError("the disk went away")
        longest = length or int(self.lengths[rows].max())
        mask = (np.arange(longest) < self.lengths[rows, None]).astype(np.int64)
        return {"input_ids": np.where(mask == 1, rows[:, None] + 1, pad_token_id), "attention_mask": mask}


def loader(data: Rows, **changes: Any) -> StepLoader:
    values: dict[str, Any] = {"rank": 0, "world_size": 1, "num_steps": 6, "pad_token_id": 0}
    order = Order(data.lengths, changes.pop("size", BatchSize(4)), seed=0)
    return StepLoader(data, order, **(values | changes))


def test_collate_pads_and_masks() -> None:
    batch = collate(np.array([0, 3]), Rows(), 0, lambda rows, length: {LOGITS: torch.from_numpy(rows).float()})
    assert batch.inputs["input_ids"].tolist() == [[1, 1, 0, 0, 0], [4, 4, 4, 4, 4]]
    assert batch.inputs["attention_mask"].sum(dim=1).tolist() == [2, 5]
    assert batch.inputs["labels"].tolist() == [-1, -1]
    assert batch.inputs["logits_mask"].tolist() == [1, 1]
    assert batch.teacher[LOGITS].tolist() == [0, 3]


def test_an_empty_share_weighs_nothing() -> None:
    batch = collate(np.array([], dtype=np.int64), Rows(), 0, None)
    assert batch.inputs["logits_mask"].tolist() == [0]
    assert batch.inputs["input_ids"].shape == (1, 2)


def test_rows_of_an_epoch_are_those_of_a_resumed_run_too() -> None:
    class Shown(Rows):
        def __init__(self, epoch: int) -> None:
            super().__init__()
            self.epoch = epoch

        def gather_padded(
            self, rows: np.ndarray, pad_token_id: int, length: int | None = None
        ) -> dict[str, np.ndarray]:
            batch = super().gather_padded(rows, pad_token_id, length)
            return {**batch, "input_ids": batch["input_ids"] + 100 * self.epoch * batch["attention_mask"]}

    whole = list(loader(Rows(), in_epoch=Shown))
    for step in whole:
        tokens = step.micro_batches[0].inputs["input_ids"]
        assert (tokens[tokens > 0] // 100 == step.epoch).all()
    resumed = list(loader(Rows(), in_epoch=Shown, start_step=4))
    assert [step.step for step in resumed] == [4, 5]
    for ours, theirs in zip(whole[4:], resumed, strict=True):
        torch.testing.assert_close(ours.micro_batches[0].inputs, theirs.micro_batches[0].inputs)


def test_thread_and_plain_iteration_agree_over_epochs() -> None:
    threaded, plain = list(loader(Rows())), list(loader(Rows()).steps())
    assert [step.step for step in threaded] == list(range(6))
    assert [step.epoch for step in threaded] == [0, 0, 0, 1, 1, 1]
    for ours, theirs in zip(threaded, plain, strict=True):
        assert np.array_equal(ours.micro_batches[0].rows, theirs.micro_batches[0].rows)
        assert ours.tokens == int(ours.micro_batches[0].inputs["attention_mask"].sum())
        assert ours.padded_tokens == ours.micro_batches[0].inputs["input_ids"].numel()


@pytest.mark.parametrize("start", [0, 2, 3, 5, 6])
def test_a_resumed_loader_goes_on_with_the_same_batches(start: int) -> None:
    whole = [step.micro_batches[0].rows.tolist() for step in loader(Rows()).steps()]
    rest = [step.micro_batches[0].rows.tolist() for step in loader(Rows(), start_step=start)]
    assert rest == whole[start:]


def test_an_error_in_the_thread_reaches_the_caller() -> None:
    with pytest.raises(OSError, match="the disk went away"):
        list(loader(Rows(fail_at=3)))


def test_leaving_early_ends_the_thread() -> None:
    import threading

    before = threading.active_count()
    for step in loader(Rows(), num_steps=1000, depth=2):
        if step.step == 3:
            break
    assert threading.active_count() == before


def test_ranks_see_different_rows_of_one_batch() -> None:
    ranks = [list(loader(Rows(), world_size=2, rank=rank).steps()) for rank in range(2)]
    for first, second in zip(*ranks, strict=True):
        rows = [set(part.micro_batches[0].rows.tolist()) for part in (first, second)]
        assert not rows[0] & rows[1]
        assert len(rows[0] | rows[1]) == first.num_rows

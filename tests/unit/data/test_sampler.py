"""The order of rows: every row once, the same for any number of workers, different every epoch, little padding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybrew.config.train import TrainConfig
from raybrew.data import sampler
from raybrew.data.sampler import BatchSize, Order, epoch_batches, num_batches, padded_length, share_of_rank
from raybrew.training.encoded import build_order, evaluation_steps, total_steps


@given(
    rows=st.integers(1, 300),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 5),
    world_size=st.integers(1, 5),
    micro=st.one_of(st.none(), st.integers(1, 10)),
)
def test_every_row_once_on_any_number_of_workers(
    rows: int, batch_size: int, seed: int, world_size: int, micro: int | None
) -> None:
    lengths = np.random.default_rng(seed).integers(1, 50, rows)
    batches = epoch_batches(lengths, BatchSize(batch_size), seed, epoch=0)
    assert len(batches) == num_batches(rows, batch_size)
    assert sorted(np.concatenate(batches)) == list(range(rows))
    assert sorted(map(len, batches))[:-1].count(batch_size) >= len(batches) - 2
    for batch in batches:
        shares = [share_of_rank(batch, rank, world_size, micro) for rank in range(world_size)]
        # DDP hangs if one worker runs fewer backward passes than another.
        assert len({len(share) for share in shares}) == 1
        assert sorted(np.concatenate([part for share in shares for part in share])) == sorted(batch)
        assert all(len(part) <= (micro or batch_size) for share in shares for part in share)


def test_order_is_a_function_of_seed_and_epoch() -> None:
    lengths = np.arange(100) % 17 + 1
    first = epoch_batches(lengths, BatchSize(8), seed=1, epoch=2)
    again = epoch_batches(lengths, BatchSize(8), seed=1, epoch=2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for seed, epoch in ((1, 3), (2, 2)):
        other = epoch_batches(lengths, BatchSize(8), seed, epoch)
        assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_rows_of_like_length_share_a_batch() -> None:
    lengths = np.random.default_rng(0).integers(2, 64, 20000)

    def padding_share(batches: list[np.ndarray]) -> float:
        padded = sum(int(lengths[batch].max()) * len(batch) for batch in batches)
        return 1 - int(lengths.sum()) / padded

    random = np.random.default_rng(1).permutation(len(lengths))
    shuffled = [random[start : start + 32] for start in range(0, len(random), 32)]
    assert padding_share(epoch_batches(lengths, BatchSize(32), seed=0, epoch=0)) < 0.05
    assert padding_share(shuffled) > 0.4
    # The order stays random: the mean length of batches has no trend over the epoch.
    means = [lengths[batch].mean() for batch in epoch_batches(lengths, BatchSize(32), seed=0, epoch=0)]
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.15


@given(rows=st.integers(1, 200), tokens=st.integers(1, 400), seed=st.integers(0, 3), bounded=st.booleans())
def test_token_budgets_hold_and_steps_are_counted_exactly(rows: int, tokens: int, seed: int, bounded: bool) -> None:
    lengths = np.random.default_rng(seed).integers(1, 50, rows)
    size = BatchSize(1, tokens, bounded)
    order, fresh = Order(lengths, size, seed), Order(lengths, size, seed)
    step = 0
    for epoch in range(4):
        batches = order.batches(epoch)
        assert sorted(np.concatenate(batches)) == list(range(rows))
        assert order.first_step(epoch) == step
        for index, batch in enumerate(batches):
            longest = padded_length(int(lengths[batch].max()), bounded)
            assert longest * len(batch) <= tokens or len(batch) == 1
            # A resumed run asks for any step first.
            assert fresh.epoch_of(step) == order.epoch_of(step) == epoch
            assert order.progress(step) == epoch + index / len(batches)
            step += 1
    for asked in (0, step // 2, step - 1):
        assert np.array_equal(Order(lengths, size, seed).batch(asked), fresh.batch(asked))


def test_token_budgets_leave_little_room() -> None:
    lengths = np.random.default_rng(0).integers(2, 64, 20000)
    batches = epoch_batches(lengths, BatchSize(1, 2048), seed=0, epoch=0)
    padded = [int(lengths[batch].max()) * len(batch) for batch in batches]
    assert 1 - int(lengths.sum()) / sum(padded) < 0.05
    assert sorted(padded)[len(padded) // 10] > 0.9 * 2048
    means = [lengths[batch].mean() for batch in batches]
    assert abs(np.corrcoef(np.arange(len(means)), means)[0, 1]) < 0.15


def test_bounded_lengths_are_few_and_near() -> None:
    found = [padded_length(length, bounded=True) for length in range(1, 513)]
    assert all(length <= padded < length + max(16, length / 4) for length, padded in enumerate(found, start=1))
    assert len(set(found)) == 16
    assert [padded_length(length, bounded=False) for length in (1, 17, 200)] == [1, 17, 200]


def test_epochs_are_counted_once_as_far_as_steps_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, built = [], []
    count, build = sampler.count_batches, sampler.epoch_batches
    monkeypatch.setattr(sampler, "count_batches", lambda *given: counted.append(given[3]) or count(*given))
    monkeypatch.setattr(sampler, "epoch_batches", lambda *given: built.append(given[3]) or build(*given))
    lengths = np.random.default_rng(0).integers(1, 50, 60)
    config = TrainConfig(epochs=30, batch_tokens=400, max_steps=5)
    order = build_order(lengths, config, tmp_path)
    assert (total_steps(order, config), evaluation_steps(order, config)) == (5, [5])
    assert (counted, built) == ([0], [])
    whole = config.model_copy(update={"max_steps": None, "epochs": 4})
    steps = total_steps(order, whole)
    ends = evaluation_steps(order, whole)
    assert counted == [0, 1, 2, 3]
    assert (order.epoch_of(steps), order.progress(steps)) == (4, 4.0)  # no fifth epoch is counted for it
    again = build_order(lengths, whole, tmp_path)  # another process, or the next trial
    assert (total_steps(again, whole), evaluation_steps(again, whole)) == (steps, ends)
    assert (counted, built) == ([0, 1, 2, 3], [])
    assert [len(Order(lengths, order.size, order.seed).batches(epoch)) for epoch in range(4)] == np.diff(
        [0, *ends]
    ).tolist()
    # Other sizes and seeds are counted on their own, and a damaged file is counted again.
    assert total_steps(build_order(lengths, whole.model_copy(update={"seed": 1}), tmp_path), whole) > 0
    assert len(counted) == 8
    for damage in (lambda text: "{", lambda text: text.replace(f"{steps}]", f"{steps + 1}]")):
        for path in tmp_path.iterdir():
            path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
        assert total_steps(build_order(lengths, whole, tmp_path), whole) == steps

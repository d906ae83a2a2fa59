"""Several tasks and teachers: the order of steps, the shared encoder, averages, and metrics of all."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

from raybrew.data.loader import StepLoader
from raybrew.data.multi_task import MultiTaskLoader, TaskSchedule
from raybrew.data.sampler import BatchSize, Order
from raybrew.distillers.ensemble import Average, request_of_member
from raybrew.errors import LossError, ModelError
from raybrew.models.composite import MultiTaskStudent
from raybrew.pipeline.evaluation import joint_metrics
from raybrew.signals import LOGITS, Signal

SIZES = {"large": 4000, "small": 40}


def schedule(tau: float = 0.5, seed: int = 3) -> TaskSchedule:
    return TaskSchedule({name: Order(np.full(rows, 5), BatchSize(8), seed) for name, rows in SIZES.items()}, tau, seed)


@pytest.mark.parametrize(("tau", "share"), [(1.0, 4000 / 4040), (0.5, 10 / 11), (0.0, 0.5)])
def test_tasks_are_drawn_by_size_to_the_tau(tau: float, share: float) -> None:
    drawn = Counter(task for _, task in schedule(tau).steps(0, 5000))
    assert drawn["large"] / 5000 == pytest.approx(share, abs=0.02)


def test_order_is_a_function_of_the_seed_from_any_step_on() -> None:
    whole = list(schedule().steps(0, 1200))
    assert [step for step, _ in whole] == list(range(1200))
    for start in (1, 504, 505, 506, 1100):  # an epoch has 505 steps
        assert list(schedule().steps(start, 1200)) == whole[start:]
        before = Counter(task for _, task in whole[:start])
        assert schedule().before(start) == {"large": before["large"], "small": before["small"]}
    assert list(schedule(seed=4).steps(0, 1200)) != whole
    assert schedule().epoch(0) != schedule().epoch(1)


class Rows:
    """Rows whose tokens tell which row they are."""

    def __init__(self, count: int, first: int) -> None:
        self.lengths = np.full(count, 3, np.int32)
        self.first = first
        self.ids = (np.arange(count)[:, None] + np.zeros(16)).astype(np.uint8)

    def gather_padded(self, rows: np.ndarray, pad_token_id: int, length: int | None = None) -> dict[str, np.ndarray]:
        return {
            "input_ids": np.repeat(rows[:, None] + self.first, 3, 1),
            "attention_mask": np.ones((len(rows), 3), int),
        }

    def targets(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"labels": np.zeros(len(rows), np.int64)}


def batches(start: int, rank: int, world_size: int, num_steps: int = 40) -> list[tuple[int, str, list[int]]]:
    """(step, task, rows of this worker) of every step from `start` on."""
    data = {"a": Rows(37, 0), "b": Rows(11, 1000)}
    orders = {name: Order(rows.lengths, BatchSize(4), 3) for name, rows in data.items()}
    order = TaskSchedule(orders, 0.5, 3)
    done = order.before(start)
    loaders = {
        name: StepLoader(
            rows,
            orders[name],
            rank=rank,
            world_size=world_size,
            num_steps=num_steps,
            start_step=done[name],
            pad_token_id=0,
        )
        for name, rows in data.items()
    }
    found = []
    for step in MultiTaskLoader(loaders, order, num_steps, start):
        micro = step.micro_batches[0].inputs
        found.append((step.step, step.task, micro["input_ids"][micro["logits_mask"] > 0, 0].tolist()))
    return found


def test_batches_do_not_depend_on_workers_or_on_where_one_resumes() -> None:
    whole = batches(0, 0, 1)
    assert len(whole) == 40
    assert {task for _, task, _ in whole} == {"a", "b"}
    assert all((row >= 1000) == (task == "b") for _, task, rows in whole for row in rows)
    for start in (1, 13, 27):  # an epoch has 13 steps
        assert batches(start, 0, 1) == whole[start:]
    halves = [batches(0, rank, 2) for rank in range(2)]
    for (step, task, rows), *parts in zip(whole, *halves, strict=True):
        assert all(part[:2] == (step, task) for part in parts)
        assert sorted(rows) == sorted(row for part in parts for row in part[2])


def test_each_task_sees_each_of_its_rows_once_in_as_many_steps_as_it_has_batches() -> None:
    small = [rows for _, task, rows in batches(0, 0, 1) if task == "b"]
    assert len(small) >= 3
    assert sorted(row for rows in small[:3] for row in rows) == list(range(1000, 1011))


def config(**changes: int) -> BertConfig:
    values = {
        "vocab_size": 30,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    return BertConfig(**{**values, **changes})


def test_models_of_different_heads_share_an_encoder_and_are_saved_whole(tmp_path: Path) -> None:
    student = MultiTaskStudent(
        {"tags": BertForTokenClassification(config(num_labels=5)), "rows": BertForSequenceClassification(config())}
    ).eval()
    assert student["tags"].bert is student["rows"].bert
    assert student["rows"].bert.pooler is not None
    inputs = {"input_ids": torch.tensor([[1, 2, 3]])}
    # transformers captures hidden states by hooks; the second model must not find those of the first.
    for task in ("tags", "rows", "tags"):
        assert len(student[task](**inputs, output_hidden_states=True).hidden_states) == 3
    student["rows"].bert.embeddings.word_embeddings.weight.data.add_(1)
    for task, kind in (("tags", BertForTokenClassification), ("rows", BertForSequenceClassification)):
        weights = student.weights_of(task, student.state_dict())
        student[task].save_pretrained(tmp_path / task, state_dict=weights)
        loaded, facts = kind.from_pretrained(tmp_path / task, output_loading_info=True)
        assert not facts["missing_keys"]
        assert not facts["unexpected_keys"]
        assert torch.allclose(loaded.eval()(**inputs).logits, student[task](**inputs).logits, atol=1e-6)


def test_models_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match="two: its model has other parts"):
        MultiTaskStudent(
            {
                "one": BertForSequenceClassification(config()),
                "two": BertForSequenceClassification(config(intermediate_size=8)),
            }
        )


def test_members_are_asked_for_their_own_layers_and_for_logits_if_they_weigh() -> None:
    request = {LOGITS, Signal("hidden", 2, "a"), Signal("hidden", 3, "b")}
    assert request_of_member(request, "a", 1.0) == (LOGITS, Signal("hidden", 2))
    assert request_of_member(request, "b", 0.0) == (Signal("hidden", 3),)
    assert request_of_member({Signal("hidden", 2, "a")}, "b") == ()
    assert request_of_member({LOGITS, Signal("hidden", 1)}, None) == (LOGITS, Signal("hidden", 1))


def test_average_of_members_is_what_a_single_teacher_would_say() -> None:
    one, two = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    hidden = torch.ones(1, 3, 4)
    said = {LOGITS.of("a"): one, LOGITS.of("b"): two, Signal("hidden", 1, "a"): hidden}
    found = Average({"a": 3.0, "b": 1.0})(said)
    assert set(found) == {LOGITS, Signal("hidden", 1, "a")}
    assert torch.allclose(found[LOGITS], torch.tensor([[1.5, 1.0]]))
    mixed = Average({"a": 3.0, "b": 1.0}, "probabilities", 2.0)(said)[LOGITS]
    wanted = 0.75 * (one / 2).softmax(-1) + 0.25 * (two / 2).softmax(-1)
    assert torch.allclose((mixed / 2).softmax(-1), wanted, atol=1e-6)
    with pytest.raises(LossError, match="same classes"):
        Average({"a": 1.0, "b": 1.0})({LOGITS.of("a"): one, LOGITS.of("b"): torch.zeros(1, 3)})


def test_metrics_of_several_tasks_have_a_mean_of_what_each_is_judged_by() -> None:
    found = {"a": {"accuracy": 0.5, "mcc": 0.1}, "b": {"accuracy": 0.9, "mcc": 0.7}, "c": {}}
    joint = joint_metrics(found, {"a": "accuracy", "b": "mcc", "c": "accuracy"})
    assert joint == pytest.approx({"mean": 0.6, "a.accuracy": 0.5, "a.mcc": 0.1, "b.accuracy": 0.9, "b.mcc": 0.7})
    assert joint_metrics({"": {"accuracy": 0.5}}, {"": "accuracy"}) == {"accuracy": 0.5}
    assert joint_metrics({"a": {}, "b": {}}, {"a": "accuracy", "b": "accuracy"}) == {}

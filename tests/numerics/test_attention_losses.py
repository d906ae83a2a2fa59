"""Attention losses against loops over heads, queries and keys, and against TextBrewer."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from raybrew.catalog.losses import MATCH_LOSSES
from raybrew.errors import LossError
from raybrew.losses import attention

NAMES = ["attention_mse", "attention_mse_sum", "attention_ce", "attention_ce_mean"]
SHAPES = [(2, 3, 5, 5), (1, 1, 1, 1), (3, 2, 4, 4), (3, 4, 4)]


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2


def right_padded(batch: int, length: int) -> Tensor:
    lengths = [length - (row * 3) % length for row in range(batch)]
    return torch.tensor([[1] * real + [0] * (length - real) for real in lengths])


def with_additive_mask(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores as BERT gives them: padded keys carry -10000."""
    padding = (1 - mask).unsqueeze(1) * -10000.0
    return scores + (padding.unsqueeze(1) if scores.dim() == 4 else padding)


def naive(name: str, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    teacher = teacher.double()
    if student.dim() == 3:
        student, teacher = student.unsqueeze(1), teacher.unsqueeze(1)
    if name == "attention_mse_sum":
        student, teacher = student.sum(1, keepdim=True), teacher.sum(1, keepdim=True)
    if name == "attention_ce_mean":
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    batch, heads, length, _ = student.shape
    values = []
    for row in range(batch):
        real = range(length) if mask is None else mask[row].nonzero().flatten().tolist()
        for head in range(heads):
            s, t = student[row, head], teacher[row, head]
            for query in real:
                if "mse" in name:
                    for key in real:
                        a, b = s[query, key], t[query, key]
                        if mask is None:
                            a, b = a * (a > -1e-3), b * (b > -1e-3)
                        values.append((a - b) ** 2)
                else:
                    student_total = sum(s[query, key].exp() for key in real)
                    teacher_total = sum(t[query, key].exp() for key in real)
                    value = torch.zeros((), dtype=torch.float64)
                    for key in real:
                        prob = t[query, key].exp() / teacher_total
                        if mask is None:
                            prob = prob * (t[query, key] > -1e-3)
                        value = value - prob * (s[query, key].exp() / student_total).log()
                    values.append(value)
    return sum(values[1:], values[0]) / len(values)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_against_loops(name: str, shape: tuple[int, ...], masked: bool, same_value_and_gradient: Callable) -> None:
    teacher = draw(shape, 2)
    mask = right_padded(shape[0], shape[-1]) if masked else None
    same_value_and_gradient(
        lambda s: MATCH_LOSSES[name].load()(s, teacher, mask),
        lambda s: naive(name, s, teacher, mask),
        draw(shape, 1),
        tolerance=5e-6,
        precision=torch.float64,
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [*SHAPES, (4, 6, 16, 16)])
@pytest.mark.parametrize("masked", [False, True])
def test_against_textbrewer(
    name: str,
    shape: tuple[int, ...],
    masked: bool,
    textbrewer: ModuleType,
    same_value_and_gradient: Callable,
) -> None:
    student, teacher, mask = draw(shape, 1), draw(shape, 2), None
    if masked:
        if len(shape) == 3 and name in ("attention_mse", "attention_ce"):
            pytest.skip("with a mask TextBrewer's attention_mse and attention_ce need a head dimension")
        mask = right_padded(shape[0], shape[-1])
        if "ce" in name:
            student, teacher = with_additive_mask(student, mask), with_additive_mask(teacher, mask)
    same_value_and_gradient(
        lambda s: MATCH_LOSSES[name].load()(s, teacher, mask),
        lambda s: textbrewer.MATCH_LOSS_MAP[name](s, teacher, mask=mask),
        student,
    )


@pytest.mark.parametrize("name", NAMES)
def test_no_mask_is_not_a_mask_of_ones(name: str) -> None:
    student, teacher = draw((2, 3, 5, 5), 1), draw((2, 3, 5, 5), 2)
    loss = MATCH_LOSSES[name].load()
    guessed, given = loss(student, teacher), loss(student, teacher, torch.ones(2, 5))
    assert float(guessed.count) == float(given.count)
    assert not torch.isclose(guessed.sum, given.sum, rtol=1e-2)
    positive = loss(student.abs() + 0.1, teacher.abs() + 0.1)
    torch.testing.assert_close(positive, loss(student.abs() + 0.1, teacher.abs() + 0.1, torch.ones(2, 5)))


@pytest.mark.parametrize("name", ["attention_ce", "attention_ce_mean"])
def test_padded_keys_are_no_part_of_the_softmax(name: str) -> None:
    student, teacher, mask = draw((2, 3, 5, 5), 1), draw((2, 3, 5, 5), 2), right_padded(2, 5)
    loss = MATCH_LOSSES[name].load()
    torch.testing.assert_close(
        loss(student, teacher, mask), loss(with_additive_mask(student, mask), with_additive_mask(teacher, mask), mask)
    )
    student[1, ..., -1], teacher[1, ..., -1, :] = math.nan, math.inf
    assert torch.isfinite(loss(student, teacher, mask).sum)


@pytest.mark.parametrize("name", ["attention_mse_sum", "attention_ce_mean"])
def test_heads_may_differ(name: str, same_value_and_gradient: Callable) -> None:
    teacher, mask = draw((2, 6, 4, 4), 2), right_padded(2, 4)
    merged = teacher.sum(1) if name == "attention_mse_sum" else teacher.mean(1)
    same_value_and_gradient(
        lambda s: MATCH_LOSSES[name].load()(s, teacher, mask),
        lambda s: naive(name, s.sum(1) if name == "attention_mse_sum" else s.mean(1), merged, mask),
        draw((2, 3, 4, 4), 1),
        tolerance=5e-6,
        precision=torch.float64,
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: attention.attention_mse(s, s[:, :1]), ["attention_mse", "(2, 3, 4, 4)", "(2, 1, 4, 4)", "heads"]),
        (lambda s: attention.attention_ce(s, s[:, :1]), ["attention_ce", "heads"]),
        (lambda s: attention.attention_mse(s[..., :2], s), ["(2, 3, 4, 2)", "length"]),
        (lambda s: attention.attention_ce(s, s, torch.ones(2, 3)), ["mask", "(2, 3)", "(2, 4)"]),
        (lambda s: attention.attention_mse_sum(s, s[..., :2, :2]), ["attention_mse_sum", "same tokens"]),
    ],
)
def test_errors_name_what_was_given(call: Callable[[Tensor], object], words: list[str]) -> None:
    with pytest.raises(LossError) as caught:
        call(draw((2, 3, 4, 4), 1))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("name", ["attention_ce", "attention_ce_mean"])
def test_padded_keys_as_textbrewer_keeps_them(
    name: str, textbrewer: ModuleType, same_value_and_gradient: Callable[..., None]
) -> None:
    """Scores without a mask of their own, probabilities of newer models for instance, spread over padding too."""
    student, teacher, mask = draw((3, 2, 5, 5), 1), draw((3, 2, 5, 5), 2), right_padded(3, 5)
    mine, other = getattr(attention, name), textbrewer.MATCH_LOSS_MAP[name]
    same_value_and_gradient(
        lambda states: mine(states, teacher, mask, padded_keys=True),
        lambda states: other(states, teacher, mask),
        student,
    )
    excluded, kept = mine(student, teacher, mask), mine(student, teacher, mask, padded_keys=True)
    assert abs(float(excluded.sum - kept.sum)) > 0.1


@pytest.mark.parametrize("shape", SHAPES)
def test_probabilities_are_compared_pair_by_pair(shape: tuple[int, ...]) -> None:
    student, teacher = draw(shape, 1).softmax(-1).requires_grad_(), draw(shape, 2).softmax(-1)
    mask = right_padded(shape[0], shape[-1])
    term = attention.attention_probs_mse(student, teacher, mask)
    total, pairs = torch.zeros((), dtype=torch.float64), 0
    heads = 1 if len(shape) == 3 else shape[1]
    for row in range(shape[0]):
        for query in range(shape[-1]):
            for key in range(shape[-1]):
                if mask[row, query] and mask[row, key]:
                    pairs += 1
                    for head in range(heads):
                        place = (row, query, key) if len(shape) == 3 else (row, head, query, key)
                        total = total + (student[place].double() - teacher[place].double()) ** 2 / heads
    assert int(term.count) == pairs > 0
    torch.testing.assert_close(term.sum.double(), total, rtol=1e-5, atol=1e-7)
    (expected,) = torch.autograd.grad(total, student)
    (found,) = torch.autograd.grad(term.sum, student)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    with pytest.raises(LossError, match="attention_probs_mse"):
        attention.attention_probs_mse(torch.ones(2, 3), torch.ones(2, 3))

"""MiniLM's relations against loops over heads, queries and keys."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raybrew.errors import LossError
from raybrew.losses.relations import relation_kl


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def right_padded(batch: int, length: int) -> Tensor:
    lengths = [length - (row * 2) % length for row in range(batch)]
    return torch.tensor([[1] * real + [0] * (length - real) for real in lengths])


def relation(queries: Tensor, keys: Tensor, query: int, real: list[int]) -> list[Tensor]:
    scores = [(queries[query].dot(keys[key]) / math.sqrt(queries.shape[1])).exp() for key in real]
    return [score / sum(scores[1:], scores[0]) for score in scores]


def naive(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
    """Pairs of (batch, heads, length, head_dim)."""
    batch, heads, length, _ = student[0].shape
    values = []
    for row in range(batch):
        real = list(range(length)) if mask is None else mask[row].nonzero().flatten().tolist()
        for head in range(heads):
            for query in real:
                q = relation(student[0][row, head], student[1][row, head], query, real)
                p = relation(teacher[0].double()[row, head], teacher[1].double()[row, head], query, real)
                values.append(sum(a * (a.log() - b.log()) for a, b in zip(p, q, strict=True)))
    return torch.stack(values).mean()  # type: ignore[arg-type]


def split(vectors: Tensor, num_heads: int) -> Tensor:
    """(batch, length, dim) cut into heads one by one."""
    size = vectors.shape[-1] // num_heads
    return torch.stack([vectors[..., head * size : (head + 1) * size] for head in range(num_heads)], dim=1)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(2, 2, 4, 3), (1, 1, 1, 2), (3, 2, 3, 4)])
def test_one_set_of_vectors(masked: bool, shape: tuple[int, int, int, int], same_value_and_gradient: Callable) -> None:
    mask = right_padded(shape[0], shape[2]) if masked else None
    teacher = draw((*shape[:3], 7), 2)
    same_value_and_gradient(
        lambda s: relation_kl(s, teacher, mask),
        lambda s: naive((s, s), (teacher, teacher), mask),
        draw(shape, 1),
        tolerance=5e-6,
        precision=torch.float64,
    )


@pytest.mark.parametrize("masked", [False, True])
def test_queries_with_keys(masked: bool, same_value_and_gradient: Callable) -> None:
    mask = right_padded(2, 4) if masked else None
    teacher = (draw((2, 2, 4, 5), 3), draw((2, 2, 4, 5), 4))
    same_value_and_gradient(
        lambda q, k: relation_kl((q, k), teacher, mask),
        lambda q, k: naive((q, k), teacher, mask),
        draw((2, 2, 4, 3), 1),
        draw((2, 2, 4, 3), 2),
        tolerance=5e-6,
        precision=torch.float64,
    )


def test_hidden_states_are_split_into_relation_heads(same_value_and_gradient: Callable) -> None:
    mask, teacher = right_padded(2, 4), draw((2, 4, 8), 2)
    same_value_and_gradient(
        lambda s: relation_kl(s, teacher, mask, num_heads=2),
        lambda s: naive((split(s, 2),) * 2, (split(teacher, 2),) * 2, mask),
        draw((2, 4, 6), 1),
        tolerance=5e-6,
        precision=torch.float64,
    )


def test_heads_are_regrouped() -> None:
    student, teacher = draw((2, 4, 12), 1), draw((2, 4, 8), 2)
    plain = relation_kl(student, teacher, num_heads=2)
    regrouped = relation_kl(split(student, 6), split(teacher, 4), num_heads=2)
    torch.testing.assert_close(plain, regrouped)


def test_equal_relations_cost_nothing() -> None:
    vectors = draw((2, 2, 4, 3), 1)
    assert float(relation_kl(vectors, vectors).sum) == 0.0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: relation_kl(s, s[:, :1]), ["(2, 2, 4, 3)", "(2, 1, 4, 3)", "num_heads"]),
        (lambda s: relation_kl(s[:, 0], s[:, 0]), ["num_heads"]),
        (lambda s: relation_kl(s[:, 0], s[:, 0], num_heads=2), ["num_heads=2", "3"]),
        (lambda s: relation_kl(s[0, 0], s), ["(4, 3)"]),
        (lambda s: relation_kl(s, s, torch.ones(2, 2)), ["mask", "(2, 2)", "(2, 4)"]),
        (lambda s: relation_kl([s], s), ["expected one layer or two", "1"]),
    ],
)
def test_errors_name_what_was_given(call: Callable[[Tensor], object], words: list[str]) -> None:
    with pytest.raises(LossError) as caught:
        call(draw((2, 2, 4, 3), 1))
    for word in words:
        assert word in str(caught.value)

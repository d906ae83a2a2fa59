"""Losses on hidden states against loops over rows and tokens, and against TextBrewer."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from raybrew.catalog.losses import MATCH_LOSSES
from raybrew.errors import LossError
from raybrew.losses import features

SHAPES = [(3, 5, 4), (1, 1, 6), (2, 8, 3), (4, 6, 6)]
NAMES = ["hidden_mse", "cos", "pkd", "gram", "mmd"]


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def right_padded(batch: int, length: int) -> Tensor:
    """Rows of 1 to `length` real tokens, the first of full length."""
    lengths = [length - (row * 3) % length for row in range(batch)]
    return torch.tensor([[1] * real + [0] * (length - real) for real in lengths])


def scattered(batch: int, length: int) -> Tensor:
    mask = right_padded(batch, length).flip(1)
    mask[:, 0] = 1
    return mask


def naive(name: str, first: Tensor, second: Tensor, teachers: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
    """Mean loss of one row after another, from the real tokens alone."""
    sums, counts = [], 0
    for row in range(first.shape[0]):
        real = torch.arange(first.shape[1]) if mask is None else mask[row].nonzero().flatten()
        if len(real) == 0:
            continue
        a, b = first[row][real], second[row][real]
        x, y = (teacher.double()[row][real] for teacher in teachers)
        if name == "hidden_mse":
            sums += [sum((a[i][k] - x[i][k]) ** 2 for k in range(a.shape[1])) / a.shape[1] for i in range(len(real))]
            counts += len(real)
        elif name == "cos":
            for token in range(len(real)):
                dot = sum(a[token][k] * x[token][k] for k in range(a.shape[1]))
                sums.append(1 - dot / (a[token].pow(2).sum().sqrt() * x[token].pow(2).sum().sqrt()))
            counts += len(real)
        elif name == "pkd":
            one, other = a[0] / a[0].pow(2).sum().sqrt(), x[0] / x[0].pow(2).sum().sqrt()
            sums.append(((one - other) ** 2).sum())
            counts += 1
        elif name == "gram":
            total = 0.0
            for i in range(a.shape[1]):
                for j in range(b.shape[1]):
                    ours = sum(a[k][i] * b[k][j] for k in range(len(real))) / len(real)
                    theirs = sum(x[k][i] * y[k][j] for k in range(len(real))) / len(real)
                    total = total + (ours - theirs) ** 2
            sums.append(total / (a.shape[1] * b.shape[1]))
            counts += 1
        elif name == "mmd":
            for i in range(len(real)):
                sums += [(a[i].dot(b[j]) / a.shape[1] - x[i].dot(y[j]) / x.shape[1]) ** 2 for j in range(len(real))]
            counts += len(real) ** 2
    return sum(sums[1:], sums[0]) / counts


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", [None, right_padded, scattered])
def test_against_loops(
    name: str, shape: tuple[int, int, int], padding: Callable | None, same_value_and_gradient: Callable
) -> None:
    mask = None if padding is None else padding(*shape[:2])
    teacher = draw(shape, 2)
    same_value_and_gradient(
        lambda s: MATCH_LOSSES[name].load()(s, teacher, mask),
        lambda s: naive(name, s, s, (teacher, teacher), mask),
        draw(shape, 1),
        tolerance=5e-6,
        precision=torch.float64,
    )


@pytest.mark.parametrize("name", ["gram", "mmd"])
@pytest.mark.parametrize("padding", [None, right_padded])
def test_two_layers_against_loops(name: str, padding: Callable | None, same_value_and_gradient: Callable) -> None:
    mask = None if padding is None else padding(3, 5)
    teachers = (draw((3, 5, 4), 3), draw((3, 5, 4), 4))
    same_value_and_gradient(
        lambda a, b: MATCH_LOSSES[name].load()([a, b], teachers, mask),
        lambda a, b: naive(name, a, b, teachers, mask),
        draw((3, 5, 4), 1),
        draw((3, 5, 4), 2),
        tolerance=5e-6,
        precision=torch.float64,
    )


def test_mmd_of_different_widths_against_loops(same_value_and_gradient: Callable) -> None:
    mask, teacher = right_padded(3, 5), draw((3, 5, 9), 2)
    same_value_and_gradient(
        lambda s: features.mmd(s, teacher, mask),
        lambda s: naive("mmd", s, s, (teacher, teacher), mask),
        draw((3, 5, 4), 1),
        tolerance=5e-6,
        precision=torch.float64,
    )


@pytest.mark.parametrize("name", [*NAMES, "fsp", "nst"])
@pytest.mark.parametrize("shape", [*SHAPES, (8, 32, 24)])
@pytest.mark.parametrize("masked", [False, True])
def test_against_textbrewer(
    name: str,
    shape: tuple[int, int, int],
    masked: bool,
    textbrewer: ModuleType,
    same_value_and_gradient: Callable,
) -> None:
    mask = right_padded(*shape[:2]) if masked else None
    teacher = draw(shape, 2)
    two = MATCH_LOSSES[name].pairs
    # With a mask TextBrewer divides mmd by the padded length, without one by the width.
    options = {"divide_by": "length"} if masked and name in ("mmd", "nst") else {}
    same_value_and_gradient(
        lambda s: MATCH_LOSSES[name].load()(s, teacher, mask, **options),
        lambda s: textbrewer.MATCH_LOSS_MAP[name](
            [s, s] if two else s, [teacher, teacher] if two else teacher, mask=mask
        ),
        draw(shape, 1),
    )


@pytest.mark.parametrize("name", ["gram", "mmd"])
@pytest.mark.parametrize("masked", [False, True])
def test_two_layers_against_textbrewer(
    name: str, masked: bool, textbrewer: ModuleType, same_value_and_gradient: Callable
) -> None:
    shape = (4, 7, 7)  # as wide as long: mmd agrees with TextBrewer under a mask too
    mask = right_padded(4, 7) if masked else None
    teachers = [draw(shape, 3), draw(shape, 4)]
    same_value_and_gradient(
        lambda a, b: MATCH_LOSSES[name].load()((a, b), teachers, mask),
        lambda a, b: textbrewer.MATCH_LOSS_MAP[name]([a, b], teachers, mask=mask),
        draw(shape, 1),
        draw(shape, 2),
    )


def test_mmd_does_not_change_with_the_padding() -> None:
    student, teacher, mask = draw((2, 6, 4), 1), draw((2, 6, 4), 2), torch.tensor([[1, 1, 1, 0, 0, 0]] * 2)
    torch.testing.assert_close(
        features.mmd(student, teacher, mask).sum, features.mmd(student[:, :4], teacher[:, :4], mask[:, :4]).sum
    )
    by_length = features.mmd(student, teacher, mask, divide_by="length").sum
    trimmed = features.mmd(student[:, :4], teacher[:, :4], mask[:, :4], divide_by="length").sum
    assert float(trimmed) == pytest.approx(float(by_length) * (6 / 4) ** 2, rel=1e-5)


@pytest.mark.parametrize("pooled", [(True, True), (True, False), (False, True)])
def test_pkd_of_pooled_vectors(
    pooled: tuple[bool, bool], textbrewer: ModuleType, same_value_and_gradient: Callable
) -> None:
    student, teacher = draw((4, 6), 1), draw((4, 6), 2)
    if not pooled[0]:
        student = student.unsqueeze(1).expand(4, 3, 6).clone()
    if not pooled[1]:
        teacher = teacher.unsqueeze(1).expand(4, 3, 6).clone()
    same_value_and_gradient(
        lambda s: features.pkd(s, teacher), lambda s: textbrewer.MATCH_LOSS_MAP["pkd"](s, teacher), student
    )
    rows = torch.tensor([1, 0, 1, 0])
    same_value_and_gradient(
        lambda s: features.pkd(s, teacher, rows),
        lambda s: textbrewer.MATCH_LOSS_MAP["pkd"](s[rows == 1], teacher[rows == 1]),
        student,
    )


def test_pkd_takes_the_first_real_token() -> None:
    student, teacher = draw((2, 4, 3), 1), draw((2, 4, 3), 2)
    left = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    expected = features.pkd(torch.stack([student[0, 2], student[1, 1]]), torch.stack([teacher[0, 2], teacher[1, 1]]))
    assert torch.equal(features.pkd(student, teacher, left).sum, expected.sum)
    student[:, 0], teacher[:, 0] = math.nan, math.inf
    assert torch.isfinite(features.pkd(student, teacher, left).sum)


@pytest.mark.parametrize("lengths", [(5, 7), (7, 5), (6, 6)])
@pytest.mark.parametrize("name", ["pkd", "gram"])
def test_teacher_rows_of_other_tokens(name: str, lengths: tuple[int, int], same_value_and_gradient: Callable) -> None:
    """Each side under its own mask, against rows cut to their real tokens; a row without any on one side is none."""
    student, teacher = draw((4, lengths[0], 3), 1), draw((4, lengths[1], 3), 2)
    mask, teacher_mask = right_padded(4, lengths[0]), scattered(4, lengths[1])
    teacher_mask[2] = 0
    loss = MATCH_LOSSES[name].load()

    def row_by_row(states: Tensor) -> Tensor:
        rows = []
        for row in (0, 1, 3):
            given, wanted = states[row][mask[row] == 1], teacher[row].double()[teacher_mask[row] == 1]
            if name == "gram":
                sides = [(side.T @ side) / len(side) for side in (given, wanted)]
                rows.append((sides[0] - sides[1]).square().mean())
            else:
                rows.append((given[0] / given[0].norm() - wanted[0] / wanted[0].norm()).square().sum())
        return torch.stack(rows).mean()

    teacher[teacher_mask == 0] = math.nan
    same_value_and_gradient(
        lambda s: loss(s, teacher, mask, teacher_mask=teacher_mask), row_by_row, student, precision=torch.float64
    )


def test_without_the_teachers_mask() -> None:
    """The student's serves a teacher of as many tokens; `gram` of more or fewer tokens needs it, `pkd` does not."""
    student, teacher, mask = draw((3, 5, 4), 1), draw((3, 5, 4), 2), right_padded(3, 5)
    longer = torch.cat([teacher, teacher[:, :2]], dim=1)
    for name in ("gram", "pkd"):
        loss = MATCH_LOSSES[name].load()
        assert torch.equal(loss(student, teacher, mask).sum, loss(student, teacher, mask, teacher_mask=mask).sum)
    assert torch.equal(features.pkd(student, longer, mask).sum, features.pkd(student[:, 0], longer[:, 0]).sum)
    everywhere = torch.ones(3, 7)
    torch.testing.assert_close(
        features.gram(student, longer), features.gram(student, longer, torch.ones(3, 5), teacher_mask=everywhere)
    )
    with pytest.raises(LossError, match=r"gram: mask \(3, 5\) is the student's.*teacher's mask"):
        features.gram(student, longer, mask)


@pytest.mark.parametrize("name", ["pooled_mse", "pooled_cos", "hidden_mse", "cos", "pkd"])
def test_vectors_of_rows_under_a_mask_of_tokens(name: str) -> None:
    """A row counts if any of its tokens does."""
    student, teacher = draw((3, 4), 1), draw((3, 4), 2)
    mask = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 0]])
    loss = MATCH_LOSSES[name].load()
    term = loss(student, teacher, mask)
    assert float(term.count) == 2
    torch.testing.assert_close(term, loss(student[[0, 2]], teacher[[0, 2]]))


@pytest.mark.parametrize("name", ["hidden_mse", "cos"])
def test_other_tokens_are_not_cured_by_a_projection(name: str) -> None:
    with pytest.raises(LossError, match="same tokens") as caught:
        MATCH_LOSSES[name].load()(draw((2, 5, 4), 1), draw((2, 6, 4), 2))
    assert "projection" not in str(caught.value)


@pytest.mark.parametrize("name", ["pkd", "cos"])
def test_zero_vectors_give_finite_gradients(name: str) -> None:
    student = torch.zeros(2, 3, 4, requires_grad=True)
    term = MATCH_LOSSES[name].load()(student, draw((2, 3, 4), 2), torch.ones(2, 3))
    term.sum.backward()
    assert torch.isfinite(term.sum)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("name", ["hidden_mse", "cos"])
def test_pooled_vectors_are_items_of_their_own(name: str) -> None:
    student, teacher, rows = draw((5, 4), 1), draw((5, 4), 2), torch.tensor([1, 1, 0, 1, 0])
    loss = MATCH_LOSSES[name].load()
    torch.testing.assert_close(
        loss(student, teacher, rows), loss(student.unsqueeze(1), teacher.unsqueeze(1), rows.unsqueeze(1))
    )


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: features.hidden_mse(s, s[..., :2]), ["(2, 3, 4)", "(2, 3, 2)", "projection"]),
        (lambda s: features.cos(s, s, torch.ones(2)), ["cos", "(2,)", "(2, 3)"]),
        (lambda s: features.gram([s, s, s], s), ["gram", "3"]),
        (lambda s: features.gram(s[:, 0], s[:, 0]), ["gram", "(2, 4)"]),
        (lambda s: features.gram(s, s[..., :2]), ["gram", "projection"]),
        (lambda s: features.mmd(s, s[:, :2]), ["mmd", "(2, 2, 4)", "same tokens"]),
        (lambda s: features.mmd(s, s, divide_by="heads"), ["divide_by", "heads"]),  # type: ignore[arg-type]
        (lambda s: features.pkd(s, s[..., :2]), ["pkd", "projection"]),
        (lambda s: features.pkd(s[0, 0], s), ["pkd", "(4,)"]),
        (lambda s: features.pkd(s, s, torch.ones(3)), ["pkd", "(3,)"]),
        (lambda s: features.pkd(s, s, torch.ones(2, 5)), ["pkd", "(2, 5)"]),
        (lambda s: features.hidden_mse("states", s), ["hidden_mse", "str"]),  # type: ignore[arg-type]
    ],
)
def test_errors_name_what_was_given(call: Callable[[Tensor], object], words: list[str]) -> None:
    with pytest.raises(LossError) as caught:
        call(draw((2, 3, 4), 1))
    for word in words:
        assert word in str(caught.value)

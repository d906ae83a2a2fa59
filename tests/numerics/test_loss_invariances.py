"""What holds for every loss of the tables: cuts, padding, empty masks, precision, constants, counts."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raybrew.catalog.losses import KD_LOSSES, MATCH_LOSSES
from raybrew.losses.emd import emd
from raybrew.losses.logits import hard_label_ce
from raybrew.losses.term import LossTerm, Per, count_items

BATCH, LENGTH = 6, 8
LENGTHS = (8, 3, 5, 1, 0, 4)


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss with inputs: `shape` of one tensor, and the axes that padding lies on."""

    loss: Callable[..., LossTerm]
    per: Per
    shape: tuple[int, ...]
    length_axes: tuple[int, ...]

    @property
    def mask(self) -> Tensor:
        if not self.length_axes:
            return torch.tensor([int(length > 0) for length in LENGTHS])
        return torch.tensor([[int(position < length) for position in range(LENGTH)] for length in LENGTHS])

    def draw(self, seed: int) -> Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(seed))

    def cut(self, values: Tensor, rows: slice, length: int) -> Tensor:
        values = values[rows]
        for axis in self.length_axes:
            values = values.narrow(axis, 0, length)
        return values

    def fill_padding(self, values: Tensor, value: float) -> Tensor:
        """`values` with everything replaced that belongs to a padded token (or row)."""
        padding = self.mask == 0
        for axis in self.length_axes or (None,):
            shape = [1] * len(self.shape)
            shape[0] = BATCH
            if axis is not None:
                shape[axis] = LENGTH
            values = values.masked_fill(padding.view(shape), value)
        return values


def cases() -> dict[str, Case]:
    found = {}
    for name, entry in KD_LOSSES.items():
        for suffix, shape, axes in (("rows", (BATCH, 5), ()), ("tokens", (BATCH, LENGTH, 5), (1,))):
            loss = functools.partial(entry.load(), temperature=2.0)
            found[f"{name}-{suffix}"] = Case(loss, Per(entry.per), shape, axes)
    shapes = {
        "hidden": ((BATCH, LENGTH, 6), (1,)),
        "attention": ((BATCH, 3, LENGTH, LENGTH), (2, 3)),
        "attention_probs": ((BATCH, 3, LENGTH, LENGTH), (2, 3)),
        "pooled": ((BATCH, 6), ()),
        "qkv": ((BATCH, 3, LENGTH, 4), (2,)),
    }
    for name, entry in MATCH_LOSSES.items():
        found[name] = Case(entry.load(), Per(entry.per), *shapes[entry.needs])

    def labelled(student: Tensor, teacher: Tensor, mask: Tensor) -> LossTerm:
        # The labels travel in the teacher's place, so that cuts apply to them: 0 to 4 from its signs.
        return hard_label_ce(student, (teacher[..., :4] > 0).sum(dim=-1), mask)

    def moved(student: Tensor, teacher: Tensor, mask: Tensor) -> LossTerm:
        flow = torch.tensor([[0.25, 0.0], [0.0, 0.5], [0.25, 0.0]]).double().numpy()
        return emd([student, -student], [teacher, -teacher, teacher], mask, flow=flow)

    found["hard_label_ce"] = Case(labelled, Per.TOKEN, (BATCH, LENGTH, 5), (1,))
    found["emd"] = Case(moved, Per.TOKEN, (BATCH, LENGTH, 6), (1,))
    return found


CASES = cases()


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def with_gradient(case: Case, student: Tensor, teacher: Tensor, mask: Tensor | None) -> tuple[LossTerm, Tensor]:
    student = student.detach().clone().requires_grad_()
    term = case.loss(student, teacher, mask)
    term.sum.backward()
    assert student.grad is not None
    return LossTerm(term.sum.detach(), term.count), student.grad


def test_the_tables_are_covered() -> None:
    assert len(KD_LOSSES) == 9
    assert len(MATCH_LOSSES) == 15
    assert len(CASES) == 2 * len(KD_LOSSES) + len(MATCH_LOSSES) + 2


@pytest.mark.parametrize("sizes", [(2, 4), (1, 1, 1, 1, 1, 1), (5, 1)])
@pytest.mark.parametrize("trimmed", [False, True])
def test_sums_and_counts_do_not_depend_on_the_cut(case: Case, sizes: tuple[int, ...], trimmed: bool) -> None:
    student, teacher, mask = case.draw(1), case.draw(2), case.mask
    whole, whole_gradient = with_gradient(case, student, teacher, mask)

    leaf = student.clone().requires_grad_()
    total, count, start = torch.zeros(()), torch.zeros(()), 0
    for size in sizes:
        rows = slice(start, start + size)
        start += size
        length = max(1, *LENGTHS[rows], 0) if trimmed else LENGTH
        part = case.loss(
            case.cut(leaf, rows, length),
            case.cut(teacher, rows, length),
            mask[rows] if mask.dim() == 1 else mask[rows, :length],
        )
        total, count = total + part.sum, count + part.count
    (total / count).backward()

    assert start == BATCH
    assert float(count) == float(whole.count) > 0
    torch.testing.assert_close(total.detach() / count, whole.sum / whole.count, rtol=2e-6, atol=1e-6)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, whole_gradient / whole.count, rtol=2e-6, atol=1e-6)


def test_count_follows_from_the_mask(case: Case) -> None:
    term = case.loss(case.draw(1), case.draw(2), case.mask)
    assert term.count.dtype == torch.float32
    assert not term.count.requires_grad
    assert torch.equal(term.count, count_items(case.per, case.mask))


def test_without_a_mask_all_items_are_real(case: Case) -> None:
    term = case.loss(case.draw(1), case.draw(2), None)
    assert torch.equal(term.count, count_items(case.per, torch.ones_like(case.mask)))


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32, torch.bfloat16])
def test_masks_of_every_type(case: Case, kind: torch.dtype) -> None:
    expected = case.loss(case.draw(1), case.draw(2), case.mask)
    assert case.loss(case.draw(1), case.draw(2), case.mask.to(kind)) == expected


def test_empty_masks_give_zero(case: Case) -> None:
    garbage = torch.full(case.shape, math.nan)
    for student, teacher in ((case.draw(1), case.draw(2)), (garbage, garbage)):
        term, gradient = with_gradient(case, student, teacher, torch.zeros_like(case.mask))
        assert float(term.sum) == 0.0
        assert float(term.count) == 0.0
        assert not gradient.any()


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e38])
def test_garbage_in_padding_changes_nothing(case: Case, garbage: float) -> None:
    clean, clean_gradient = with_gradient(case, case.draw(1), case.draw(2), case.mask)
    dirty_student = case.fill_padding(case.draw(1), garbage)
    dirty_teacher = case.fill_padding(case.draw(2), garbage)
    assert not torch.equal(dirty_student, case.draw(1))
    dirty, dirty_gradient = with_gradient(case, dirty_student, dirty_teacher, case.mask)
    assert torch.equal(dirty.sum, clean.sum)
    assert torch.equal(dirty_gradient, clean_gradient)


def test_padding_gets_no_gradient(case: Case) -> None:
    _, gradient = with_gradient(case, case.draw(1), case.draw(2), case.mask)
    assert gradient.any()
    assert torch.equal(case.fill_padding(gradient, 0.0), gradient)


def test_teacher_is_a_constant(case: Case) -> None:
    student, teacher = case.draw(1).requires_grad_(), case.draw(2).requires_grad_()
    case.loss(student, teacher, case.mask).sum.backward()
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_computed_in_float32(case: Case, kind: torch.dtype) -> None:
    student, teacher = case.draw(1).to(kind), case.draw(2).to(kind)
    half, gradient = with_gradient(case, student, teacher, case.mask)
    full, full_gradient = with_gradient(case, student.float(), teacher.float(), case.mask)
    assert half.sum.dtype == torch.float32
    torch.testing.assert_close(half.sum, full.sum, rtol=1e-6, atol=0.0)
    assert gradient.dtype == kind
    torch.testing.assert_close(gradient.float(), full_gradient, rtol=2e-2, atol=1e-3)
    exact = case.loss(case.draw(1), case.draw(2), case.mask)
    torch.testing.assert_close(half.sum, exact.sum, rtol=2e-2, atol=1e-2)


def test_autocast_changes_nothing(case: Case) -> None:
    plain, gradient = with_gradient(case, case.draw(1), case.draw(2), case.mask)
    student = case.draw(1).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = case.loss(student, case.draw(2), case.mask)
    cast.sum.backward()
    assert torch.equal(cast.sum.detach(), plain.sum)
    assert student.grad is not None
    assert torch.equal(student.grad, gradient)


def test_inputs_are_left_as_they_were(case: Case) -> None:
    student, teacher, mask = case.draw(1), case.draw(2), case.mask
    case.loss(student, teacher, mask)
    assert torch.equal(student, case.draw(1))
    assert torch.equal(teacher, case.draw(2))
    assert torch.equal(mask, case.mask)

"""Losses on hidden states (batch, length, dim) with mask (batch, length): token by token, first token, or relations.

`pooled_mse` and `pooled_cos` compare one vector of each row, (batch, dim). Vectors of rows take a mask (batch,), or one
of tokens (batch, length), in which a row counts if any of its tokens does.

`mmd` compares (length, length) matrices, so widths may differ; all others need one width, by a projection of the
student where its own differs. `pkd` and `gram` compare no token with a token: with `teacher_mask` the teacher's tokens
may be others than the student's, as those of another tokenizer are.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from raybrew.errors import LossError
from raybrew.losses.masking import Layers, as_pair, check_same_shape, full_precision, real_items, squared_error
from raybrew.losses.term import LossTerm, Per, count_items

__all__ = ["cos", "gram", "hidden_mse", "mmd", "pkd", "pooled_cos", "pooled_mse"]

_PROJECT = "add a projection from the student's width to the teacher's"
_SAME_TOKENS = "both must see the same tokens; pkd, gram and the pooled losses compare rows of different tokens"

#: Added to squared norms in a cosine, as torch's cosine_embedding_loss does.
_COSINE_EPSILON = 1e-12


@full_precision
def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> LossTerm:
    """Squared error per element over unmasked tokens: a token's item is the mean over its dim (arXiv:1909.10351).

    Also takes vectors of rows (batch, dim).
    """
    _check_same("hidden_mse", student, teacher)
    real = _real("hidden_mse", mask, student)
    padding = None if mask is None else ~real.unsqueeze(-1)
    error = squared_error(student.float(), teacher.detach().float(), padding)
    return LossTerm(error / student.shape[-1], count_items(Per.TOKEN, real))


@full_precision
def cos(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> LossTerm:
    """1 - cosine per unmasked token (DistilBERT, arXiv:1910.01108). Also takes vectors of rows (batch, dim)."""
    _check_same("cos", student, teacher)
    real = _real("cos", mask, student)
    student, teacher = _clean(student, real, mask), _clean(teacher.detach(), real, mask)
    student_square = student.square().sum(dim=-1) + _COSINE_EPSILON
    teacher_square = teacher.square().sum(dim=-1) + _COSINE_EPSILON
    cosine = (student * teacher).sum(dim=-1) / (student_square * teacher_square).sqrt()
    return LossTerm((1.0 - cosine).masked_fill(~real, 0.0).sum(), count_items(Per.TOKEN, real))


@full_precision
def pkd(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, teacher_mask: Tensor | None = None
) -> LossTerm:
    """Squared distance of the L2-normalised vectors of the first real token (BERT-PKD, arXiv:1908.09355).

    Takes (batch, length, dim), or (batch, dim) for vectors already pooled, of student and teacher each. Masks are
    (batch, length) or (batch,); rows without a real token do not count. Without `teacher_mask` the student's mask
    serves a teacher of as many tokens, and the first token of one with more or fewer is at position 0.
    Where padding precedes the tokens the first real token is taken, TextBrewer takes position 0. A zero vector stays
    zero, where TextBrewer's becomes NaN.
    """
    first_student, rows = _first_token(student, mask)
    if teacher_mask is None and mask is not None:
        teacher_mask = mask if _fits(mask, teacher) else rows
    first_teacher, teacher_rows = _first_token(teacher.detach(), teacher_mask)
    check_same_shape("pkd", first_student, first_teacher, _PROJECT)
    rows = rows & teacher_rows
    difference = _normalised(first_student, rows) - _normalised(first_teacher, rows)
    return LossTerm(difference.square().sum(), count_items(Per.ROW, rows))


@full_precision
def gram(
    student: Layers, teacher: Layers, mask: Tensor | None = None, *, teacher_mask: Tensor | None = None
) -> LossTerm:
    """MSE of the (dim, dim) matrices S1^T S2 / length and T1^T T2 / length, per row; also called `fsp`.

    Student and teacher are two layers each, or one, which is then taken twice. `length` is the number of real tokens
    of the row, on each side its own. Without `teacher_mask` the student's mask serves both sides, without either every
    position is real. After Yim et al., "A Gift from Knowledge Distillation", CVPR 2017.
    """
    students, teachers = as_pair("gram", student), _constants(as_pair("gram", teacher))
    for one, other in zip(students, teachers, strict=True):
        if one.dim() == other.dim() == 3 and (one.shape[0], one.shape[2]) == (other.shape[0], other.shape[2]):
            continue
        check_same_shape("gram", one, other, _PROJECT)
    real = _real_tokens("gram", mask, students[0])
    if teacher_mask is None and mask is not None:
        teacher_mask = mask
        if not _fits(mask, teachers[0]):
            raise LossError(
                f"gram: mask {tuple(mask.shape)} is the student's, and the teacher's states are "
                f"{tuple(teachers[0].shape)}; give the teacher's mask too (`inputs_mask` in what its adaptor returns)"
            )
    teacher_real = _real_tokens("gram", teacher_mask, teachers[0])
    student_matrix = _mean_product(students, real, mask)
    teacher_matrix = _mean_product(teachers, teacher_real, teacher_mask)
    rows = real.any(dim=1) & teacher_real.any(dim=1)
    size = student_matrix.shape[1] * student_matrix.shape[2]
    error = squared_error(student_matrix, teacher_matrix, ~rows.view(-1, 1, 1))
    return LossTerm(error / size, count_items(Per.ROW, rows))


@full_precision
def mmd(
    student: Layers, teacher: Layers, mask: Tensor | None = None, *, divide_by: Literal["dim", "length"] = "dim"
) -> LossTerm:
    """MSE of S1 S2^T / dim_S and T1 T2^T / dim_T over pairs of unmasked tokens; also called `nst`. Widths may differ.

    Student and teacher are two layers each, or one, which is then taken twice. After arXiv:1707.01219.

    `divide_by="length"` divides both products by the padded length instead: TextBrewer does so whenever it is given a
    mask (and by the widths when it is not), so its value changes with the padding and its two matrices differ in scale
    with the widths. It is here to reproduce TextBrewer's runs.
    """
    first_student, second_student = as_pair("mmd", student)
    first_teacher, second_teacher = _constants(as_pair("mmd", teacher))
    if first_student.shape[:2] != first_teacher.shape[:2]:
        raise LossError(
            f"mmd: student {tuple(first_student.shape)} and teacher {tuple(first_teacher.shape)} differ in batch or "
            "length; both must see the same tokens"
        )
    if divide_by not in ("dim", "length"):
        raise LossError(f"mmd: divide_by must be 'dim' or 'length', got {divide_by!r}")
    real = _real_tokens("mmd", mask, first_student)
    axis = 2 if divide_by == "dim" else 1
    student_matrix = _product(first_student, second_student, real, mask, over_tokens=False) / first_student.shape[axis]
    teacher_matrix = _product(first_teacher, second_teacher, real, mask, over_tokens=False) / first_teacher.shape[axis]
    # Masked tokens are zero vectors by now, so pairs with one of them are zero on both sides.
    return LossTerm(squared_error(student_matrix, teacher_matrix), count_items(Per.PAIR, real))


def pooled_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> LossTerm:
    """Squared error per element of pooled vectors (batch, dim), mean over dim, per unmasked row."""
    _check_pooled("pooled_mse", student, teacher)
    return hidden_mse(student, teacher, mask)


def pooled_cos(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> LossTerm:
    """1 - cosine of pooled vectors (batch, dim), per unmasked row."""
    _check_pooled("pooled_cos", student, teacher)
    return cos(student, teacher, mask)


def _check_pooled(name: str, *sides: Tensor) -> None:
    for vectors in sides:
        if vectors.dim() != 2:
            raise LossError(f"{name}: expected one vector per row (batch, dim), got {tuple(vectors.shape)}")


def _check_same(name: str, student: Tensor, teacher: Tensor) -> None:
    check_same_shape(name, student, teacher, _PROJECT if student.shape[:-1] == teacher.shape[:-1] else _SAME_TOKENS)


def _fits(mask: Tensor, states: Tensor) -> bool:
    """Whether a mask of rows or tokens can be that of `states`, vectors of rows or tokens."""
    common = min(mask.dim(), states.dim() - 1)
    return mask.dim() in (1, 2) and mask.shape[:common] == states.shape[:common]


def _real(name: str, mask: Tensor | None, states: Tensor) -> Tensor:
    """Bool mask of tokens (batch, length), or of rows (batch,) where `states` has one vector of each."""
    if states.dim() == 2 and mask is not None and mask.dim() == 2 and _fits(mask, states):
        mask = (mask != 0).any(dim=1)
    return real_items(name, mask, states, states.dim() - 1)


def _real_tokens(name: str, mask: Tensor | None, states: Tensor) -> Tensor:
    if states.dim() != 3:
        raise LossError(f"{name}: expected hidden states (batch, length, dim), got {tuple(states.shape)}")
    return real_items(name, mask, states, 2)


def _constants(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    first, second = pair
    detached = first.detach()
    return detached, detached if second is first else second.detach()


def _clean(states: Tensor, real: Tensor, mask: Tensor | None) -> Tensor:
    states = states.float()
    return states if mask is None else states.masked_fill(~real.unsqueeze(-1), 0.0)


def _product(first: Tensor, second: Tensor, real: Tensor, mask: Tensor | None, *, over_tokens: bool) -> Tensor:
    same = second is first
    first = _clean(first, real, mask)
    second = first if same else _clean(second, real, mask)
    if over_tokens:
        return torch.bmm(first.transpose(1, 2), second)
    return torch.bmm(first, second.transpose(1, 2))


def _mean_product(pair: tuple[Tensor, Tensor], real: Tensor, mask: Tensor | None) -> Tensor:
    """(batch, dim, dim): the product of two layers over the real tokens, divided by their number."""
    lengths = real.sum(dim=1).clamp_min(1).float().view(-1, 1, 1)
    return _product(*pair, real, mask, over_tokens=True) / lengths


def _first_token(states: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The vector of each row's first real token (batch, dim), and which rows have one (batch,)."""
    if states.dim() not in (2, 3):
        raise LossError(f"pkd: expected (batch, length, dim) or (batch, dim), got {tuple(states.shape)}")
    if mask is None:
        mask = torch.ones(states.shape[:1], device=states.device)
    if not _fits(mask, states):
        raise LossError(f"pkd: mask of shape {tuple(mask.shape)} does not fit states {tuple(states.shape)}")
    tokens = mask.to(states.device) != 0
    rows = tokens if tokens.dim() == 1 else tokens.any(dim=1)
    if states.dim() == 2:
        return states, rows
    if tokens.dim() == 1:
        return states[:, 0], rows
    return states[torch.arange(len(states), device=states.device), tokens.to(torch.uint8).argmax(dim=1)], rows


def _normalised(vectors: Tensor, rows: Tensor) -> Tensor:
    vectors = vectors.float().masked_fill(~rows.unsqueeze(-1), 0.0)
    norm = vectors.norm(dim=-1, keepdim=True)
    return vectors / torch.where(norm > 0.0, norm, 1.0)

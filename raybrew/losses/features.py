"""Losses on hidden states (batch, length, dim) with mask (batch, length): token by token, first token, or relations.

`pooled_mse` and `pooled_cos` compare one vector of each row, (batch, dim) with mask (batch,).

`mmd` compares (length, length) matrices, so widths may differ; all others need one width, by a projection of the
student where its own differs.
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

#: Added to squared norms in a cosine, as torch's cosine_embedding_loss does.
_COSINE_EPSILON = 1e-12


@full_precision
def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> LossTerm:
    """Squared error per element over unmasked tokens: a token's item is the mean over its dim (arXiv:1909.10351).

    Also takes (batch, dim) with mask (batch,).
    """
    check_same_shape("hidden_mse", student, teacher, _PROJECT)
    real = real_items("hidden_mse", mask, student, student.dim() - 1)
    padding = None if mask is None else ~real.unsqueeze(-1)
    error = squared_error(student.float(), teacher.detach().float(), padding)
    return LossTerm(error / student.shape[-1], count_items(Per.TOKEN, real))


@full_precision
def cos(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> LossTerm:
    """1 - cosine per unmasked token (DistilBERT, arXiv:1910.01108). Also takes (batch, dim) with mask (batch,)."""
    check_same_shape("cos", student, teacher, _PROJECT)
    real = real_items("cos", mask, student, student.dim() - 1)
    student, teacher = _clean(student, real, mask), _clean(teacher.detach(), real, mask)
    student_square = student.square().sum(dim=-1) + _COSINE_EPSILON
    teacher_square = teacher.square().sum(dim=-1) + _COSINE_EPSILON
    cosine = (student * teacher).sum(dim=-1) / (student_square * teacher_square).sqrt()
    return LossTerm((1.0 - cosine).masked_fill(~real, 0.0).sum(), count_items(Per.TOKEN, real))


@full_precision
def pkd(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> LossTerm:
    """Squared distance of the L2-normalised vectors of the first real token (BERT-PKD, arXiv:1908.09355).

    Takes (batch, length, dim), or (batch, dim) for vectors already pooled, of student and teacher each. The mask is
    (batch, length) or (batch,); rows without a real token do not count. Where padding precedes the tokens the first
    real token is taken, TextBrewer takes position 0. A zero vector stays zero, where TextBrewer's becomes NaN.
    """
    for states in (student, teacher):
        if states.dim() not in (2, 3):
            raise LossError(f"pkd: expected (batch, length, dim) or (batch, dim), got {tuple(states.shape)}")
    if mask is None:
        mask = torch.ones(student.shape[:-1], device=student.device)
    tokens = mask.to(student.device) != 0
    for states in (student, teacher):
        common = min(tokens.dim(), states.dim() - 1)
        if tokens.dim() > 2 or tokens.shape[:common] != states.shape[:common]:
            raise LossError(f"pkd: mask of shape {tuple(mask.shape)} does not fit states {tuple(states.shape)}")
    rows = tokens if tokens.dim() == 1 else tokens.any(dim=1)
    first_student, first_teacher = _first_token(student, tokens), _first_token(teacher.detach(), tokens)
    check_same_shape("pkd", first_student, first_teacher, _PROJECT)
    difference = _normalised(first_student, rows) - _normalised(first_teacher, rows)
    return LossTerm(difference.square().sum(), count_items(Per.ROW, rows))


@full_precision
def gram(student: Layers, teacher: Layers, mask: Tensor | None = None) -> LossTerm:
    """MSE of the (dim, dim) matrices S1^T S2 / length and T1^T T2 / length, per row; also called `fsp`.

    Student and teacher are two layers each, or one, which is then taken twice. `length` is the number of real tokens
    of the row. After Yim et al., "A Gift from Knowledge Distillation", CVPR 2017.
    """
    first_student, second_student = as_pair("gram", student)
    first_teacher, second_teacher = _constants(as_pair("gram", teacher))
    check_same_shape("gram", first_student, first_teacher, _PROJECT)
    check_same_shape("gram", second_student, second_teacher, _PROJECT)
    real = _real_tokens("gram", mask, first_student)
    lengths = real.sum(dim=1).clamp_min(1).float().view(-1, 1, 1)
    student_matrix = _product(first_student, second_student, real, mask, over_tokens=True) / lengths
    teacher_matrix = _product(first_teacher, second_teacher, real, mask, over_tokens=True) / lengths
    size = student_matrix.shape[1] * student_matrix.shape[2]
    # Rows without tokens have two zero matrices: they add nothing, and `count_items` leaves them out.
    return LossTerm(squared_error(student_matrix, teacher_matrix) / size, count_items(Per.ROW, real))


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


def _first_token(states: Tensor, tokens: Tensor) -> Tensor:
    if states.dim() == 2:
        return states
    if tokens.dim() == 1:
        return states[:, 0]
    index = tokens.to(torch.uint8).argmax(dim=1)
    return states[torch.arange(states.shape[0], device=states.device), index]


def _normalised(vectors: Tensor, rows: Tensor) -> Tensor:
    vectors = vectors.float().masked_fill(~rows.unsqueeze(-1), 0.0)
    norm = vectors.norm(dim=-1, keepdim=True)
    return vectors / torch.where(norm > 0.0, norm, 1.0)

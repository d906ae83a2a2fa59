"""MiniLM's loss on self-attention relations (arXiv:2002.10957, arXiv:2012.15828).

A relation is softmax(A B^T / sqrt(head_dim)) over the keys, of two sets of vectors of one layer: queries and keys (the
attention itself), or one of queries, keys, values with itself. Only the number of relation heads must agree, not the
width, so no projection is needed.
"""

from __future__ import annotations

import math

from torch import Tensor

from raybrew.errors import LossError
from raybrew.losses.masking import EXCLUDED, Layers, as_pair, full_precision, real_items
from raybrew.losses.term import LossTerm, Per, count_items

__all__ = ["relation_kl"]


@full_precision
def relation_kl(
    student: Layers, teacher: Layers, mask: Tensor | None = None, *, num_heads: int | None = None
) -> LossTerm:
    """KL(teacher || student) of the scaled dot-product relations over the keys, mean over heads, per real token.

    Vectors are (batch, heads, length, head_dim), or (batch, length, dim) with `num_heads`. Given with heads,
    `num_heads` regroups them: heads are joined and split anew, as MiniLMv2 does when student and teacher have
    different numbers. One tensor is related to itself; a pair (a, b) relates the queries of `a` to the keys of `b`.
    Padded tokens (mask (batch, length)) are neither queries nor keys.
    """
    student_queries, student_keys = _pair_of_heads(student, num_heads)
    teacher_queries, teacher_keys = _pair_of_heads(teacher, num_heads)
    if student_queries.shape[:3] != teacher_queries.shape[:3]:
        raise LossError(
            f"relation_kl: student {tuple(student_queries.shape)} and teacher {tuple(teacher_queries.shape)} differ "
            "in batch, heads or length; set num_heads to a number that divides both widths"
        )
    real = real_items("relation_kl", mask, student_queries[:, 0], 2)
    log_student = _log_relation(student_queries, student_keys, real, mask)
    log_teacher = _log_relation(teacher_queries.detach(), teacher_keys.detach(), real, mask)
    per_query = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=-1).mean(dim=1)
    return LossTerm(per_query.masked_fill(~real, 0.0).sum(), count_items(Per.TOKEN, real))


def _pair_of_heads(layers: Layers, num_heads: int | None) -> tuple[Tensor, Tensor]:
    first, second = as_pair("relation_kl", layers)
    queries = _split(first, num_heads)
    return queries, queries if second is first else _split(second, num_heads)


def _split(vectors: Tensor, num_heads: int | None) -> Tensor:
    """(batch, heads, length, head_dim) in float32."""
    if vectors.dim() == 4:
        if num_heads is None or num_heads == vectors.shape[1]:
            return vectors.float()
        vectors = vectors.transpose(1, 2).flatten(2)
    if vectors.dim() != 3:
        raise LossError(
            "relation_kl: expected (batch, heads, length, head_dim) or (batch, length, dim), "
            f"got {tuple(vectors.shape)}"
        )
    if num_heads is None:
        raise LossError("relation_kl: vectors without a head dimension need num_heads")
    if num_heads < 1 or vectors.shape[-1] % num_heads:
        raise LossError(f"relation_kl: num_heads={num_heads} does not divide the width {vectors.shape[-1]}")
    batch, length, width = vectors.shape
    return vectors.float().reshape(batch, length, num_heads, width // num_heads).transpose(1, 2)


def _log_relation(queries: Tensor, keys: Tensor, real: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return (queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[-1])).log_softmax(dim=-1)
    padding = ~real[:, None, :, None]
    queries, keys = queries.masked_fill(padding, 0.0), keys.masked_fill(padding, 0.0)
    scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[-1])
    return scores.masked_fill(~real[:, None, None, :], EXCLUDED).log_softmax(dim=-1)

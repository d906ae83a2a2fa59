"""Losses on attention scores before the softmax: (batch, heads, length, length) or (batch, length, length).

With a mask (batch, length) only pairs of real tokens count: padded queries are left out, and padded keys are left out
of both softmaxes. TextBrewer keeps padded keys in its softmaxes, which is the same whenever the scores carry the usual
large negative mask there, as BERT's do; without it its value depends on the content of the padding. The cross entropies
do so too with `padded_keys=True`, which is here to reproduce TextBrewer's runs.

Without a mask TextBrewer guesses the padding from the scores: where they are <= -1e-3 the score is taken as 0
(`attention_mse`, `attention_mse_sum`), or the teacher's probability is (`attention_ce`, `attention_ce_mean`). These
losses do the same, so None is *not* a mask of ones here: ordinary negative scores are dropped too. Give a mask.
"""

from __future__ import annotations

from torch import Tensor

from raybrew.errors import LossError
from raybrew.losses.masking import EXCLUDED, check_same_shape, full_precision, real_items, squared_error
from raybrew.losses.term import LossTerm, Per, count_items

__all__ = ["attention_ce", "attention_ce_mean", "attention_mse", "attention_mse_sum", "attention_probs_mse"]

_HEADS = "the number of heads must agree: use attention_mse_sum, attention_ce_mean or another layer"

#: Scores at or below this count as padding when no mask is given (TextBrewer's threshold).
_PADDING_SCORE = -1e-3


@full_precision
def attention_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> LossTerm:
    """Squared error of the scores per pair of real tokens, mean over heads (TinyBERT, arXiv:1909.10351)."""
    student, teacher = _with_heads("attention_mse", student), _with_heads("attention_mse", teacher.detach())
    check_same_shape("attention_mse", student, teacher, _HEADS)
    return _squared_error("attention_mse", student, teacher, mask)


@full_precision
def attention_probs_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> LossTerm:
    """Squared error of attention probabilities per pair of real tokens, mean over heads.

    What TextBrewer's `attention_mse` becomes where an adaptor gives the `attentions` of Hugging Face models, which are
    probabilities. Without a mask all pairs count.
    """
    name = "attention_probs_mse"
    student, teacher = _with_heads(name, student), _with_heads(name, teacher.detach())
    check_same_shape(name, student, teacher, _HEADS)
    real = _real_tokens(name, mask, student)
    error = squared_error(student, teacher, None if mask is None else ~_real_pairs(real))
    return LossTerm(error / student.shape[1], count_items(Per.PAIR, real))


@full_precision
def attention_mse_sum(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> LossTerm:
    """Squared error, per pair of real tokens, of the scores summed over heads; heads may differ in number."""
    name = "attention_mse_sum"
    student = _with_heads(name, student).sum(dim=1, keepdim=True)
    teacher = _with_heads(name, teacher.detach()).sum(dim=1, keepdim=True)
    check_same_shape(name, student, teacher, "both must see the same tokens")
    return _squared_error(name, student, teacher, mask)


@full_precision
def attention_ce(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, padded_keys: bool = False
) -> LossTerm:
    """Cross entropy of the two softmaxes over the keys, mean over heads, per real query token."""
    student, teacher = _with_heads("attention_ce", student), _with_heads("attention_ce", teacher.detach())
    check_same_shape("attention_ce", student, teacher, _HEADS)
    return _cross_entropy("attention_ce", student, teacher, mask, padded_keys)


@full_precision
def attention_ce_mean(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, *, padded_keys: bool = False
) -> LossTerm:
    """Cross entropy, per real query token, of the softmaxes of the scores averaged over heads; heads may differ."""
    name = "attention_ce_mean"
    student = _with_heads(name, student).mean(dim=1, keepdim=True)
    teacher = _with_heads(name, teacher.detach()).mean(dim=1, keepdim=True)
    check_same_shape(name, student, teacher, "both must see the same tokens")
    return _cross_entropy(name, student, teacher, mask, padded_keys)


def _with_heads(name: str, scores: Tensor) -> Tensor:
    if scores.dim() not in (3, 4) or scores.shape[-1] != scores.shape[-2]:
        raise LossError(
            f"{name}: expected scores (batch, heads, length, length) or (batch, length, length), "
            f"got {tuple(scores.shape)}"
        )
    scores = scores.float()
    return scores if scores.dim() == 4 else scores.unsqueeze(1)


def _real_tokens(name: str, mask: Tensor | None, scores: Tensor) -> Tensor:
    return real_items(name, mask, scores[:, 0], 2)


def _real_pairs(real: Tensor) -> Tensor:
    """(batch, 1, length, length): true where query and key are both real."""
    return (real.unsqueeze(2) & real.unsqueeze(1)).unsqueeze(1)


def _squared_error(name: str, student: Tensor, teacher: Tensor, mask: Tensor | None) -> LossTerm:
    real = _real_tokens(name, mask, student)
    if mask is None:
        student = student.masked_fill(student <= _PADDING_SCORE, 0.0)
        teacher = teacher.masked_fill(teacher <= _PADDING_SCORE, 0.0)
    error = squared_error(student, teacher, None if mask is None else ~_real_pairs(real))
    return LossTerm(error / student.shape[1], count_items(Per.PAIR, real))


def _cross_entropy(name: str, student: Tensor, teacher: Tensor, mask: Tensor | None, padded_keys: bool) -> LossTerm:
    real = _real_tokens(name, mask, student)
    if mask is None:
        probs = teacher.softmax(dim=-1).masked_fill(teacher <= _PADDING_SCORE, 0.0)
        per_query = -(probs * student.log_softmax(dim=-1)).sum(dim=-1)
    else:
        padding = ~_real_pairs(real)
        if padded_keys:
            probs = teacher.softmax(dim=-1).masked_fill(padding, 0.0)
            log_probs = student.log_softmax(dim=-1)
        else:
            probs = teacher.masked_fill(padding, EXCLUDED).softmax(dim=-1)
            log_probs = student.masked_fill(padding, EXCLUDED).log_softmax(dim=-1)
        per_query = -(probs * log_probs).sum(dim=-1).masked_fill(~real.unsqueeze(1), 0.0)
    return LossTerm(per_query.sum() / student.shape[1], count_items(Per.TOKEN, real))

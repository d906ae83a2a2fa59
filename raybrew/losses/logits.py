"""Losses on logits: knowledge distillation between two softmaxes, hard labels, and TextBrewer's probability shift.

Shapes: logits (batch, classes) with mask (batch,), or (batch, length, classes) with mask (batch, length). An item is
one entry of the mask. `temperature` is a number, or a tensor with one value per item. `class_mask` (the shape of the
logits, or (batch, classes)) takes classes out of both softmaxes: for the start and end logits of extractive QA the
classes are positions, and padded positions are no answers. Every item needs at least one class.

What all of them do is in `raybrew.losses.kd`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from raybrew.errors import LossError
from raybrew.losses.kd import KDInputs, class_mask_of, kd_loss, log_probs, mean_over_classes
from raybrew.losses.masking import EXCLUDED, full_precision
from raybrew.losses.term import LossTerm, Per, count_items

__all__ = [
    "bce",
    "binary_kl",
    "ce",
    "hard_label_ce",
    "js",
    "kl",
    "label_items",
    "mse",
    "probability_shift",
    "reverse_kl",
    "skew_kl",
    "skew_reverse_kl",
    "tv",
]


@kd_loss()
def ce(inputs: KDInputs) -> Tensor:
    """Cross entropy of the teacher's softmax and the student's: -sum p_T log p_S per item (TextBrewer's `ce`)."""
    log_student, log_teacher = log_probs(inputs)
    return -(log_teacher.exp() * log_student).sum(dim=-1)


@kd_loss()
def mse(inputs: KDInputs) -> Tensor:
    """Squared error of the logits divided by the temperature, mean over the classes of an item."""
    per_class = (inputs.student - inputs.teacher).square()
    return mean_over_classes(per_class, inputs)


@kd_loss()
def bce(inputs: KDInputs) -> Tensor:
    """Binary cross entropy of the teacher's sigmoids and the student's, mean over classes: for multi-label tasks."""
    per_class = F.binary_cross_entropy_with_logits(inputs.student, inputs.teacher.sigmoid(), reduction="none")
    return mean_over_classes(per_class, inputs)


@kd_loss()
def binary_kl(inputs: KDInputs) -> Tensor:
    """KL of the teacher's and the student's sigmoids, mean over classes: `bce` less its value where both agree.

    The gradient is that of `bce`, bit for bit, because the part that is subtracted depends on the teacher alone.
    """
    probs = inputs.teacher.sigmoid()
    per_class = F.binary_cross_entropy_with_logits(inputs.student, probs, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(inputs.teacher, probs, reduction="none")
    return mean_over_classes(per_class - entropy, inputs)


@kd_loss()
def kl(inputs: KDInputs) -> Tensor:
    """KL(teacher || student): the gradient of `ce`, and zero when both agree (arXiv:1503.02531)."""
    log_student, log_teacher = log_probs(inputs)
    return _divergence(log_teacher, log_student)


@kd_loss()
def reverse_kl(inputs: KDInputs) -> Tensor:
    """KL(student || teacher): seeks the teacher's modes instead of covering them (MiniLLM, arXiv:2306.08543)."""
    log_student, log_teacher = log_probs(inputs)
    return _divergence(log_student, log_teacher)


@kd_loss()
def js(inputs: KDInputs, *, beta: float = 0.5) -> Tensor:
    """Generalised Jensen-Shannon divergence of GKD (arXiv:2306.13649, equation 1), 0 < beta < 1.

    beta * KL(teacher || m) + (1 - beta) * KL(student || m) with m = beta * teacher + (1 - beta) * student. It is
    bounded, and vanishes at both ends of beta (divided by beta it tends to `kl`, by 1 - beta to `reverse_kl`).
    """
    _check_open_unit("js", "beta", beta, "use kl for 0 or reverse_kl for 1")
    log_student, log_teacher = log_probs(inputs)
    log_mixed = _log_mixture(log_teacher, log_student, beta)
    return beta * _divergence(log_teacher, log_mixed) + (1.0 - beta) * _divergence(log_student, log_mixed)


@kd_loss()
def skew_kl(inputs: KDInputs, *, alpha: float = 0.1) -> Tensor:
    """KL(teacher || alpha * teacher + (1 - alpha) * student) of DistiLLM (arXiv:2402.03898), 0 < alpha < 1."""
    _check_open_unit("skew_kl", "alpha", alpha, "use kl for 0")
    log_student, log_teacher = log_probs(inputs)
    log_mixed = _log_mixture(log_teacher, log_student, alpha)
    return _divergence(log_teacher, log_mixed)


@kd_loss()
def skew_reverse_kl(inputs: KDInputs, *, alpha: float = 0.1) -> Tensor:
    """KL(student || (1 - alpha) * teacher + alpha * student) of DistiLLM (arXiv:2402.03898), 0 < alpha < 1."""
    _check_open_unit("skew_reverse_kl", "alpha", alpha, "use reverse_kl for 0")
    log_student, log_teacher = log_probs(inputs)
    log_mixed = _log_mixture(log_student, log_teacher, alpha)
    return _divergence(log_student, log_mixed)


@kd_loss(temperature_power=1)
def tv(inputs: KDInputs) -> Tensor:
    """Total variation distance: half the sum of absolute differences of the two softmaxes.

    It is of first order in the logits' difference, so its gradient falls with T alone: here
    `scale_by_temperature_squared` multiplies by T, the factor that keeps the gradient, and not by its square.
    """
    log_student, log_teacher = log_probs(inputs)
    return 0.5 * (log_teacher.exp() - log_student.exp()).abs().sum(dim=-1)


@full_precision
def hard_label_ce(
    student: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    class_mask: Tensor | None = None,
) -> LossTerm:
    """Cross entropy of the student with integer labels of shape (batch,) or (batch, length); labels < 0 do not count.

    `label_smoothing` in [0, 1) spreads that share of the target evenly over the classes. The count is that of
    `label_items`, known before the forward pass. A label that `class_mask` takes out does not count either.
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise LossError(f"hard_label_ce: label_smoothing must be in [0, 1), got {label_smoothing}")
    if labels.shape != student.shape[:-1]:
        raise LossError(
            f"hard_label_ce: labels of shape {tuple(labels.shape)} do not fit logits of shape "
            f"{tuple(student.shape)}; expected {tuple(student.shape[:-1])}"
        )
    real = label_items(labels, mask, class_mask=class_mask)
    classes = class_mask_of("hard_label_ce", class_mask, student)
    logits = student.float().masked_fill(~real.unsqueeze(-1), 0.0)
    if classes is not None:
        logits = logits.masked_fill(~classes, EXCLUDED)
    log_probs = logits.log_softmax(dim=-1)
    targets = labels.masked_fill(~real, 0).long().unsqueeze(-1)
    per_item = -log_probs.gather(-1, targets).squeeze(-1)
    if label_smoothing > 0.0:
        if classes is None:
            even = -log_probs.mean(dim=-1)
        else:
            even = -log_probs.masked_fill(~classes, 0.0).sum(dim=-1) / classes.sum(dim=-1).clamp_min(1)
        per_item = (1.0 - label_smoothing) * per_item + label_smoothing * even
    return LossTerm(per_item.masked_fill(~real, 0.0).sum(), count_items(Per.TOKEN, real))


def label_items(labels: Tensor, mask: Tensor | None = None, *, class_mask: Tensor | None = None) -> Tensor:
    """Bool mask of the items that `hard_label_ce` counts: unmasked, label >= 0, label among the allowed classes."""
    real = labels >= 0
    if mask is not None:
        if mask.shape != labels.shape:
            raise LossError(
                f"hard_label_ce: mask of shape {tuple(mask.shape)} does not fit labels of shape {tuple(labels.shape)}"
            )
        real = real & (mask.to(labels.device) != 0)
    if class_mask is not None:
        allowed = class_mask.to(labels.device) != 0
        if allowed.dim() == labels.dim():  # (batch, classes) beside labels (batch, length)
            allowed = allowed.unsqueeze(1).expand(-1, labels.shape[1], -1)
        real = real & allowed.gather(-1, labels.clamp_min(0).long().unsqueeze(-1)).squeeze(-1)
    return real


def probability_shift(teacher_logits: Tensor, labels: Tensor, *, class_mask: Tensor | None = None) -> Tensor:
    """The teacher's logits with the largest one and that of the true label swapped; items with labels < 0 unchanged.

    Logits (batch, classes) with labels (batch,), or (batch, length, classes) with (batch, length). A new tensor
    without gradient: unlike TextBrewer's, the input stays as it is and negative labels of (batch,) are left alone.
    With `class_mask` the largest logit is sought among the allowed classes. "Knowledge adjustment" of
    arXiv:1911.07471.
    """
    if labels.shape != teacher_logits.shape[:-1]:
        raise LossError(
            f"probability_shift: labels of shape {tuple(labels.shape)} do not fit logits of shape "
            f"{tuple(teacher_logits.shape)}; expected {tuple(teacher_logits.shape[:-1])}"
        )
    logits = teacher_logits.detach()
    classes = class_mask_of("probability_shift", class_mask, logits)
    candidates = logits if classes is None else logits.float().masked_fill(~classes, EXCLUDED)
    largest = candidates.argmax(dim=-1, keepdim=True)
    truth = torch.where(labels.unsqueeze(-1) < 0, largest, labels.long().unsqueeze(-1))
    return logits.scatter(-1, largest, logits.gather(-1, truth)).scatter(-1, truth, logits.gather(-1, largest))


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def _log_mixture(log_p: Tensor, log_q: Tensor, share_of_p: float) -> Tensor:
    return torch.logaddexp(log_p + math.log(share_of_p), log_q + math.log1p(-share_of_p))


def _check_open_unit(name: str, key: str, value: float, ends: str) -> None:
    if not 0.0 < value < 1.0:
        raise LossError(f"{name}: {key} must lie strictly between 0 and 1, got {value}; {ends}")

"""Losses on logits: knowledge distillation between two softmaxes, hard labels, and TextBrewer's probability shift.

Shapes: logits (batch, classes) with mask (batch,), or (batch, length, classes) with mask (batch, length). An item is
one entry of the mask. `temperature` is a number, or a tensor with one value per item. `class_mask` (the shape of the
logits, or (batch, classes)) takes classes out of both softmaxes: for the start and end logits of extractive QA the
classes are positions, and padded positions are no answers. Every item needs at least one class.

`scale_by_temperature_squared` multiplies each item by its T ** 2. The gradient of a divergence between two softmaxes
at temperature T falls with T ** 2 (arXiv:1503.02531, section 2.1), so the factor keeps temperature and loss weight
apart. TextBrewer has no such factor, hence off by default. `tv` alone falls with T, and is multiplied by T.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from raybrew.errors import LossError
from raybrew.losses.masking import EXCLUDED, check_same_shape, full_precision, real_items
from raybrew.losses.term import LossTerm, Per, count_items

__all__ = [
    "Inputs",
    "KDLoss",
    "bce",
    "binary_kl",
    "ce",
    "hard_label_ce",
    "js",
    "kd_loss",
    "kl",
    "label_items",
    "mse",
    "probability_shift",
    "reverse_kl",
    "skew_kl",
    "skew_reverse_kl",
    "tv",
]


class Inputs(NamedTuple):
    """Checked inputs of a KD loss: float32, divided by the temperature, padding replaced by zeros."""

    student: Tensor
    teacher: Tensor
    real: Tensor  #: bool, one per item
    classes: Tensor | None  #: bool, the shape of the logits; None = all
    temperature: float | Tensor  #: a number, or one per item


class KDLoss(Protocol):
    """How a KD loss is called; `options` are those of its own, such as `alpha`."""

    def __call__(
        self,
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None = None,
        *,
        temperature: float | Tensor = 1.0,
        class_mask: Tensor | None = None,
        scale_by_temperature_squared: bool = False,
        **options: float,
    ) -> LossTerm: ...


def kd_loss(temperature_power: int = 2) -> Callable[[Callable[..., Tensor]], KDLoss]:
    """Makes a loss of a function from `Inputs` to one value per item: inputs checked, padding out, items counted.

    The gradient falls with the temperature to `temperature_power`, by which `scale_by_temperature_squared` multiplies.
    """

    def decorate(per_item: Callable[..., Tensor]) -> KDLoss:
        name = per_item.__name__

        def loss(
            student: Tensor,
            teacher: Tensor,
            mask: Tensor | None = None,
            *,
            temperature: float | Tensor = 1.0,
            class_mask: Tensor | None = None,
            scale_by_temperature_squared: bool = False,
            **options: float,
        ) -> LossTerm:
            inputs = _prepare(name, student, teacher, mask, temperature, class_mask)
            values = per_item(inputs, **options)
            if scale_by_temperature_squared:
                values = values * inputs.temperature**temperature_power
            return LossTerm(values.masked_fill(~inputs.real, 0.0).sum(), count_items(Per.TOKEN, inputs.real))

        # What help and checks read: the parameters of every KD loss, and then this one's own.
        shared = [each for each in inspect.signature(loss).parameters.values() if each.name != "options"]
        own = list(inspect.signature(per_item).parameters.values())[1:]
        functools.update_wrapper(loss, per_item)
        loss.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]
        return full_precision(loss)

    return decorate


@kd_loss()
def ce(inputs: Inputs) -> Tensor:
    """Cross entropy of the teacher's softmax and the student's: -sum p_T log p_S per item (TextBrewer's `ce`)."""
    log_student, log_teacher = _log_probs(inputs)
    return -(log_teacher.exp() * log_student).sum(dim=-1)


@kd_loss()
def mse(inputs: Inputs) -> Tensor:
    """Squared error of the logits divided by the temperature, mean over the classes of an item."""
    per_class = (inputs.student - inputs.teacher).square()
    return _mean_over_classes(per_class, inputs)


@kd_loss()
def bce(inputs: Inputs) -> Tensor:
    """Binary cross entropy of the teacher's sigmoids and the student's, mean over classes: for multi-label tasks."""
    per_class = F.binary_cross_entropy_with_logits(inputs.student, inputs.teacher.sigmoid(), reduction="none")
    return _mean_over_classes(per_class, inputs)


@kd_loss()
def binary_kl(inputs: Inputs) -> Tensor:
    """KL of the teacher's and the student's sigmoids, mean over classes: `bce` less its value where both agree.

    The gradient is that of `bce`, bit for bit, because the part that is subtracted depends on the teacher alone.
    """
    probs = inputs.teacher.sigmoid()
    per_class = F.binary_cross_entropy_with_logits(inputs.student, probs, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(inputs.teacher, probs, reduction="none")
    return _mean_over_classes(per_class - entropy, inputs)


@kd_loss()
def kl(inputs: Inputs) -> Tensor:
    """KL(teacher || student): the gradient of `ce`, and zero when both agree (arXiv:1503.02531)."""
    log_student, log_teacher = _log_probs(inputs)
    return _divergence(log_teacher, log_student)


@kd_loss()
def reverse_kl(inputs: Inputs) -> Tensor:
    """KL(student || teacher): seeks the teacher's modes instead of covering them (MiniLLM, arXiv:2306.08543)."""
    log_student, log_teacher = _log_probs(inputs)
    return _divergence(log_student, log_teacher)


@kd_loss()
def js(inputs: Inputs, *, beta: float = 0.5) -> Tensor:
    """Generalised Jensen-Shannon divergence of GKD (arXiv:2306.13649, equation 1), 0 < beta < 1.

    beta * KL(teacher || m) + (1 - beta) * KL(student || m) with m = beta * teacher + (1 - beta) * student. It is
    bounded, and vanishes at both ends of beta (divided by beta it tends to `kl`, by 1 - beta to `reverse_kl`).
    """
    _check_open_unit("js", "beta", beta, "use kl for 0 or reverse_kl for 1")
    log_student, log_teacher = _log_probs(inputs)
    log_mixed = _log_mixture(log_teacher, log_student, beta)
    return beta * _divergence(log_teacher, log_mixed) + (1.0 - beta) * _divergence(log_student, log_mixed)


@kd_loss()
def skew_kl(inputs: Inputs, *, alpha: float = 0.1) -> Tensor:
    """KL(teacher || alpha * teacher + (1 - alpha) * student) of DistiLLM (arXiv:2402.03898), 0 < alpha < 1."""
    _check_open_unit("skew_kl", "alpha", alpha, "use kl for 0")
    log_student, log_teacher = _log_probs(inputs)
    log_mixed = _log_mixture(log_teacher, log_student, alpha)
    return _divergence(log_teacher, log_mixed)


@kd_loss()
def skew_reverse_kl(inputs: Inputs, *, alpha: float = 0.1) -> Tensor:
    """KL(student || (1 - alpha) * teacher + alpha * student) of DistiLLM (arXiv:2402.03898), 0 < alpha < 1."""
    _check_open_unit("skew_reverse_kl", "alpha", alpha, "use reverse_kl for 0")
    log_student, log_teacher = _log_probs(inputs)
    log_mixed = _log_mixture(log_student, log_teacher, alpha)
    return _divergence(log_student, log_mixed)


@kd_loss(temperature_power=1)
def tv(inputs: Inputs) -> Tensor:
    """Total variation distance: half the sum of absolute differences of the two softmaxes.

    It is of first order in the logits' difference, so its gradient falls with T alone: here
    `scale_by_temperature_squared` multiplies by T, the factor that keeps the gradient, and not by its square.
    """
    log_student, log_teacher = _log_probs(inputs)
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
    classes = _expand_class_mask("hard_label_ce", class_mask, student)
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
    classes = _expand_class_mask("probability_shift", class_mask, logits)
    candidates = logits if classes is None else logits.float().masked_fill(~classes, EXCLUDED)
    largest = candidates.argmax(dim=-1, keepdim=True)
    truth = torch.where(labels.unsqueeze(-1) < 0, largest, labels.long().unsqueeze(-1))
    return logits.scatter(-1, largest, logits.gather(-1, truth)).scatter(-1, truth, logits.gather(-1, largest))


def _prepare(
    name: str,
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    temperature: float | Tensor,
    class_mask: Tensor | None,
) -> Inputs:
    if student.dim() < 2:
        raise LossError(f"{name}: logits need a class dimension, got shape {tuple(student.shape)}")
    check_same_shape(name, student, teacher, "teacher and student must have the same classes in the same order")
    real = real_items(name, mask, student, student.dim() - 1)
    classes = _expand_class_mask(name, class_mask, student)
    divisor: float | Tensor
    if isinstance(temperature, Tensor):
        if temperature.dim() > 0 and temperature.shape != real.shape:
            raise LossError(
                f"{name}: temperature of shape {tuple(temperature.shape)} does not fit logits of shape "
                f"{tuple(student.shape)}; expected a number or shape {tuple(real.shape)}"
            )
        temperature = temperature.detach().float()
        if temperature.dim() > 0:
            temperature = temperature.masked_fill(~real, 1.0)
        divisor = temperature.unsqueeze(-1) if temperature.dim() > 0 else temperature
    else:
        if not temperature > 0.0:
            raise LossError(f"{name}: temperature must be > 0, got {temperature}")
        divisor = temperature
    visible = None if mask is None else real.unsqueeze(-1)
    if classes is not None:
        visible = classes if visible is None else classes & visible
    scaled = [logits.float() / divisor for logits in (student, teacher.detach())]
    if visible is not None:
        scaled = [logits.masked_fill(~visible, 0.0) for logits in scaled]
    return Inputs(scaled[0], scaled[1], real, classes, temperature)


def _expand_class_mask(name: str, class_mask: Tensor | None, logits: Tensor) -> Tensor | None:
    if class_mask is None:
        return None
    classes = class_mask.to(logits.device) != 0
    if classes.shape == logits.shape:
        return classes
    if logits.dim() == 3 and classes.shape == (logits.shape[0], logits.shape[2]):
        return classes.unsqueeze(1).expand_as(logits)
    raise LossError(
        f"{name}: class_mask of shape {tuple(class_mask.shape)} does not fit logits of shape {tuple(logits.shape)}"
    )


def _log_probs(inputs: Inputs) -> tuple[Tensor, Tensor]:
    student, teacher = inputs.student, inputs.teacher
    if inputs.classes is not None:
        student = student.masked_fill(~inputs.classes, EXCLUDED)
        teacher = teacher.masked_fill(~inputs.classes, EXCLUDED)
    return student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def _log_mixture(log_p: Tensor, log_q: Tensor, share_of_p: float) -> Tensor:
    return torch.logaddexp(log_p + math.log(share_of_p), log_q + math.log1p(-share_of_p))


def _mean_over_classes(per_class: Tensor, inputs: Inputs) -> Tensor:
    if inputs.classes is None:
        return per_class.mean(dim=-1)
    return per_class.masked_fill(~inputs.classes, 0.0).sum(dim=-1) / inputs.classes.sum(dim=-1).clamp_min(1)


def _check_open_unit(name: str, key: str, value: float, ends: str) -> None:
    if not 0.0 < value < 1.0:
        raise LossError(f"{name}: {key} must lie strictly between 0 and 1, got {value}; {ends}")

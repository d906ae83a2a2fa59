"""What every KD loss is made of: inputs checked and divided by the temperature, padding out, items counted.

`scale_by_temperature_squared` multiplies each item by its T ** 2. The gradient of a divergence between two softmaxes
at temperature T falls with T ** 2 (arXiv:1503.02531, section 2.1), so the factor keeps temperature and loss weight
apart. TextBrewer has no such factor, hence off by default.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from raybrew.errors import LossError
from raybrew.losses.masking import EXCLUDED, check_same_shape, full_precision, real_items
from raybrew.losses.term import LossTerm, Per, count_items

__all__ = ["KDInputs", "KDLoss", "class_mask_of", "kd_loss", "log_probs", "mean_over_classes"]


class KDInputs(NamedTuple):
    """Checked inputs of a KD loss: float32, divided by the temperature, padding replaced by zeros.

    Attributes:
        student: Logits (batch, classes) or (batch, length, classes), with gradient.
        teacher: Logits of the same shape, without gradient.
        real: Bool (batch,) or (batch, length): which items count.
        classes: Bool, of the shape of the logits: which classes items have; None for all.
        temperature: A number, or one for each item, which the logits are divided by already.
    """

    student: Tensor
    teacher: Tensor
    real: Tensor
    classes: Tensor | None
    temperature: float | Tensor


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
    """Makes a KD loss of a function from `KDInputs` to one value per item: inputs checked, padding out, items counted.

    Args:
        temperature_power: With which power of the temperature the gradient falls, by which
            `scale_by_temperature_squared` multiplies.

    Returns:
        The decorator. What it makes takes what every KD loss takes, and the function's own keyword arguments.

    Raises:
        LossError: When the loss is called with tensors whose shapes do not fit, or a temperature of 0.

    Example:
        >>> @kd_loss()
        ... def squared_odds(inputs: KDInputs, *, scale: float = 1.0) -> torch.Tensor:
        ...     log_student, log_teacher = log_probs(inputs)
        ...     return scale * (log_student - log_teacher).square().sum(dim=-1)
        >>> squared_odds(torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([1, 0]), temperature=2.0)
        LossTerm(sum=tensor(0.), count=tensor(1.))
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


def log_probs(inputs: KDInputs) -> tuple[Tensor, Tensor]:
    """Log-softmaxes of student and teacher, of the shape of the logits, without the classes that items do not have."""
    student, teacher = inputs.student, inputs.teacher
    if inputs.classes is not None:
        student = student.masked_fill(~inputs.classes, EXCLUDED)
        teacher = teacher.masked_fill(~inputs.classes, EXCLUDED)
    return student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)


def mean_over_classes(per_class: Tensor, inputs: KDInputs) -> Tensor:
    """The mean of values (..., classes) over the classes that items have: one per item."""
    if inputs.classes is None:
        return per_class.mean(dim=-1)
    return per_class.masked_fill(~inputs.classes, 0.0).sum(dim=-1) / inputs.classes.sum(dim=-1).clamp_min(1)


def _prepare(
    name: str,
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    temperature: float | Tensor,
    class_mask: Tensor | None,
) -> KDInputs:
    if student.dim() < 2:
        raise LossError(f"{name}: logits need a class dimension, got shape {tuple(student.shape)}")
    check_same_shape(name, student, teacher, "teacher and student must have the same classes in the same order")
    real = real_items(name, mask, student, student.dim() - 1)
    classes = class_mask_of(name, class_mask, student)
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
    return KDInputs(scaled[0], scaled[1], real, classes, temperature)


def class_mask_of(name: str, class_mask: Tensor | None, logits: Tensor) -> Tensor | None:
    """`class_mask` as bool of the shape of the logits; LossError, naming the loss, if it has another shape."""
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

"""Logit losses against loops over items and classes, and against TextBrewer where it has them."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from raybrew.catalog.losses import KD_LOSSES
from raybrew.errors import LossError
from raybrew.losses import logits as losses

SHAPES = [(5, 3), (1, 2), (4, 6, 7), (2, 1, 3)]


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3


def partial_mask(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    mask = (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6).long()
    mask.view(-1)[0] = 1
    return mask


def softmax(row: list[Tensor]) -> list[Tensor]:
    exponentials = [value.exp() for value in row]
    total = sum(exponentials[1:], exponentials[0])
    return [value / total for value in exponentials]


def divergence(p: list[Tensor], q: list[Tensor]) -> Tensor:
    return sum((a * (a.log() - b.log()) for a, b in zip(p, q, strict=True)), torch.zeros((), dtype=torch.float64))


def mix(p: list[Tensor], q: list[Tensor], share: float) -> list[Tensor]:
    return [share * a + (1 - share) * b for a, b in zip(p, q, strict=True)]


def naive_item(name: str, s: list[Tensor], t: list[Tensor]) -> Tensor:
    """One item's loss; `s` and `t` are its logits, already divided by the temperature."""
    q, p = softmax(s), softmax(t)
    zero = torch.zeros((), dtype=torch.float64)
    if name == "ce":
        return sum((-a * b.log() for a, b in zip(p, q, strict=True)), zero)
    if name == "mse":
        return sum(((a - b) ** 2 for a, b in zip(s, t, strict=True)), zero) / len(s)
    if name == "bce":
        total = zero
        for a, b in zip(s, t, strict=True):
            on_s, on_t = 1 / (1 + (-a).exp()), 1 / (1 + (-b).exp())
            total = total - on_t * on_s.log() - (1 - on_t) * (1 - on_s).log()
        return total / len(s)
    if name == "kl":
        return divergence(p, q)
    if name == "reverse_kl":
        return divergence(q, p)
    if name == "js":
        m = mix(p, q, 0.3)
        return 0.3 * divergence(p, m) + 0.7 * divergence(q, m)
    if name == "skew_kl":
        return divergence(p, mix(p, q, 0.2))
    if name == "skew_reverse_kl":
        return divergence(q, mix(q, p, 0.2))
    if name == "tv":
        return sum(((a - b).abs() for a, b in zip(p, q, strict=True)), zero) / 2
    raise AssertionError(f"no reference for {name}")


OPTIONS = {"js": {"beta": 0.3}, "skew_kl": {"alpha": 0.2}, "skew_reverse_kl": {"alpha": 0.2}}


def naive_mean(name: str, student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float | Tensor) -> Tensor:
    rows_s, rows_t = student.flatten(0, -2), teacher.double().flatten(0, -2)
    real = [True] * len(rows_s) if mask is None else [bool(value) for value in mask.flatten()]
    values = []
    for index, counts in enumerate(real):
        if counts:
            t = float(temperature.flatten()[index]) if isinstance(temperature, Tensor) else temperature
            values.append(naive_item(name, list(rows_s[index] / t), list(rows_t[index] / t)))
    return sum(values[1:], values[0]) / len(values)


def test_every_kd_loss_has_a_reference() -> None:
    logits = [torch.tensor(value, dtype=torch.float64) for value in (0.5, -1.0)]
    assert len(KD_LOSSES) >= 9
    for name in KD_LOSSES:
        assert torch.isfinite(naive_item(name, logits, logits[::-1]))


@pytest.mark.parametrize("name", KD_LOSSES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 4.0, "per item"])
def test_against_loops(
    name: str, shape: tuple[int, ...], masked: bool, temperature: float | str, same_value_and_gradient: Callable
) -> None:
    student, teacher = draw(shape, 1), draw(shape, 2)
    mask = partial_mask(shape[:-1]) if masked else None
    heat = draw(shape[:-1], 3).abs() + 0.5 if isinstance(temperature, str) else temperature
    loss = KD_LOSSES[name].load()
    same_value_and_gradient(
        lambda s: loss(s, teacher, mask, temperature=heat, **OPTIONS.get(name, {})),
        lambda s: naive_mean(name, s, teacher, mask, heat),
        student,
        tolerance=5e-6,
        precision=torch.float64,
    )


@pytest.mark.parametrize("name", ["ce", "mse"])
@pytest.mark.parametrize("shape", [*SHAPES, (32, 2), (8, 64, 9)])
@pytest.mark.parametrize("temperature", [1.0, 8.0, "per item"])
def test_against_textbrewer(
    name: str,
    shape: tuple[int, ...],
    temperature: float | str,
    textbrewer: ModuleType,
    same_value_and_gradient: Callable,
) -> None:
    student, teacher = draw(shape, 1), draw(shape, 2)
    heat = draw(shape[:-1], 3).abs() + 0.5 if isinstance(temperature, str) else temperature
    same_value_and_gradient(
        lambda s: KD_LOSSES[name].load()(s, teacher, temperature=heat),
        lambda s: textbrewer.KD_LOSS_MAP[name](s, teacher, heat),
        student,
    )


@pytest.mark.parametrize("name", ["ce", "mse"])
def test_mask_against_textbrewer_selection(
    name: str, textbrewer: ModuleType, same_value_and_gradient: Callable
) -> None:
    from textbrewer.distiller_utils import select_logits_with_mask

    student, teacher, mask = draw((6, 9, 5), 1), draw((6, 9, 5), 2), partial_mask((6, 9))

    def theirs(s: Tensor) -> Tensor:
        return textbrewer.KD_LOSS_MAP[name](
            select_logits_with_mask([s], [mask])[0], select_logits_with_mask([teacher], [mask])[0], 8
        )

    same_value_and_gradient(lambda s: KD_LOSSES[name].load()(s, teacher, mask, temperature=8), theirs, student)


@pytest.mark.parametrize("name", KD_LOSSES)
def test_class_mask_is_the_loss_over_the_allowed_classes(name: str, same_value_and_gradient: Callable) -> None:
    student, teacher = draw((4, 7), 1), draw((4, 7), 2)
    class_mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1, 0, 1, 0, 1, 0, 0], [0] * 6 + [1]])
    student[1, 6], teacher[2, 1], teacher[1, 5] = math.inf, math.nan, -math.inf

    def sliced(s: Tensor) -> Tensor:
        values = [
            naive_item(name, list(s[i][class_mask[i] == 1]), list(teacher.double()[i][class_mask[i] == 1]))
            for i in range(4)
        ]
        return sum(values[1:], values[0]) / 4

    same_value_and_gradient(
        lambda s: KD_LOSSES[name].load()(s, teacher, class_mask=class_mask, **OPTIONS.get(name, {})),
        sliced,
        student,
        tolerance=5e-6,
        precision=torch.float64,
    )


def test_class_mask_of_rows_spreads_over_tokens() -> None:
    student, teacher = draw((2, 3, 4), 1), draw((2, 3, 4), 2)
    rows = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 1]])
    wide = rows.unsqueeze(1).expand(2, 3, 4)
    assert torch.equal(
        losses.kl(student, teacher, class_mask=rows).sum, losses.kl(student, teacher, class_mask=wide).sum
    )


def gradient_norm(name: str, temperature: float, squared: bool) -> float:
    # Logits of standard deviation 1: larger ones saturate the softmaxes at T = 1, which hides the law of high T.
    student, teacher = (draw((64, 5), 1) / 3).requires_grad_(), draw((64, 5), 2) / 3
    term = KD_LOSSES[name].load()(student, teacher, temperature=temperature, scale_by_temperature_squared=squared)
    (term.sum / term.count).backward()
    assert student.grad is not None
    return float(student.grad.norm())


@pytest.mark.parametrize("name", KD_LOSSES)
def test_factor_keeps_the_gradient_over_temperatures(name: str) -> None:
    power = KD_LOSSES[name].temperature_power
    with_factor = [gradient_norm(name, t, True) for t in (1.0, 2.0, 4.0, 8.0)]
    without = [gradient_norm(name, t, False) for t in (1.0, 2.0, 4.0, 8.0)]
    assert max(with_factor) / min(with_factor) < 1.5
    assert without[0] / without[-1] > 8.0**power / 1.5
    assert without[0] > without[1] > without[2] > without[3]
    for t, with_t, without_t in zip((1.0, 2.0, 4.0, 8.0), with_factor, without, strict=True):
        assert with_t == pytest.approx(without_t * t**power, rel=1e-5)


def test_factor_is_per_item_for_temperatures_per_item() -> None:
    student, teacher, heat = draw((3, 4), 1), draw((3, 4), 2), torch.tensor([1.0, 2.0, 5.0])
    whole = losses.ce(student, teacher, temperature=heat, scale_by_temperature_squared=True).sum
    rows = [
        losses.ce(student[i : i + 1], teacher[i : i + 1], temperature=float(t)).sum * float(t) ** 2
        for i, t in enumerate(heat)
    ]
    torch.testing.assert_close(whole, sum(rows[1:], rows[0]))


def test_known_relations_between_losses() -> None:
    student, teacher = draw((6, 5), 1), draw((6, 5), 2)
    entropy = losses.ce(teacher, teacher).sum
    torch.testing.assert_close(losses.kl(student, teacher).sum, losses.ce(student, teacher).sum - entropy)
    torch.testing.assert_close(losses.reverse_kl(student, teacher).sum, losses.kl(teacher, student).sum)
    torch.testing.assert_close(losses.js(student, teacher).sum, losses.js(teacher, student).sum)
    beta = 1e-3  # the limits that GKD states in section 2
    torch.testing.assert_close(
        losses.js(student.double(), teacher, beta=beta).sum / beta, losses.kl(student, teacher).sum, rtol=0.05, atol=0.0
    )
    assert float(losses.js(student, teacher).sum) / 6 < math.log(2)
    assert float(losses.tv(student, teacher).sum) / 6 <= 1.0
    for name in KD_LOSSES:
        if name not in ("ce", "bce"):
            assert float(KD_LOSSES[name].load()(teacher, teacher).sum) == pytest.approx(0.0, abs=1e-5), name


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("masked", [False, True])
def test_hard_labels_against_torch(
    shape: tuple[int, ...], smoothing: float, masked: bool, same_value_and_gradient: Callable
) -> None:
    student = draw(shape, 1)
    labels = torch.randint(-1, shape[-1], shape[:-1], generator=torch.Generator().manual_seed(4))
    labels.view(-1)[0] = 1
    mask = partial_mask(shape[:-1]) if masked else None
    ignored = labels.masked_fill(labels < 0, -100)
    if mask is not None:
        ignored = ignored.masked_fill(mask == 0, -100)
    same_value_and_gradient(
        lambda s: losses.hard_label_ce(s, labels, mask, label_smoothing=smoothing),
        lambda s: F.cross_entropy(s.flatten(0, -2), ignored.flatten(), ignore_index=-100, label_smoothing=smoothing),
        student,
    )
    term = losses.hard_label_ce(student, labels, mask)
    assert float(term.count) == float((ignored >= 0).sum()) == float(losses.label_items(labels, mask).sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_hard_labels_over_allowed_classes_only(smoothing: float, same_value_and_gradient: Callable) -> None:
    student, labels = draw((3, 6), 1), torch.tensor([0, 3, 5])
    class_mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0]])  # the last label is not allowed
    student[1, 4], student[2, 5] = math.nan, math.inf

    def sliced(s: Tensor) -> Tensor:
        first = F.cross_entropy(s[:1], labels[:1], label_smoothing=smoothing)
        second = F.cross_entropy(s[1:2, :4], labels[1:2], label_smoothing=smoothing)
        return (first + second) / 2

    same_value_and_gradient(
        lambda s: losses.hard_label_ce(s, labels, class_mask=class_mask, label_smoothing=smoothing), sliced, student
    )


def test_hard_labels_all_ignored() -> None:
    student = draw((3, 4), 1).requires_grad_()
    term = losses.hard_label_ce(student, torch.tensor([-100, -1, -7]))
    term.sum.backward()
    assert float(term.sum.detach()) == 0.0
    assert float(term.count) == 0.0
    assert student.grad is not None
    assert not student.grad.any()


@pytest.mark.parametrize("shape", SHAPES)
def test_probability_shift_against_a_loop(shape: tuple[int, ...]) -> None:
    teacher = draw(shape, 2)
    before = teacher.clone()
    labels = torch.randint(-1, shape[-1], shape[:-1], generator=torch.Generator().manual_seed(5))
    shifted = losses.probability_shift(teacher, labels)
    assert torch.equal(teacher, before)
    for row, out, label in zip(teacher.flatten(0, -2), shifted.flatten(0, -2), labels.flatten().tolist(), strict=True):
        expected = row.tolist()
        if label >= 0:
            best = expected.index(max(expected))
            expected[best], expected[label] = expected[label], expected[best]
        assert out.tolist() == expected


@pytest.mark.parametrize("shape", SHAPES)
def test_probability_shift_against_textbrewer(shape: tuple[int, ...], textbrewer: ModuleType) -> None:
    from textbrewer.distiller_utils import probability_shift_

    lowest = -1 if len(shape) == 3 else 0  # its (batch, classes) form reads a negative label as the last class
    labels = torch.randint(lowest, shape[-1], shape[:-1], generator=torch.Generator().manual_seed(5))
    teacher = draw(shape, 2)
    assert torch.equal(losses.probability_shift(teacher, labels), probability_shift_(teacher.clone(), labels))


def test_probability_shift_among_allowed_classes() -> None:
    teacher = torch.tensor([[1.0, 9.0, 3.0, 2.0]])
    shifted = losses.probability_shift(teacher, torch.tensor([0]), class_mask=torch.tensor([[1, 0, 1, 1]]))
    assert shifted.tolist() == [[3.0, 9.0, 1.0, 2.0]]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: losses.ce(s, s[:, :2]), ["(4, 3)", "(4, 2)"]),
        (lambda s: losses.kl(s, s, torch.ones(3)), ["kl", "(3,)", "(4,)"]),
        (lambda s: losses.kl(s, s, temperature=0.0), ["temperature", "> 0", "0.0"]),
        (lambda s: losses.kl(s, s, temperature=torch.ones(3)), ["temperature", "(3,)", "(4,)"]),
        (lambda s: losses.kl(s, s, class_mask=torch.ones(4)), ["class_mask", "(4,)", "(4, 3)"]),
        (lambda s: losses.js(s, s, beta=1.0), ["beta", "1.0", "reverse_kl"]),
        (lambda s: losses.skew_kl(s, s, alpha=0.0), ["alpha", "0.0", "kl"]),
        (lambda s: losses.ce(s[0], s[0]), ["class dimension", "(3,)"]),
        (lambda s: losses.hard_label_ce(s, torch.zeros(3).long()), ["(3,)", "(4, 3)", "(4,)"]),
        (lambda s: losses.hard_label_ce(s, torch.zeros(4).long(), label_smoothing=1.0), ["label_smoothing", "1.0"]),
        (lambda s: losses.hard_label_ce(s, torch.zeros(4).long(), torch.ones(2)), ["mask", "(2,)", "(4,)"]),
        (lambda s: losses.probability_shift(s, torch.zeros(5).long()), ["(5,)", "(4, 3)"]),
    ],
)
def test_errors_name_what_was_given(call: Callable[[Tensor], object], words: list[str]) -> None:
    with pytest.raises(LossError) as caught:
        call(draw((4, 3), 1))
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("garbage", [0.0, math.nan, math.inf])
@pytest.mark.parametrize("squared", [False, True])
def test_temperatures_of_padded_items_do_not_matter(garbage: float, squared: bool) -> None:
    student, teacher, mask = draw((3, 4), 1).requires_grad_(), draw((3, 4), 2), torch.tensor([1, 0, 1])
    heat = torch.tensor([2.0, garbage, 3.0])
    term = losses.kl(student, teacher, mask, temperature=heat, scale_by_temperature_squared=squared)
    clean = losses.kl(
        student, teacher, mask, temperature=heat.nan_to_num(9, 9).clamp_min(1), scale_by_temperature_squared=squared
    )
    assert torch.equal(term.sum, clean.sum)
    (gradient,) = torch.autograd.grad(term.sum, student)
    assert torch.isfinite(gradient).all()
    assert not gradient[1].any()

"""What each task's head makes of outputs, against loops over rows and items: values, counts and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from raybrew.catalog.losses import KD_LOSSES
from raybrew.config.distill import DistillConfig
from raybrew.config.terms import KDLossConfig
from raybrew.distillers.objective import COUNT_KEYS, Objective, build_objective
from raybrew.distillers.signal_terms import KDOnSignals
from raybrew.losses.logits import probability_shift
from raybrew.losses.term import LossTerm
from raybrew.signals import LOGITS
from raybrew.tasks.heads import BinaryHead, ClassHead, Head, ItemHead, NumberHead, SpanHead, VocabularyHead

ROWS, MOST, CLASSES, T = 4, 6, 3, 2.5
COUNTS = (6, 1, 4, 3)  #: items of each row; the last row only pads a worker's share


def batch_for(head: Head) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits_mask = torch.tensor([1.0, 1.0, 1.0, 0.0])
    batch = {"attention_mask": torch.ones(ROWS, 9), "logits_mask": logits_mask}
    if isinstance(head, ItemHead | SpanHead):
        lengths = torch.tensor(COUNTS) * logits_mask
        batch["item_mask"] = (torch.arange(MOST) < lengths[:, None]).float()
    if isinstance(head, ItemHead):
        batch["labels"] = torch.randint(-1, CLASSES, (ROWS, MOST), generator=generator)
    elif isinstance(head, SpanHead):
        batch["labels"] = torch.tensor([[1, 5], [0, 0], [-1, -1], [1, 1]])
    elif isinstance(head, BinaryHead):
        batch["labels"] = torch.tensor([[0, 2], [-1, -1], [-2, -1], [1, -1]])
    elif isinstance(head, NumberHead):
        batch["labels"] = torch.tensor([1.5, math.nan, -2.0, 7.0])
    else:
        batch["labels"] = torch.tensor([2, -1, 0, 1])
    return batch


def outputs_for(head: Head, seed: int) -> Tensor:
    shape: tuple[int, ...] = (ROWS, CLASSES)
    if isinstance(head, ItemHead):
        shape = (ROWS, MOST, CLASSES)
    elif isinstance(head, SpanHead):
        shape = (ROWS, MOST, 2)
    elif isinstance(head, NumberHead):
        shape = (ROWS, 1)
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cross_entropy(student: Tensor, teacher: Tensor) -> Tensor:
    return -((teacher / T).softmax(-1) * (student / T).log_softmax(-1)).sum() * T**2


def binary(student: Tensor, teacher: Tensor) -> Tensor:
    target, log_yes, log_no = (teacher / T).sigmoid(), (student / T).sigmoid().log(), (-student / T).sigmoid().log()
    return -(target * log_yes + (1 - target) * log_no).mean() * T**2


def naive_kd(head: Head, student: Tensor, teacher: Tensor) -> tuple[Tensor, int]:
    """What the cross entropies exceed the teacher's own by: 0 where both agree."""
    whole, count = naive_ce(head, student, teacher)
    return whole - naive_ce(head, teacher, teacher)[0], count


def naive_ce(head: Head, student: Tensor, teacher: Tensor) -> tuple[Tensor, int]:
    parts: list[Tensor] = []
    for row in range(3):
        if isinstance(head, ItemHead):
            parts += [cross_entropy(student[row, item], teacher[row, item]) for item in range(COUNTS[row])]
        elif isinstance(head, SpanHead):
            real = slice(0, COUNTS[row])
            parts += [cross_entropy(student[row, real, side], teacher[row, real, side]) for side in range(2)]
        elif isinstance(head, BinaryHead):
            parts.append(binary(student[row], teacher[row]))
        elif isinstance(head, NumberHead):
            parts.append((student[row, 0] - teacher[row, 0]) ** 2)
        else:
            parts.append(cross_entropy(student[row], teacher[row]))
    return torch.stack(parts).sum(), len(parts)


def naive_labels(head: Head, student: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    parts: list[Tensor] = []
    for row in range(3):
        if isinstance(head, ItemHead):
            parts += [
                -student[row, item].log_softmax(-1)[labels[row, item]]
                for item in range(COUNTS[row])
                if labels[row, item] >= 0
            ]
        elif isinstance(head, SpanHead):
            parts += [
                -student[row, : COUNTS[row], side].log_softmax(-1)[labels[row, side]]
                for side in range(2)
                if labels[row, side] >= 0
            ]
        elif isinstance(head, BinaryHead):
            present = labels[row].tolist()
            if -2 not in present:
                signs = [1.0 if place in present else -1.0 for place in range(CLASSES)]
                parts.append(-(student[row] * torch.tensor(signs)).sigmoid().log().mean())
        elif isinstance(head, NumberHead):
            if not math.isnan(labels[row]):
                parts.append((student[row, 0] - labels[row]) ** 2)
        elif labels[row] >= 0:
            parts.append(-student[row].log_softmax(-1)[labels[row]])
    return torch.stack(parts).sum(), len(parts)


def objective_for(head: Head) -> Objective:
    config = DistillConfig(temperature=T, kd_weight=1.0, hard_label_weight=0.5)
    return build_objective(config, head=head)


@pytest.mark.parametrize(
    "head", [ClassHead(), ItemHead(), SpanHead(), BinaryHead(), NumberHead()], ids=lambda h: type(h).__name__
)
def test_losses_of_heads(head: Head) -> None:
    batch, objective = batch_for(head), objective_for(head)
    teacher = outputs_for(head, 1)
    student, copied = outputs_for(head, 2).requires_grad_(), outputs_for(head, 2).requires_grad_()
    kd, label = objective({LOGITS: student}, {LOGITS: teacher}, batch)
    for term, (expected, count) in (
        (kd, naive_kd(head, copied, teacher)),
        (label, naive_labels(head, copied, batch["labels"])),
    ):
        assert count > 0
        assert term.sum.item() == pytest.approx(expected.item(), rel=1e-5)
        assert term.count.item() == count
        (given,) = torch.autograd.grad(term.sum, student, retain_graph=True)
        (wanted,) = torch.autograd.grad(expected, copied, retain_graph=True)
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)
        assert not given[3].any(), "a row that only pads a worker's share has a gradient"
    counts = dict(zip(COUNT_KEYS, objective.counts(batch).tolist(), strict=True))
    assert (counts["logits"], counts["labels"]) == (kd.count.item(), label.count.item()), (
        "known before the forward pass"
    )


HEADS = [ClassHead(), ItemHead(), SpanHead(), BinaryHead(), NumberHead(), VocabularyHead(3)]
#: A softmax over a single number says nothing.
KINDS = [(head, kind) for head in HEADS for kind in KD_LOSSES if kind == "mse" or not isinstance(head, NumberHead)]


def _name(value: object) -> str:
    return value if isinstance(value, str) else type(value).__name__


def kd_of(head: Head, student: Tensor, teacher: Tensor, **changes: object) -> LossTerm:
    config = DistillConfig.model_validate({"temperature": T, **changes})
    (term,) = build_objective(config, head=head)({LOGITS: student}, {LOGITS: teacher}, batch_for(head))
    return term


class TestShownKD:
    """What is shown of the KD loss is a divergence, and what trains is what it was before."""

    @pytest.mark.parametrize("scaled", [True, False])
    @pytest.mark.parametrize(("head", "kind"), [*KINDS, *((head, "auto") for head in HEADS)], ids=_name)
    def test_is_zero_where_both_agree(self, head: Head, kind: str, scaled: bool) -> None:
        logits = outputs_for(head, 1)
        changes = {"kd_loss": {"kind": kind}, "scale_by_temperature_squared": scaled}
        assert kd_of(head, logits.clone(), logits, **changes).sum.item() == pytest.approx(0.0, abs=2e-6)
        assert kd_of(head, outputs_for(head, 2), logits, **changes).sum.item() > 1e-2

    @pytest.mark.parametrize(("head", "kind"), KINDS, ids=_name)
    def test_trains_as_the_loss_of_that_name(self, head: Head, kind: str) -> None:
        teacher, student = outputs_for(head, 1), outputs_for(head, 2).requires_grad_()
        compared = head.compared(student, teacher, batch_for(head))
        options = {} if compared.class_mask is None else {"class_mask": compared.class_mask}
        named = KD_LOSSES[kind].load()(*compared[:3], temperature=T, scale_by_temperature_squared=True, **options)
        shown = kd_of(head, student, teacher, kd_loss={"kind": kind})
        (wanted,) = torch.autograd.grad(named.sum, student)
        (given,) = torch.autograd.grad(shown.sum, student)
        assert wanted.any()
        assert torch.equal(given, wanted)
        assert torch.equal(shown.count, named.count)

    @pytest.mark.parametrize("head", [ClassHead(), BinaryHead()], ids=lambda h: type(h).__name__)
    def test_compares_across_temperatures(self, head: Head) -> None:
        """T^2 KL tends to a fixed value as T grows; a cross entropy grows with T^2."""
        student, teacher = outputs_for(head, 2), outputs_for(head, 1)
        shown = [kd_of(head, student, teacher, temperature=temperature).sum.item() for temperature in (16.0, 64.0)]
        assert shown[1] == pytest.approx(shown[0], rel=0.2)
        shifted = teacher - teacher.mean(dim=-1, keepdim=True), student - student.mean(dim=-1, keepdim=True)
        limit = (shifted[0] - shifted[1])[:3].square().sum().item() / (2 * CLASSES)
        if isinstance(head, ClassHead):
            assert shown[1] == pytest.approx(limit, rel=0.1)

    def test_aligned_answers_of_no_probability(self) -> None:
        """Tokens with which no answer of the teacher's begins or ends have its logit for impossible."""
        teacher, student = outputs_for(SpanHead(), 1), outputs_for(SpanHead(), 2).requires_grad_()
        teacher[:, 2:4] = -1e4
        term = kd_of(SpanHead(), student, teacher)
        assert torch.isfinite(term.sum)
        (gradient,) = torch.autograd.grad(term.sum, student)
        assert torch.isfinite(gradient).all()
        equal = kd_of(SpanHead(), teacher.clone(), teacher)
        assert equal.sum.item() == pytest.approx(0.0, abs=1e-6)

    def test_probability_shift_moves_the_zero(self) -> None:
        """The student is compared with the shifted teacher."""
        teacher = outputs_for(ClassHead(), 1)
        shifted = probability_shift(teacher, batch_for(ClassHead())["labels"])
        assert not torch.equal(shifted, teacher)
        assert kd_of(ClassHead(), shifted, teacher, probability_shift=True).sum.item() == pytest.approx(0.0, abs=1e-6)

    @pytest.mark.parametrize("kind", ["flsw", "cwsm"])
    def test_is_zero_at_temperatures_of_their_own(self, kind: str) -> None:
        logits = outputs_for(ClassHead(), 1)
        term = kd_of(ClassHead(), logits.clone(), logits, temperature_schedule={"kind": kind})
        assert term.sum.item() == pytest.approx(0.0, abs=2e-6)


def test_the_empty_set_of_labels_is_a_label() -> None:
    batch = {"labels": torch.empty(2, 0, dtype=torch.int64), "logits_mask": torch.ones(2)}
    term = BinaryHead().label_loss(torch.zeros(2, 3), batch)
    assert term.count.item() == 2
    assert term.sum.item() == pytest.approx(2 * math.log(2))


def test_temperature_leaves_the_squared_error_of_numbers_alone() -> None:
    batch, student, teacher = batch_for(NumberHead()), outputs_for(NumberHead(), 1), outputs_for(NumberHead(), 2)
    sums = []
    for temperature in (1.0, 8.0):
        config = DistillConfig(temperature=temperature, kd_loss=KDLossConfig(kind="mse"))
        (term,) = build_objective(config, head=NumberHead())({LOGITS: student}, {LOGITS: teacher}, batch)
        sums.append(term.sum.item())
    assert sums[0] == pytest.approx(sums[1])


def test_outputs_beyond_the_entries_of_the_tokenizer_take_no_part() -> None:
    """Student and teacher are padded to different sizes, and padding would win everywhere."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, size, generator=generator) for size in (9, 7))
    student[..., 6:], teacher[..., 6:] = 50.0, 50.0
    batch = {"labels": torch.tensor([[1, 5, -1], [0, 2, 3]]), "item_mask": torch.ones(2, 3)}
    padded, plain = VocabularyHead(2, entries=6), VocabularyHead(2)
    cut = student[..., :6]
    compared = padded.compared(student, teacher, batch)
    assert torch.equal(compared.student, cut)
    assert torch.equal(compared.teacher, teacher[..., :6])
    torch.testing.assert_close(padded.label_loss(student, batch).sum, plain.label_loss(cut, batch).sum)
    torch.testing.assert_close(padded.outputs(student, batch), plain.outputs(cut, batch))
    found = KDOnSignals(DistillConfig(), padded)({LOGITS: student}, {LOGITS: teacher}, batch)
    expected = KDOnSignals(DistillConfig(), plain)({LOGITS: cut}, {LOGITS: teacher[..., :6]}, batch)
    torch.testing.assert_close(found.sum, expected.sum)

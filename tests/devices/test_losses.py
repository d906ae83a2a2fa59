"""Every loss, temperature and head on a device: values and gradients as on the CPU, nothing waits, float32 inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from machines import device_of, half_precision, on_host, on_machine, refuse_others, waits_by_site
from torch import Tensor

from raybrew.catalog.losses import KD_LOSSES, MATCH_LOSSES, TEMPERATURES
from raybrew.losses.averaging import average_logits
from raybrew.losses.logits import hard_label_ce, probability_shift
from raybrew.losses.own import OwnLoss
from raybrew.losses.term import LossTerm
from raybrew.tasks.heads import BinaryHead, ClassHead, Head, ItemHead, NumberHead, SpanHead, VocabularyHead

BATCH, LENGTH, CLASSES = 4, 6, 5
LENGTHS = torch.tensor([6, 3, 1, 4])

#: Sites that make the host wait, and why that is right.
LISTED = {"losses/own.py:__call__": "the count of a user's function is checked, in its first call"}


def masks() -> dict[str, Tensor]:
    tokens = (torch.arange(LENGTH) < LENGTHS[:, None]).long()
    return {"rows": torch.tensor([1.0, 1.0, 0.0, 1.0]), "tokens": tokens}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cases() -> dict[str, tuple[Callable[..., LossTerm], tuple[int, ...], str]]:
    """Name -> (f(student, teacher, mask), shape, mask)."""
    found: dict[str, Any] = {}
    for name, entry in KD_LOSSES.items():
        for where, shape in (("rows", (BATCH, CLASSES)), ("tokens", (BATCH, LENGTH, CLASSES))):
            for load in {entry.target: entry.load, entry.divergence or entry.target: entry.load_divergence}.values():
                found[f"{name} {where} {load.__name__}"] = (_at(load(), 2.0), shape, where)
        found[f"{name} some classes"] = (_some_classes(entry.load()), (BATCH, CLASSES), "rows")
    for name, entry in TEMPERATURES.items():
        options = {"constant": {}, "flsw": {"beta": 1.0, "gamma": 1.0}, "cwsm": {"beta": 1.0}}[name]
        found[f"kl at {name}"] = (_by_rule(entry.load(), options), (BATCH, LENGTH, CLASSES), "tokens")
    shapes = {
        "hidden": (BATCH, LENGTH, 6),
        "attention": (BATCH, 3, LENGTH, LENGTH),
        "attention_probs": (BATCH, 3, LENGTH, LENGTH),
        "pooled": (BATCH, 6),
        "qkv": (BATCH, 3, LENGTH, 4),
    }
    for name, entry in MATCH_LOSSES.items():
        found[name] = (entry.load(), shapes[entry.needs], "rows" if entry.needs == "pooled" else "tokens")
        if entry.pairs:
            found[f"{name} of two layers"] = (_of_pairs(entry.load()), shapes[entry.needs], "tokens")
        if entry.needs == "attention":
            found[f"{name} unmasked"] = (_unmasked(entry.load()), shapes[entry.needs], "tokens")
    found["own"] = (OwnLoss("own", _own, "token"), shapes["hidden"], "tokens")
    found["labels"] = (lambda s, t, mask: hard_label_ce(s, t.argmax(dim=-1), mask), (BATCH, CLASSES), "rows")
    found["shift"] = (_shifted, (BATCH, CLASSES), "rows")
    for kind in ("logits", "probabilities"):
        found[f"average of {kind}"] = (_averaged(kind), (BATCH, CLASSES), "rows")
    return found


def _at(loss: Callable[..., LossTerm], temperature: Any) -> Callable[..., LossTerm]:
    return lambda student, teacher, mask: loss(student, teacher, mask, temperature=temperature)


def _some_classes(loss: Callable[..., LossTerm]) -> Callable[..., LossTerm]:
    def chosen(student: Tensor, teacher: Tensor, mask: Tensor) -> LossTerm:
        classes = torch.arange(CLASSES, device=student.device).expand(BATCH, -1) < 3
        return loss(student, teacher, mask, temperature=2.0, class_mask=classes)

    return chosen


def _by_rule(rule: Callable[..., Any], options: Mapping[str, float]) -> Callable[..., LossTerm]:
    def at(student: Tensor, teacher: Tensor, mask: Tensor) -> LossTerm:
        temperature = rule(student, teacher, 4.0, **options, mask=mask)
        term: LossTerm = KD_LOSSES["kl"].load()(student, teacher, mask, temperature=temperature)
        return term

    return at


def _of_pairs(loss: Callable[..., LossTerm]) -> Callable[..., LossTerm]:
    return lambda student, teacher, mask: loss([student, student * 0.5], [teacher, teacher * 2.0], mask)


def _unmasked(loss: Callable[..., LossTerm]) -> Callable[..., LossTerm]:
    return lambda student, teacher, mask: loss(student, teacher, None)


def _own(student: Tensor, teacher: Tensor, mask: Tensor) -> LossTerm:
    error = (student.float() - teacher.float()).square().mean(dim=-1).masked_fill(mask == 0, 0.0)
    return LossTerm(error.sum(), mask.sum().float())


def _shifted(student: Tensor, teacher: Tensor, mask: Tensor) -> LossTerm:
    shifted = probability_shift(teacher, student.detach().argmax(dim=-1))
    term: LossTerm = KD_LOSSES["ce"].load()(student, shifted, mask, temperature=1.0)
    return term


def _averaged(kind: Any) -> Callable[..., LossTerm]:
    def both(student: Tensor, teacher: Tensor, mask: Tensor) -> LossTerm:
        mean = average_logits([teacher, teacher * 0.5], [2.0, 1.0], average=kind, temperature=2.0)
        term: LossTerm = KD_LOSSES["kl"].load()(student, mean, mask, temperature=2.0)
        return term

    return both


@pytest.mark.parametrize("name", cases())
def test_losses(machine: str, name: str) -> None:
    loss, shape, where = cases()[name]
    student, teacher, mask = drawn(*shape).bfloat16(), drawn(*shape, seed=1).bfloat16(), masks()[where]
    device = device_of(machine)

    def both(place: torch.device) -> tuple[LossTerm, Tensor]:
        given = student.to(place).detach().requires_grad_()
        with torch.autocast(place.type, dtype=torch.bfloat16):
            term = loss(given, teacher.to(place), mask.to(place))
        term.sum.backward()
        assert given.grad is not None
        return term, given.grad

    expected, gradient = both(torch.device("cpu"))
    loss, _, _ = cases()[name]
    with on_machine(machine, watch_types=True) as watched:
        term, found = both(device)
    assert term.sum.device == term.count.device == found.device == device
    assert term.sum.dtype is term.count.dtype is torch.float32
    torch.testing.assert_close(on_host(term.sum), expected.sum.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(on_host(term.count), expected.count)
    torch.testing.assert_close(on_host(found), gradient, rtol=2e-2, atol=1e-4)
    refuse_others(waits_by_site(watched), LISTED)
    assert any(each.site.startswith("losses/") for each in watched.seen)
    assert not half_precision(watched.seen)


def batch_of(head: Head) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """Shape of a head's logits, and a batch with rows and items without label."""
    rows = {"logits_mask": torch.tensor([1.0, 1.0, 0.0, 1.0]), "attention_mask": masks()["tokens"]}
    item_mask = (torch.arange(3) < torch.tensor([3, 1, 2, 2])[:, None]).float() * rows["logits_mask"][:, None]
    items = rows | {"items": torch.tensor([[0, 1, 2]] * BATCH), "item_mask": item_mask}
    if isinstance(head, BinaryHead):
        return (BATCH, CLASSES), rows | {"labels": torch.tensor([[0, 2], [-1, -1], [1, -1], [-2, -1]])}
    if isinstance(head, NumberHead):
        return (BATCH, 1), rows | {"labels": torch.tensor([0.5, float("nan"), 1.0, 2.0])}
    if isinstance(head, SpanHead):
        return (BATCH, 3, 2), items | {"labels": torch.tensor([[0, 1], [-1, -1], [0, 0], [1, 1]])}
    if isinstance(head, ItemHead):
        return (BATCH, 3, CLASSES), items | {"labels": torch.tensor([[0, -1, 3], [1, -1, -1], [2, 2, -1], [3, 0, -1]])}
    return (BATCH, CLASSES), rows | {"labels": torch.tensor([0, -1, 2, 4])}


HEADS = (ClassHead(), ItemHead(), BinaryHead(), NumberHead(), SpanHead(), VocabularyHead(2), VocabularyHead(2, 4))


@pytest.mark.parametrize("head", HEADS, ids=lambda head: f"{type(head).__name__}{getattr(head, 'entries', None) or ''}")
def test_heads(machine: str, head: Head) -> None:
    shape, batch = batch_of(head)
    logits, other = drawn(*shape).bfloat16(), drawn(*shape, seed=1).bfloat16()
    kd = KD_LOSSES[head.kd_loss].load()

    def values(place: torch.device) -> list[Tensor]:
        moved = {name: value.to(place) for name, value in batch.items()}
        given = logits.to(place).detach().requires_grad_()
        with torch.autocast(place.type, dtype=torch.bfloat16):
            label = head.label_loss(given, moved)
            student, teacher, mask, _, class_mask = head.compared(given, other.to(place), moved)
            extra = {} if class_mask is None else {"class_mask": class_mask}
            term = kd(student, teacher, mask, temperature=2.0, **extra)
            outputs = head.outputs(given.detach(), moved)
        (label.sum + term.sum).backward()
        assert given.grad is not None
        counts = [head.num_labelled(moved), head.num_compared(moved), label.count, term.count]
        return [label.sum, term.sum, outputs, given.grad, *counts]

    expected = values(torch.device("cpu"))
    with on_machine(machine, watch_types=True) as watched:
        found = values(device_of(machine))
    for mine, wanted in zip(found, expected, strict=True):
        assert mine.device == device_of(machine)
        torch.testing.assert_close(on_host(mine).float(), wanted.detach().float(), rtol=2e-2, atol=1e-4)
    refuse_others(waits_by_site(watched), {})
    assert not half_precision(watched.seen) | half_precision(watched.seen, "tasks/heads.py")

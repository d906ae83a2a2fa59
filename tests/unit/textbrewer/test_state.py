"""Accumulation, caches and resumed trainings take the path of the plain one."""

from __future__ import annotations

import contextlib
import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_models import (
    HIDDEN,
    PlainModel,
    batches,
    distiller,
    examples_adaptor,
    logits_adaptor,
    settings,
    sgd,
    student,
    teacher,
    weights_of,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader

from raybrew import (
    BasicDistiller,
    DistillationConfig,
    GeneralDistiller,
    MultiTeacherDistiller,
)
from raybrew.errors import CheckpointError, ConfigError


def test_accumulated_equals_whole_batches(tmp_path: Path) -> None:
    """Masked losses included, and with dropout off in the counting pass its random numbers are the same."""
    whole = batches(4, size=8)
    cut = [{name: value[part : part + 2] for name, value in batch.items()} for batch in whole for part in (0, 2, 4, 6)]
    found = []
    for data, count in ((whole, 1), (cut, 4)):
        pupil = student()
        matches = [HIDDEN, {**HIDDEN, "loss": "mmd", "layer_T": [4, 4], "layer_S": [2, 2], "proj": None}]
        one = distiller(
            tmp_path,
            pupil,
            train={"gradient_accumulation_steps": count},
            intermediate_matches=matches,
            hard_label_weight=1,
        )
        one.train(sgd(pupil), data, num_epochs=3, max_grad_norm=1.0)
        found.append(weights_of(pupil))
    torch.testing.assert_close(found[0], found[1], atol=2e-5, rtol=1e-4)


def test_counting_pass_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that are counted beforehand and ones of known shape draw the same dropout."""
    counted: list[bool] = []
    forward = PlainModel.forward

    def spy(self: PlainModel, *args: Any, **kwargs: Any) -> Any:
        if self.dropout.p:
            counted.append(not torch.is_grad_enabled())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(PlainModel, "forward", spy)
    found = []
    for adaptor in (logits_adaptor, lambda b, o: {**logits_adaptor(b, o), "labels": b["labels"]}):
        counted.clear()
        pupil = student(dropout=0.3)
        one = distiller(tmp_path, pupil, adaptor, train={"gradient_accumulation_steps": 2})
        torch.manual_seed(3)
        one.train(sgd(pupil), batches(6), num_epochs=1)
        found.append((weights_of(pupil), sum(counted)))
    assert torch.equal(found[0][0], found[1][0])
    # One pass looks at the first batch; then one counts the one shape there is, or all six.
    assert [count for _, count in found] == [2, 7]


def noted_call(calls: list[int], *_: Any) -> None:
    calls.append(1)


@pytest.mark.parametrize("kind", ["kd only", "matches", "two teachers"])
def test_cached_logits_run_the_teacher_once(tmp_path: Path, kind: str) -> None:
    """And train as if the teacher had run on the same batches in the same order."""
    runs = []
    for caching in (True, False):
        pupil, wise = student(), teacher()
        calls: list[int] = []
        wise.register_forward_hook(functools.partial(noted_call, calls))
        matches = [HIDDEN] if kind == "matches" else []
        config = DistillationConfig(intermediate_matches=matches, is_caching_logits=caching)
        torch.manual_seed(1)
        one: BasicDistiller
        if kind == "two teachers":
            one = MultiTeacherDistiller(
                settings(tmp_path), config, [wise, teacher(seed=4)], pupil, examples_adaptor, examples_adaptor
            )
        else:
            one = GeneralDistiller(settings(tmp_path), config, wise, pupil, examples_adaptor, examples_adaptor)
        data: Any = batches(5)
        if not caching:  # the order that the cache draws
            torch.manual_seed(7)
            data = [data, *([data[i] for i in torch.randperm(5).tolist()] for _ in range(2))]
            data = list(itertools.chain(*data))
        torch.manual_seed(7)
        one.train(sgd(pupil), data, num_epochs=3 if caching else 1)
        runs.append((weights_of(pupil), len(calls)))
    assert torch.equal(runs[0][0], runs[1][0])
    assert runs[0][1] == 5 + 1  # each batch once, and the first look


def test_caching_needs_an_end(tmp_path: Path) -> None:
    pupil = student()
    one = distiller(tmp_path, pupil, is_caching_logits=True)
    with pytest.raises(ConfigError, match="is_caching_logits=True needs a dataloader with a length"):
        one.train(sgd(pupil), iter(batches(3)), num_steps=2)


class StoppedError(Exception):
    """What a test's callback raises instead of a power cut."""


def run_until(folder: Path, kind: str, seed: int, stop: int | None) -> tuple[list[Tensor], list[int]]:
    """Weights of student and projection, and the steps with a checkpoint; `stop` is the last one of these."""
    torch.manual_seed(seed)
    pupil = student(dropout=0.2)
    loader: DataLoader[Any] = DataLoader(batches(8, size=1), batch_size=None, shuffle=True)  # type: ignore[arg-type]
    num_micro = 2 if kind == "accumulated" else 1
    one = GeneralDistiller(
        settings(folder, resume=True, ckpt_frequency=2, ckpt_steps=3, gradient_accumulation_steps=num_micro),
        DistillationConfig(intermediate_matches=[HIDDEN], is_caching_logits=kind == "cached"),
        teacher(),
        pupil,
        examples_adaptor,
        examples_adaptor,
    )
    steps: list[int] = []

    def callback(model: nn.Module, step: int) -> None:
        steps.append(step)
        if step == stop:
            raise StoppedError

    lengths: dict[str, Any] = {"num_steps": 17} if kind == "steps" else {"num_epochs": 3}
    optimizer = torch.optim.SGD(pupil.parameters(), lr=0.05, momentum=0.9)
    with contextlib.nullcontext() if stop is None else pytest.raises(StoppedError):
        one.train(
            optimizer,
            loader,
            **lengths,
            callback=callback,
            scheduler_class=torch.optim.lr_scheduler.StepLR,
            scheduler_args={"step_size": 5},
        )
    assert one.projs[0] is not None
    return [weights_of(pupil), weights_of(one.projs[0])], steps


@pytest.mark.parametrize(
    ("kind", "stop"),
    [
        ("epochs", 12),
        ("epochs", 8),
        ("accumulated", 6),
        ("accumulated", 4),
        ("cached", 12),
        ("cached", 8),
        ("steps", 12),
    ],
)
def test_resume_is_exact(tmp_path: Path, kind: str, stop: int) -> None:
    """In the middle and at the end of an epoch, with dropout, momentum, a schedule and a shuffling DataLoader."""
    wanted, _ = run_until(tmp_path / "whole", kind, 11, None)
    run_until(tmp_path / "cut", kind, 11, stop)
    found, steps = run_until(tmp_path / "cut", kind, 99, None)
    assert steps[0] > stop
    assert all(torch.equal(*pair) for pair in zip(wanted, found, strict=True))
    # A finished training has nothing left to do.
    again, steps = run_until(tmp_path / "cut", kind, 98, None)
    assert not steps
    assert torch.equal(again[0], wanted[0])
    other = distiller(tmp_path / "cut", student(), train={"resume": True})
    with pytest.raises(CheckpointError, match="state of a training with other settings"):
        other.train(sgd(other.model_S), batches(4), num_epochs=1)

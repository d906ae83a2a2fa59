"""Distillers with optimizers and schedulers of one's own on the pretend accelerator: the host's weights, no waits."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from machines import waits_by_site
from plain_models import HIDDEN, batches, examples_adaptor, settings, student, teacher
from pretend import DEVICE, Accelerator, values_of
from torch import nn

from raybrew import DistillationConfig, GeneralDistiller

STEPS = 8


class SignDescent(torch.optim.Optimizer):
    """An optimizer of the user's: steps along the sign of a running mean (Lion, arXiv 2302.06675)."""

    def __init__(self, parameters: Iterable[Any], lr: float, beta: float = 0.9) -> None:
        super().__init__(parameters, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                weight.sub_(mean.lerp_(weight.grad, 1 - group["beta"]).tanh(), alpha=group["lr"])


#: Optimizers of torch that a distiller cannot use, and why.
LEFT_OUT = {
    "Optimizer": "is what the others are made of",
    "LBFGS": "wants a closure that computes the loss again",
    "SparseAdam": "is for sparse gradients alone",
    "Muon": "is for matrices alone",
}
#: Sites that torch's own optimizers make wait in each step, and why that is left to them.
IN_EACH_STEP = {
    "Adafactor": "steps are as long as a norm says that it reads",
    "ASGD": "rates are numbers on the device that it reads",
}


def optimizers() -> dict[str, Callable[[Iterable[Any]], torch.optim.Optimizer]]:
    """Name -> optimizer of parameters: all of torch's, their variants, and one of the user's."""
    found: dict[str, Callable[[Iterable[Any]], torch.optim.Optimizer]] = {}
    for name, made in vars(torch.optim).items():
        if isinstance(made, type) and issubclass(made, torch.optim.Optimizer) and name not in LEFT_OUT:
            found[name] = functools.partial(made, lr=1e-2)
    found["SGD with momentum"] = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True)
    for variant in ("fused", "foreach", "amsgrad"):
        found[f"AdamW {variant}"] = functools.partial(torch.optim.AdamW, lr=1e-2, **{variant: True})
    found["of one's own"] = functools.partial(SignDescent, lr=1e-2)
    return found


def trained(name: str, folder: Path, device: torch.device, scheduler: Any = None, **train: Any) -> nn.Module:
    torch.manual_seed(0)
    pupil, master = student().to(device), teacher().to(device)
    optimizer = optimizers()[name](pupil.parameters())
    distil = DistillationConfig(hard_label_weight=0.5, intermediate_matches=[HIDDEN])
    config = settings(folder, log_steps=1000, **train)
    with GeneralDistiller(config, distil, master, pupil, examples_adaptor, examples_adaptor) as one:
        schedule = {} if scheduler is None else {"scheduler_class": scheduler[0], "scheduler_args": scheduler[1]}
        one.train(optimizer, batches(8), num_steps=STEPS, max_grad_norm=0.5, **schedule)
    return pupil


def in_steps(accelerator: Accelerator) -> set[str]:
    """Sites of the loop that waited in each step."""
    found = waits_by_site(accelerator)
    return {site for site, count in found.items() if count >= STEPS and site.startswith("training/")}


def same(mine: nn.Module, other: nn.Module) -> None:
    for (name, found), expected in zip(mine.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(values_of(found), expected.detach(), rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("name", optimizers())
def test_optimizers(tmp_path: Path, name: str) -> None:
    expected = trained(name, tmp_path / "cpu", torch.device("cpu"))
    with Accelerator() as accelerator:
        found = trained(name, tmp_path / "device", DEVICE)
    same(found, expected)
    assert in_steps(accelerator) == ({"training/loop.py:train"} if name in IN_EACH_STEP else set())


SCHEDULERS = [
    (torch.optim.lr_scheduler.LambdaLR, {"lr_lambda": lambda step: 1.0 / (1 + step)}),
    (torch.optim.lr_scheduler.CosineAnnealingLR, {"T_max": STEPS}),
    (torch.optim.lr_scheduler.OneCycleLR, {"max_lr": 0.1, "total_steps": STEPS}),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda scheduler: scheduler[0].__name__)
def test_schedulers_and_accumulated_steps(tmp_path: Path, scheduler: Any) -> None:
    options = {"scheduler": scheduler, "gradient_accumulation_steps": 2}
    expected = trained("AdamW fused", tmp_path / "cpu", torch.device("cpu"), **options)
    with Accelerator() as accelerator:
        found = trained("AdamW fused", tmp_path / "device", DEVICE, **options)
    same(found, expected)
    assert not in_steps(accelerator)


@pytest.mark.parametrize(
    ("name", "operation"), [("AdamW fused", "_fused_adamw_"), ("SGD with momentum", "mul_"), ("of one's own", "lerp_")]
)
def test_fp16_keeps_the_optimizer_in_float32(tmp_path: Path, name: str, operation: str) -> None:
    with Accelerator(watch_types=True) as accelerator:
        found = trained(name, tmp_path, DEVICE, fp16=True)
    assert all(values_of(weight).isfinite().all() for weight in found.parameters())
    types = {each.types for each in accelerator.seen if each.operation == operation}
    assert types
    assert {kind for each in types for kind in each} == {torch.float32}
    products = {each.types[0] for each in accelerator.seen if each.operation in ("mm", "addmm")}
    assert torch.float16 in products

"""The pretend accelerator itself: right values, and everything that it is there to see."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable

import pytest
import torch
from machines import Cuda, waits_by_site
from pretend import DEVICE, Accelerator, MixedDevicesError, held_on_device, values_of
from torch import Tensor, nn


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.Dropout(0.0), nn.Linear(8, 3))


def steps(device: torch.device, precision: torch.dtype | None) -> list[Tensor]:
    """Weights after three steps."""
    subject = model().to(device)
    optimizer = torch.optim.AdamW(subject.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)
    ids = torch.arange(8).view(2, 4).to(device)
    for _ in range(3):
        with torch.autocast(device.type, dtype=precision, enabled=precision is not None):
            loss = subject(ids).float().log_softmax(dim=-1)[..., 0].mean().neg()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    return [values_of(parameter) for parameter in subject.parameters()]


@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16])
def test_trains_as_the_cpu_does(precision: torch.dtype | None) -> None:
    expected = steps(torch.device("cpu"), precision)
    with Accelerator(watch_types=True) as accelerator:
        found = steps(DEVICE, precision)
    near = 1e-6 if precision is None else 0.2  # a gradient near 0 may round to the other sign, and AdamW takes the sign
    for mine, other in zip(found, expected, strict=True):
        assert (mine - other).abs().max() <= near
    products = {seen.types[0] for seen in accelerator.seen if seen.operation in ("mm", "addmm")}
    assert products == {precision or torch.float32}
    assert {seen.types[0] for seen in accelerator.seen if seen.operation == "_log_softmax"} == {torch.float32}


WAITS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda values: values.sum().item(),
    "bool": lambda values: bool((values > 0).all()),
    "tolist": lambda values: values.tolist(),
    "to the host": lambda values: values.cpu(),
    "from the host": lambda values: torch.ones(2).to(values.device),
    "made from numbers": lambda values: torch.tensor([1.0, 2.0], device=values.device),
    "filled from the host": lambda values: values.copy_(torch.ones(4, 3)),
    "chosen by a mask": lambda values: values[values > 0],
    "places of a mask": lambda values: values.nonzero(),
    "indices of the host": lambda values: values[torch.tensor([0, 1])],
    "equal": lambda values: torch.equal(values, values),
}
FREE: dict[str, Callable[[Tensor], object]] = {
    "sent": lambda values: torch.ones(2).to(values.device, non_blocking=True),
    "made there": lambda values: torch.full((2,), 1.0, device=values.device) + torch.arange(2, device=values.device),
    "another type": lambda values: values.to(torch.bfloat16),
    "filled by a mask": lambda values: values.masked_fill(values > 0, 0.0),
    "set by a mask": lambda values: values.__setitem__(values > 0, 1.0),
    "a number of the host": lambda values: values * torch.tensor(2.0),
    "indices of the device": lambda values: values[torch.zeros(2, dtype=torch.long, device=values.device)],
    "shapes": lambda values: values.view(2, 6).transpose(0, 1).contiguous().shape,
}


@pytest.mark.parametrize("name", [*WAITS, *FREE])
def test_what_waits_is_seen(name: str) -> None:
    values = torch.arange(12.0).view(4, 3)
    with Accelerator() as accelerator:
        moved = values.to(DEVICE)
        accelerator.waits.clear()
        (WAITS | FREE)[name](moved)
    assert len(accelerator.waits) == (1 if name in WAITS else 0)


def test_mixed_devices_are_errors() -> None:
    with Accelerator():
        moved = torch.ones(2, 3).to(DEVICE)
        assert moved.device == DEVICE
        for mixed in (lambda: moved + torch.ones(3), lambda: nn.Linear(3, 2)(moved), lambda: moved.cpu() + moved):
            with pytest.raises(MixedDevicesError):
                mixed()
        with pytest.raises(MixedDevicesError):
            moved.numpy()


def test_what_is_referred_to_is_counted() -> None:
    gc.collect()
    before = held_on_device()
    with Accelerator():
        kept = [torch.ones(2).to(DEVICE), torch.ones(2).to(DEVICE)]
        assert held_on_device() == before + 2
        kept.pop()
        assert held_on_device() == before + 1


def test_views_share_and_gradients_flow() -> None:
    with Accelerator():
        weight = nn.Parameter(torch.ones(3, 2).to(DEVICE))
        base = torch.zeros(3, 2).to(DEVICE)
        base[1].add_(2.0)
        base.t()[0, 2] = 5.0
        (weight * base).sum().backward()
        assert weight.grad is not None
        assert values_of(weight.grad).tolist() == [[0, 0], [2, 2], [5, 0]]
        assert values_of(weight.data.clone()).tolist() == values_of(weight).tolist()


def test_a_gpus_own_warnings_are_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)
    with Cuda() as watched:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [wait.site for wait in watched.waits] == ["test"]
    assert not waits_by_site(watched)

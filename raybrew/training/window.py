"""What is logged of training: sums since the last line, and whether all of them are numbers.

All of it stays on the device until it is read, which waits for the device: when a line is logged, and before an
evaluation or a checkpoint, so that neither is made of weights that are no numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raybrew.errors import DivergenceError
from raybrew.training.context import Context

__all__ = ["Window"]

#: Example ids that the message of a DivergenceError shows; the error carries all of them.
_SHOWN_IDS = 4


@dataclasses.dataclass(frozen=True)
class _Step:
    """What one step came to on this worker, on the device."""

    step: int  #: counted from 1
    sums: Tensor  #: of each term, not weighted
    loss: Tensor
    counts: Tensor
    grad_norm: Tensor


class Window:
    """Sums since the last log line, and the steps that have not been looked at yet."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self.names = names
        self.device = device
        self.sums = torch.zeros(2, len(names), dtype=torch.float64, device=device)  # as they are, and weighted
        self.counts = torch.zeros(len(names), dtype=torch.float64)
        self.shares = torch.zeros(len(names), dtype=torch.float64)
        self.amounts = torch.zeros(3, dtype=torch.float64)  # rows, tokens, padded tokens
        self.num_steps = 0
        self.since = time.monotonic()
        self.unseen: list[_Step] = []

    def add(
        self,
        step: int,
        sums: Tensor,
        weights: Tensor,
        counts: Tensor,
        shares: list[float] | None,
        amounts: tuple[int, int, int],
        grad_norm: Tensor,
    ) -> None:
        """What this worker did in `step`, counted from 1; nothing waits for the device."""
        exact = sums.double()
        # A term that weighs nothing may be anything, NaN included.
        weighted = torch.where(weights == 0, 0.0, exact * weights)
        self.sums += torch.stack([exact, weighted])
        self.counts = self.counts.to(counts.device, non_blocking=counts.device.type != "cpu") + counts
        self.shares += 1.0 if shares is None else torch.tensor(shares, dtype=torch.float64)
        self.amounts += torch.tensor(amounts, dtype=torch.float64)
        self.num_steps += 1
        self.unseen.append(_Step(step, sums, weighted.sum(), counts, grad_norm))

    def check(self, context: Context, scale: float | None, example_ids: Callable[[int], Sequence[str]]) -> None:
        """DivergenceError on all ranks for the first step since the last check whose loss or gradient is no number.

        `scale` is what losses are multiplied by in float16, None elsewhere. Infinite gradients are part of finding the
        scale, unless it has sunk below 1: then no scale gives finite gradients. `example_ids` gives the ids of the
        global batch of a step, counted from 0. All ranks call it.
        """
        steps, self.unseen = self.unseen, []
        if not steps:
            return
        values = [torch.stack([each.loss for each in steps])]
        if scale is None or scale < 1:
            values.append(torch.stack([each.grad_norm.double() for each in steps]))
        finite = torch.isfinite(torch.stack(values)).all(dim=0).tolist()
        first = next((index for index, good in enumerate(finite) if not good), len(steps))
        if float(context.add_up(torch.tensor([float(first < len(steps))]))[0]) == 0:
            return
        bad = steps[min(context.gather(first))]
        sums = context.add_up(bad.sums.double()).tolist()
        counts = bad.counts.tolist()
        terms = {
            name: total / count if count else 0.0 for name, total, count in zip(self.names, sums, counts, strict=True)
        }
        raise _diverged(bad.step, terms, float(bad.grad_norm), tuple(example_ids(bad.step - 1)), scale)

    def over_all_ranks(self, context: Context) -> dict[str, Any]:
        """The sums in plain numbers, for a checkpoint or a record. All ranks call it."""
        sums = context.add_up(self.sums)
        amounts = context.add_up(self.amounts)
        return {
            "sums": sums.tolist(),
            "counts": self.counts.tolist(),
            "shares": self.shares.tolist(),
            "amounts": amounts.tolist(),
            "num_steps": self.num_steps,
        }

    def load(self, saved: Mapping[str, Any], on_this_rank: bool) -> None:
        """Go on from what `over_all_ranks` gave, which one rank has to take."""
        self.counts = torch.tensor(saved["counts"], dtype=torch.float64)
        self.shares = torch.tensor(saved["shares"], dtype=torch.float64)
        self.num_steps = saved["num_steps"]
        if on_this_rank:  # sums and amounts are added over ranks when they are read
            self.sums.copy_(torch.tensor(saved["sums"], dtype=torch.float64))
            self.amounts = torch.tensor(saved["amounts"], dtype=torch.float64)

    def record(self, context: Context, learning_rate: float, grad_norm: float) -> dict[str, Any]:
        """The means since the last record, which start anew. All ranks call it."""
        whole = self.over_all_ranks(context)
        seconds = time.monotonic() - self.since
        rows, tokens, padded = whole["amounts"]
        means, weighted = (
            [total / count if count else 0.0 for total, count in zip(sums, whole["counts"], strict=True)]
            for sums in whole["sums"]
        )
        shares = [share / self.num_steps for share in whole["shares"]]
        record: dict[str, Any] = {"loss": sum(mean * share for mean, share in zip(weighted, shares, strict=True))}
        # Terms of tasks that had no step have nothing to say.
        named = zip(self.names, means, shares, strict=True)
        record |= {f"loss/{name}": mean for name, mean, share in named if share > 0}
        record |= {
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "samples_per_second": round(rows / seconds, 2),
            "tokens_per_second": round(tokens / seconds, 1),
            "padding_share": round(1 - tokens / padded, 4) if padded else 0.0,
            **_machine(context.device),
        }
        unseen = self.unseen
        self.__init__(self.names, self.device)  # type: ignore[misc]
        self.unseen = unseen
        return record


def _diverged(
    step: int, terms: Mapping[str, float], grad_norm: float, ids: tuple[str, ...], scale: float | None
) -> DivergenceError:
    values = ", ".join(f"loss/{name} {value:.6g}" for name, value in terms.items())
    if all(math.isfinite(value) for value in terms.values()) and not math.isfinite(grad_norm):
        what = f"the gradient is no longer finite at step {step} ({values}, grad_norm {grad_norm:.6g})"
    else:
        what = f"the loss is no longer finite at step {step} ({values}, grad_norm {grad_norm:.6g})"
    of, look = "", ""
    if ids:
        shown = ", ".join(ids[:_SHOWN_IDS]) + (", ..." if len(ids) > _SHOWN_IDS else "")
        of = f" on {len(ids)} example{'s' if len(ids) > 1 else ''} ({shown})"
        look = ", or look at these examples"
    if scale is not None and scale < 1:
        what += f", and no loss scale of fp16 makes it finite (scale {scale:.3g})"
        look += ", or set train.precision to bf16 or fp32"
    error = DivergenceError(f"{what}{of}; lower the learning rate (train.learning_rate){look}")
    error.step, error.terms, error.grad_norm, error.example_ids = step, dict(terms), grad_norm, ids
    return error


def _machine(device: torch.device) -> dict[str, Any]:
    """Highest device memory so far and how busy the device is, or this process's resident memory on a CPU."""
    if device.type != "cuda":
        import psutil

        return {"memory_bytes": int(psutil.Process().memory_info().rss)}
    found: dict[str, Any] = {"memory_bytes": int(torch.cuda.max_memory_allocated(device))}
    # Needs nvidia-ml-py and a driver that tells; NVMLError (MIG, vGPU) is no RuntimeError and not always importable.
    with contextlib.suppress(Exception):
        found["gpu_utilisation"] = torch.cuda.utilization(device) / 100
    return found

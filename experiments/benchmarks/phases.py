"""Where the time of a training step goes: data, teacher, forward, loss, backward, optimizer, the rest."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from raybrew.distillers.teachers import LiveTeacher
from raybrew.training import loop

__all__ = ["Watch"]

PARTS = ("data", "teacher", "forward", "loss", "backward", "clip", "optimizer")


class Watch:
    """Times the parts of raybrew's loop from outside. On a GPU it waits for the device at each border."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._since: dict[str, float] = {}

    def shares(self, whole: float) -> dict[str, float]:
        """Share of each part in `whole` seconds, and of what is none of them."""
        shares = {part: seconds / whole for part, seconds in self.seconds.items()}
        return shares | {"rest": 1.0 - sum(shares.values())}

    @contextlib.contextmanager
    def attached(self, program: Any) -> Iterator[None]:
        trainee = program.trainee
        handles = []
        (source,) = program.teachers  # the benchmark trains in one stage
        teacher = source.model if isinstance(source, LiveTeacher) else nn.Identity()
        for part, module in (("teacher", teacher), ("forward", trainee.student), ("loss", trainee.objective)):
            handles.append(module.register_forward_pre_hook(lambda *_, part=part: self._begin(part)))
            handles.append(module.register_forward_hook(lambda *_, part=part: self._end(part)))
        handles.append(program.optimizer.register_step_pre_hook(lambda *_: self._begin("optimizer")))
        handles.append(program.optimizer.register_step_post_hook(lambda *_: self._end("optimizer")))
        backward, clip = torch.Tensor.backward, loop.clip_gradients
        loader = program.loader

        def timed_steps() -> Iterator[Any]:
            steps = iter(loader)
            while True:
                self._begin("data")
                step = next(steps, None)
                self._end("data")
                if step is None:
                    return
                yield step

        program.steps = timed_steps
        torch.Tensor.backward = self._timed("backward", backward)
        loop.clip_gradients = self._timed("clip", clip)
        try:
            yield
        finally:
            torch.Tensor.backward, loop.clip_gradients = backward, clip
            for handle in handles:
                handle.remove()

    def _timed(self, part: str, function: Any) -> Any:
        def timed(*arguments: Any, **keywords: Any) -> Any:
            self._begin(part)
            try:
                return function(*arguments, **keywords)
            finally:
                self._end(part)

        return timed

    def _begin(self, part: str) -> None:
        self._since[part] = self._now()

    def _end(self, part: str) -> None:
        self.seconds[part] += self._now() - self._since[part]

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

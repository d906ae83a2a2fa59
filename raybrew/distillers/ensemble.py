"""Several teachers of one task, asked as one: logits are their average, layers are those of the teacher they name.

Each member is live or answers from a store of its own. Signals that belong to one member carry its name
(`Signal.teacher`); the average of logits carries none, so that it is what a single teacher's logits are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Literal

import numpy as np

from raybrew.data.loader import MicroBatch, Payload, SignalSource
from raybrew.distillers.teachers import Teacher
from raybrew.losses.averaging import average_logits
from raybrew.signals import LOGITS, Signal, sorted_signals

__all__ = ["Average", "Ensemble", "EnsembleSignals", "request_of_member"]


def request_of_member(request: Collection[Signal], name: str | None, weight: float = 1.0) -> tuple[Signal, ...]:
    """What member `name` is asked for when several are asked for `request`; the only teacher (None) for all of it."""
    own = {signal.of(None) for signal in request if signal.teacher == name}
    if name is not None and weight > 0 and LOGITS in request:
        own.add(LOGITS)
    return sorted_signals(own)


@dataclasses.dataclass(frozen=True)
class Average:
    """How members' logits become one teacher's; see `raybrew.losses.averaging`. Members of weight 0 have no part."""

    weights: Mapping[str, float]
    kind: Literal["logits", "probabilities"] = "logits"
    temperature: float = 1.0

    def __call__(self, said: Mapping[Signal, Payload]) -> dict[Signal, Payload]:
        """`said` with the average in place of members' logits."""
        result = {signal: value for signal, value in said.items() if signal.kind != LOGITS.kind}
        members = [(LOGITS.of(name), weight) for name, weight in self.weights.items() if weight > 0]
        if all(signal in said for signal, _ in members):
            result[LOGITS] = average_logits(
                [said[signal].to_dense().float() for signal, _ in members],
                [weight for _, weight in members],
                average=self.kind,
                temperature=self.temperature,
            )
        return result


class Ensemble:
    """Runs the live members, takes the stored ones' signals out of the batch, and averages."""

    def __init__(self, live: Mapping[str, Teacher], average: Average) -> None:
        self.live = live
        self.average = average

    def signals(self, batch: MicroBatch) -> Mapping[Signal, Payload]:
        said = dict(batch.teacher)
        for name, teacher in self.live.items():
            said |= {signal.of(name): value for signal, value in teacher.signals(batch).items()}
        return self.average(said)


class EnsembleSignals:
    """Stored signals of several members for the loader, each under its member's name."""

    def __init__(self, members: Mapping[str, SignalSource]) -> None:
        self.members = members

    def __call__(self, rows: np.ndarray, length: int | None = None) -> dict[Signal, Payload]:
        return {
            signal.of(name): value
            for name, stored in self.members.items()
            for signal, value in stored(rows, length).items()
        }

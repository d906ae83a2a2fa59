"""Population based training (arXiv 1711.09846): which members go on from whose students, and with what values.

Why not Ray's PopulationBasedTraining: its state is a snapshot of Tune that is some seconds old when a process dies, its
random numbers are the process's, and which members it compares depends on who happened to be faster. Here a round is
decided when all members have come to the same evaluation, from the ledger alone and with random numbers of
(sweep.search.seed, round, member), so that a sweep killed anywhere takes the same decisions. All members have a student
of one size and the same rows, so they come there together and little is lost by waiting.

A member that goes on from another one's student is a new trial: the other's configuration with one more entry in
`train.changes`. All members have the same `train.seed`, so this is the configuration of a run which, trained from its
start, ends with the same student; the copied checkpoint only saves its first steps. So what a population finds can be
read, repeated (`raybrew distill .../config.yaml`) and run with other seeds.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from raybrew.config.sweep import ParameterConfig, SchedulerConfig
from raybrew.sweeps.search import draw_value, readable

__all__ = ["FACTORS", "explore", "matchups", "next_stop", "round_random", "values_in_force", "with_change"]

#: What a number from a range is multiplied by.
FACTORS = (0.8, 1.2)
_CLOSE = 1e-6


def next_stop(share: float, interval: float) -> float | None:
    """The share of all steps at which the next round is due for a member that is at `share`; None for the last part."""
    stop = (int(share / interval + _CLOSE) + 1) * interval
    return None if stop > 1 - _CLOSE else round(stop, 9)


def round_random(seed: int, number: int, member: int) -> random.Random:
    """The random numbers of one decision."""
    return random.Random(f"population {seed} {number} {member}")


def matchups(scores: Mapping[int, float | None], quantile: float) -> tuple[list[int], list[int]]:
    """Members to replace and members to take over from, both from good to bad; a score of None is a failed member.

    Truncation selection: the lowest `quantile` of all give way to the highest as many. Failed ones always give way.
    """
    alive = sorted((m for m, score in scores.items() if score is not None), key=lambda m: (-_score(scores, m), m))
    failed = sorted(m for m, score in scores.items() if score is None)
    count = max(1, int(len(scores) * quantile + _CLOSE))
    best = alive[: min(count, len(alive))]
    rest = alive[len(best) :]
    lowest = rest[len(rest) - min(len(rest), max(0, count - len(failed))) :]
    return [*lowest, *failed] if best else [], best


def _score(scores: Mapping[int, float | None], member: int) -> float:
    found = scores[member]
    assert found is not None
    return found


def values_in_force(values: Mapping[str, Any]) -> dict[str, Any]:
    """What holds at the end of a trial's `train.changes`."""
    found = {key: value for key, value in values.items() if key != "train.changes"}
    for change in values.get("train.changes") or ():
        found |= change["values"]
    return found


def explore(
    now: Mapping[str, Any], space: Mapping[str, ParameterConfig], scheduler: SchedulerConfig, rng: random.Random
) -> dict[str, Any]:
    """Other values for the keys of `scheduler.mutations`, within the space; only those that differ from `now`."""
    found: dict[str, Any] = {}
    for key in scheduler.mutations if scheduler.mutations is not None else space:
        parameter, value = space[key], now[key]
        new = draw_value(parameter, rng) if rng.random() < scheduler.resample else _perturbed(parameter, value, rng)
        if new != value:
            found[key] = new
    return found


def _perturbed(parameter: ParameterConfig, value: Any, rng: random.Random) -> Any:
    if parameter.discrete:
        values = sorted(parameter.values)
        place = values.index(value) + rng.choice((-1, 1))
        return values[min(max(place, 0), len(values) - 1)]
    low, high = parameter.values
    moved = value * rng.choice(FACTORS)
    if parameter.kind == "int":
        whole = round(moved)
        if whole == value:
            whole += 1 if moved > value else -1
        return min(max(whole, low), high)
    return readable(moved, low, high)


def with_change(values: Mapping[str, Any], at: float, new: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a trial that does as that of `values` up to the share `at`, and has `new` from there on."""
    before: Sequence[Any] = values.get("train.changes") or ()
    return {**values, "train.changes": [*before, {"at": round(at, 9), "values": dict(new)}]}

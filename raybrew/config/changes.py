"""`train.changes`: values that change as training goes on. A change is in force from the first step at its share on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from raybrew.config.base import MAX_TEMPERATURE, MAX_WEIGHT, MIN_TEMPERATURE
from raybrew.config.kinds import is_multi
from raybrew.config.problems import near_match, shown
from raybrew.errors import Problem

if TYPE_CHECKING:
    from raybrew.config.distill import DistillConfig
    from raybrew.config.train import ChangeConfig, TrainConfig

__all__ = [
    "CHANGEABLE",
    "changed_distill",
    "check_changes",
    "is_changeable",
    "value_at",
    "values_over",
    "why_not",
]

Value = TypeVar("Value")

#: What may change while a student trains: nothing that its weights, its rows or its teacher's signals depend on.
CHANGEABLE = (
    "distill.temperature",
    "distill.kd_weight",
    "distill.hard_label_weight",
    "distill.matches.<number>.weight",
    "distill.emd.hidden",
    "distill.emd.attention",
    "train.learning_rate",
)
_PATTERN = re.compile("|".join(re.escape(key).replace("<number>", r"(0|[1-9]\d*)") for key in CHANGEABLE))
#: Shares are written with nine digits; a step is no nearer to the next one than this.
_CLOSE = 5e-9


def is_changeable(key: str) -> bool:
    """Whether the value at this dotted key may change while a student trains."""
    return _PATTERN.fullmatch(key) is not None


def value_at(course: Sequence[tuple[float, Value]], progress: float) -> Value:
    """What is in force at this share of all steps; `course` has (share from which it is, value), the first from 0."""
    return [value for at, value in course if at <= progress + _CLOSE][-1]


def values_over(key: str, first: float, changes: Sequence[ChangeConfig]) -> tuple[tuple[float, float], ...]:
    """(share, value) of one key from the start on."""
    return ((0.0, first), *((change.at, change.values[key]) for change in changes if key in change.values))


def changed_distill(distill: DistillConfig, values: Mapping[str, float]) -> DistillConfig:
    """`distill` with those of `values` that are its keys."""
    for key, value in values.items():
        section, *path = key.split(".")
        if section == "distill":
            distill = _replaced(distill, path, value)
    return distill


def _replaced(here: Any, path: Sequence[str], value: float) -> Any:
    head, *rest = path
    if isinstance(here, tuple):
        index = int(head)
        return (*here[:index], _replaced(here[index], rest, value), *here[index + 1 :])
    return here.model_copy(update={head: _replaced(getattr(here, head), rest, value) if rest else value})


def check_changes(distill: DistillConfig, train: TrainConfig, teacher: Any, task: Any) -> list[Problem]:
    """Everything wrong with `train.changes`."""
    problems: list[Problem] = []
    if train.changes and distill.stages:
        problems.append(
            Problem("train.changes", "given with distill.stages, which say themselves what holds when", "conflict")
        )
    before = 0.0
    for index, change in enumerate(train.changes):
        where = f"train.changes.{index}"
        if change.at <= before:
            problems.append(Problem(f"{where}.at", f"given {change.at:g} after {before:g}; allowed: shares that rise"))
        before = max(before, change.at)
        for key, value in change.values.items():
            words = why_not(key, value, distill, teacher, task)
            if words is None and key.startswith("distill.") and not _value_of(distill, key):
                words = "begins with 0, so that there is no such loss; give it a weight from the start"
            if words is not None:
                problems.append(Problem(f"{where}.values.{key}", words))
    return problems


def why_not(key: str, value: Any, distill: DistillConfig, teacher: Any, task: Any) -> str | None:
    """Why `key` cannot become `value` while a student trains; None if it can."""
    if not is_changeable(key):
        return f"cannot change while a student trains; allowed: {', '.join(CHANGEABLE)}{near_match(key, CHANGEABLE)}"
    low, high = (MIN_TEMPERATURE, MAX_TEMPERATURE) if key == "distill.temperature" else (0, MAX_WEIGHT)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0 or not low <= value <= high:
        return f"given {shown(value)}; allowed: numbers above 0, from {low:g} to {high:g}"
    if key.startswith("distill.matches."):
        if is_multi(task):
            return "cannot change with several tasks, which do not share their matches"
        number = int(key.split(".")[2])
        if number >= len(distill.matches):
            return f"no such match: distill.matches has {len(distill.matches)} entries, counted from 0"
    if key.startswith("distill.emd.") and distill.emd is None:
        return "distill.emd is not set"
    if key == "distill.temperature" and teacher.members and teacher.average == "probabilities":
        return "cannot change with teacher.average=probabilities, which averages softmaxes at one temperature"
    return None


def _value_of(distill: DistillConfig, key: str) -> float:
    here: Any = distill
    for part in key.split(".")[1:]:
        here = here[int(part)] if isinstance(here, tuple) else getattr(here, part)
    return float(here)

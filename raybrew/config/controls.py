"""What the controls of a sweep share with their students, what is searched for both, and how many trainings that is."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from raybrew.config.experiment import Experiment
from raybrew.config.space import corners, is_active, is_excluded, planned_configurations
from raybrew.config.sweep import ParameterConfig, SweepConfig
from raybrew.config.views import task_views

__all__ = ["control_settings", "is_searched", "is_shared", "planned_controls"]

#: Keys that are searched for students and controls alike: how well one optimises, at equal cost.
_SEARCHED = ("learning_rate", "schedule", "warmup", "weight_decay", "layer_lr_decay", "max_grad_norm")
#: So many values stand for a range.
_OF_RANGE = 3
#: More settings than this are sampled, so that every value of every key occurs.
_MOST_SETTINGS = 9


def is_searched(key: str) -> bool:
    """Whether a key of the space varies among the controls of one student."""
    section, _, name = key.partition(".")
    return section == "train" and name in _SEARCHED


def is_shared(key: str) -> bool:
    """Whether a control has its student's value of this key of the space: shape, rows and amount of training."""
    return key.split(".", maxsplit=1)[0] in ("student", "task", "data", "train") and not is_searched(key)


def control_settings(sweep: SweepConfig, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Values of the searched keys for the controls of a candidate with these `values`; [{}] if none is searched."""
    space: dict[str, ParameterConfig] = {}
    for key, parameter in sweep.space.items():
        if not is_searched(key):
            continue
        conditions = {name: wanted for name, wanted in parameter.when.items() if not is_searched(name)}
        if is_active(parameter.model_copy(update={"when": conditions}), values):
            among = {name: wanted for name, wanted in parameter.when.items() if is_searched(name)}
            listed = {"kind": "choice", "values": _listed(parameter), "when": among}
            space[key] = parameter.model_copy(update=listed)
    if not space:
        return [{}]
    shared = {key: value for key, value in values.items() if is_shared(key)}
    found = corners(sweep.model_copy(update={"space": space, "exclude": ()}), _MOST_SETTINGS)
    return [setting for setting in found if not is_excluded(sweep, {**shared, **setting})] or [{}]


def _listed(parameter: ParameterConfig) -> tuple[Any, ...]:
    """The values themselves, or the middles of equal parts of a range."""
    if parameter.discrete:
        return parameter.values
    low, high = parameter.values
    shares = [(2 * part + 1) / (2 * _OF_RANGE) for part in range(_OF_RANGE)]
    if parameter.kind == "loguniform":
        return tuple(float(f"{math.exp(math.log(low) + share * math.log(high / low)):.4g}") for share in shares)
    found = [low + share * (high - low) for share in shares]
    if parameter.kind == "int":
        return tuple(dict.fromkeys(round(value) for value in found))
    return tuple(float(f"{value:.4g}") for value in found)


def planned_controls(experiment: Experiment) -> int:
    """Trainings of controls that the sweep of `experiment` comes to, repetitions left aside."""
    sweep = experiment.sweep
    if sweep is None or not sweep.controls:
        return 0
    configurations = planned_configurations(sweep)
    groups: dict[str, int] = {}
    for values in corners(sweep):
        groups.setdefault(_group(values), len(control_settings(sweep, values)))
    # Of a range in which controls equal their students, each student may have drawn another value.
    drawn = any(is_shared(key) and not parameter.discrete for key, parameter in sweep.space.items())
    sizes = list(groups.values())
    count = configurations if drawn else min(len(sizes), configurations)
    settings = round(count * sum(sizes) / max(1, len(sizes)))
    further = max(0, sweep.rerun_best.seeds - sweep.seeds) * min(sweep.rerun_best.count, count)
    sections = [view.experiment.data for view in task_views(experiment)]
    unlabeled = any(data.unlabeled is not None or data.augment is not None for data in sections)
    return (settings * sweep.seeds + further) * (2 if unlabeled else 1)


def _group(values: Mapping[str, Any]) -> str:
    """Equal for candidates that share their controls: how a student starts is no part of it."""
    shared: dict[str, Any] = {}
    for key, value in values.items():
        if key == "student" and isinstance(value, Mapping):
            shared[key] = [value.get("model"), value.get("shape")]
        elif is_shared(key) and (not key.startswith("student.") or key.startswith(("student.model", "student.shape"))):
            shared[key] = value
    return json.dumps(shared, sort_keys=True, default=str)

"""The space of a sweep: which values go together, and what an experiment with them looks like. Draws nothing itself."""

from __future__ import annotations

import copy
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from raybrew.catalog.losses import RAW_LOSSES
from raybrew.config.base import MAX_SEED
from raybrew.config.distill import method_of
from raybrew.config.experiment import Experiment
from raybrew.config.kinds import kd_losses_for
from raybrew.config.population import check_population
from raybrew.config.problems import near_match
from raybrew.config.sweep import ParameterConfig, SweepConfig
from raybrew.config.values import show_value_of
from raybrew.config.views import task_views
from raybrew.errors import ConfigError, Problem

__all__ = [
    "CORNER_LIMIT",
    "DEFAULT_TRIALS",
    "apply_values",
    "check_sweep",
    "corner_count",
    "corners",
    "is_active",
    "is_excluded",
    "planned_configurations",
    "planned_trainings",
    "space_cautions",
    "space_notes",
]

#: Configurations that are tried where nothing says how many.
DEFAULT_TRIALS = 16
#: More corners than this are sampled.
CORNER_LIMIT = 400
#: More impossible combinations than this are counted rather than listed.
_SHOWN = 20

#: Sections whose keys may vary: those that decide what a student learns.
_SECTIONS = ("task", "data", "teacher", "student", "distill", "train")
#: Keys that must not vary, and why.
_FIXED = {
    "train.seed": "seeds are set by sweep.seeds and sweep.rerun_best",
    "task.metric": "students must be judged by one metric",
    "task.kind": "students must be judged by one metric",
    "data.eval": "students must be judged on the same rows",
    "data.eval_rows": "students must be judged on the same rows",
    "data.test": "students must be scored on the same rows",
    "data.test_rows": "students must be scored on the same rows",
    "data.cache": "it does not change what is learnt",
}

#: What stands before the keys of one of several tasks.
_OF_TASK = re.compile(r"^task\.tasks\.[^.]+\.(?=task\.|data\.)")


def is_active(parameter: ParameterConfig, values: Mapping[str, Any]) -> bool:
    """Whether `values`, chosen so far, meet the parameter's condition."""
    return all(key in values and _matches(values[key], wanted) for key, wanted in parameter.when.items())


def is_excluded(sweep: SweepConfig, values: Mapping[str, Any]) -> bool:
    """Whether a constraint leaves this combination out."""
    return any(
        rule and all(key in values and _matches(values[key], wanted) for key, wanted in rule.items())
        for rule in sweep.exclude
    )


def apply_values(plain: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The experiment `plain` with `values` at their dotted keys, and without its `sweep`.

    A whole section (`distill`) is laid over what the section says; any other value takes the place of the old one.
    """
    result: dict[str, Any] = copy.deepcopy({key: value for key, value in plain.items() if key != "sweep"})
    for key, value in values.items():
        *path, last = key.split(".")
        if not path:  # a section may be written shortly
            value = Experiment.long_form({last: value})[last]
        here: Any = result
        for part in path:
            if isinstance(here, list):
                here = here[_index(part, here, key)]
                continue
            if not isinstance(here.get(part), dict | list):
                here[part] = {}
            here = here[part]
        if isinstance(here, list):
            here[_index(last, here, key)] = copy.deepcopy(value)
        elif not path and isinstance(value, Mapping) and isinstance(here.get(last), Mapping):
            here[last] = {**here[last], **copy.deepcopy(dict(value))}
        else:
            here[last] = copy.deepcopy(value)
    return result


def corner_count(sweep: SweepConfig) -> int:
    """Combinations of all values and bounds, conditions and constraints left aside."""
    count = 1
    for parameter in sweep.space.values():
        count *= len(parameter.values)
    return count


def corners(sweep: SweepConfig, limit: int = CORNER_LIMIT) -> list[dict[str, Any]]:
    """Combinations of values and bounds that conditions and constraints allow, each once.

    A space of more than `limit` corners is sampled, always in the same way, so that every value of every key occurs.
    """
    keys = list(sweep.space)
    if corner_count(sweep) <= limit:
        picked: Iterator[tuple[Any, ...]] = itertools.product(*(sweep.space[key].values for key in keys))
    else:
        draw = random.Random(0)
        rows = [
            tuple(value if key == other else draw.choice(sweep.space[key].values) for key in keys)
            for other in keys
            for value in sweep.space[other].values
        ]
        rows += [tuple(draw.choice(sweep.space[key].values) for key in keys) for _ in range(max(0, limit - len(rows)))]
        picked = iter(rows)
    found: dict[str, dict[str, Any]] = {}
    for row in picked:
        values: dict[str, Any] = {}
        for key, value in zip(keys, row, strict=True):
            if is_active(sweep.space[key], values):
                values[key] = value
        if not is_excluded(sweep, values):
            found.setdefault(json.dumps(values, sort_keys=True, default=str), values)
    return list(found.values())


def planned_configurations(sweep: SweepConfig) -> int:
    """Configurations that a sweep tries, constraints and repetitions left aside."""
    total = corner_count(sweep)
    listed = all(parameter.discrete for parameter in sweep.space.values())
    tried = sweep.trials or (total if sweep.search.row.lists else DEFAULT_TRIALS)
    return min(tried, total) if listed else tried


def planned_trainings(sweep: SweepConfig) -> int:
    """Trainings on the teacher's outputs that a sweep comes to, constraints and repetitions left aside."""
    configurations = planned_configurations(sweep)
    again = max(0, sweep.rerun_best.seeds - sweep.seeds) * min(sweep.rerun_best.count, configurations)
    return configurations * sweep.seeds + again


def check_sweep(experiment: Experiment, sweep: SweepConfig, build: Callable[[Any], Experiment]) -> list[Problem]:
    """Everything wrong with a sweep of a valid `experiment`: its keys, its budget, and each corner of its space."""
    problems = [*_keys(sweep), *_settings(sweep, experiment)]
    if sweep.scheduler.row.rounds:
        problems += check_population(experiment, sweep)
    parts = [view.experiment.data for view in task_views(experiment)]
    if sweep.controls and any(data.unlabeled is not None and data.train is None for data in parts):
        problems.append(
            Problem(
                "sweep.controls", "given true, but there is no data.train with labels for them to learn", "required"
            )
        )
    if problems:
        return problems
    plain = experiment.written()
    bad: dict[Problem, list[dict[str, Any]]] = {}
    found = corners(sweep)
    for values in found:
        try:
            build(apply_values(plain, values))
        except ConfigError as error:
            for problem in error.problems or (Problem("sweep.space", str(error)),):
                bad.setdefault(problem, []).append(values)
    if not found:
        return [Problem("sweep.exclude", "leaves nothing of the space", "empty")]
    listed = [
        Problem("sweep.space", _impossible(problem, where, found), problem.code) for problem, where in bad.items()
    ]
    if len(listed) > _SHOWN:
        rest = len(listed) - _SHOWN
        listed = [*listed[:_SHOWN], Problem("sweep.space", f"and {rest} further impossible combinations")]
    return listed


def space_notes(experiment: Experiment) -> list[str]:
    """What a user should know about a valid sweep before it starts."""
    sweep = experiment.sweep
    if sweep is None:
        return []
    notes = []
    total = corner_count(sweep)
    if total > CORNER_LIMIT:
        notes.append(f"sweep.space: {len(corners(sweep))} of {total} corners were checked, every value among them")
    elif sweep.space:
        notes.append(f"sweep.space: all {len(corners(sweep))} corners are valid")
    return notes


def space_cautions(experiment: Experiment) -> list[str]:
    """What may make a valid sweep useless."""
    sweep = experiment.sweep
    if sweep is None:
        return []
    cautions = []
    unscaled = [experiment.distill.scale_by_temperature_squared]
    for key, parameter in sweep.space.items():
        if key == "distill.scale_by_temperature_squared":
            unscaled += parameter.values
        elif key == "distill.method":
            unscaled += [
                method_of(name).distill.get("scale_by_temperature_squared", True)
                for name in parameter.values
                if name is not None
            ]
    if "distill.temperature" in sweep.space and False in unscaled:
        cautions.append(
            "warning: distill.temperature varies while distill.scale_by_temperature_squared is false: the KD gradient "
            "falls with 1/T^2, so temperature and weight of the KD loss are confounded"
        )
    if "distill.temperature" in sweep.space and _only_squares(experiment, sweep) and False not in unscaled:
        cautions.append(
            "warning: distill.temperature varies, but the KD loss is mse, from which it cancels out "
            "(distill.scale_by_temperature_squared): such trials are alike"
        )
    return cautions


def _only_squares(experiment: Experiment, sweep: SweepConfig) -> bool:
    """Whether the KD loss is the squared difference of logits in every task of every trial."""
    if any(key.startswith("distill.kd_loss") or key == "distill" for key in sweep.space):
        return False
    kind = experiment.distill.kd_loss.kind
    kinds = [view.experiment.task.kind for view in task_views(experiment)]
    return all((kd_losses_for(each)[0] if kind == "auto" else kind) in RAW_LOSSES for each in kinds)


def _matches(value: Any, wanted: Any) -> bool:
    return bool(value == wanted) or (isinstance(wanted, list | tuple) and any(value == item for item in wanted))


def _index(part: str, items: list[Any], key: str) -> int:
    if not part.isdecimal() or int(part) >= len(items):
        raise ConfigError.of(key, f"the list has {len(items)} entries, counted from 0", "unknown")
    return int(part)


def _keys(sweep: SweepConfig) -> list[Problem]:
    problems = []
    if not sweep.space:
        problems.append(
            Problem("sweep.space", "empty; name keys and values, such as distill.temperature: [1, 4, 8]", "empty")
        )
    for key in sweep.space:
        section = key.split(".")[0]
        if section not in _SECTIONS:
            near = near_match(section, _SECTIONS)
            allowed = ", ".join(_SECTIONS)
            problems.append(Problem(f"sweep.space.{key}", f"cannot vary; allowed: keys of {allowed}{near}", "unknown"))
        elif (fixed := _OF_TASK.sub("", key)) in _FIXED:
            problems.append(Problem(f"sweep.space.{key}", f"cannot vary: {_FIXED[fixed]}", "conflict"))
    for index, rule in enumerate(sweep.exclude):
        problems += [
            Problem(f"sweep.exclude.{index}.{key}", f"no key of the space{near_match(key, sweep.space)}", "unknown")
            for key in rule
            if key not in sweep.space
        ]
    return problems


def _settings(sweep: SweepConfig, experiment: Experiment) -> list[Problem]:
    problems = []
    continuous = [key for key, parameter in sweep.space.items() if not parameter.discrete]
    if sweep.search.row.lists and continuous:
        problems.append(
            Problem(
                "sweep.search.kind",
                f"given {sweep.search.kind!r}, but {', '.join(continuous)} has no values to list",
                "conflict",
            )
        )
    if len(sweep.search.objectives) != len(set(sweep.search.objectives)) or not sweep.search.objectives:
        problems.append(Problem("sweep.search.objectives", "at least one, each once", "duplicate"))
    if len(sweep.search.objectives) > 1 and sweep.scheduler.row.ranks:
        problems.append(
            Problem(
                "sweep.scheduler.kind",
                f"given {sweep.scheduler.kind!r} with several objectives; allowed: none",
                "conflict",
            )
        )
    if sweep.budget.money is not None and sweep.budget.price_per_hour is None:
        problems.append(Problem("sweep.budget.price_per_hour", "required with sweep.budget.money", "required"))
    gpus, device = sweep.resources.gpus, experiment.train.device
    if gpus == 0 and device == "cuda" and experiment.train.worker_range[1] == 1:
        problems.append(
            Problem(
                "sweep.resources.gpus",
                "given 0 with train.device=cuda; leave it out, or set train.device=cpu",
                "conflict",
            )
        )
    if gpus is not None and 0 < gpus < 1 and experiment.train.worker_range[1] > 1:
        problems.append(
            Problem(
                "sweep.resources.gpus",
                f"given {gpus:g} with train.workers={experiment.train.worker_range[1]}; a part of a "
                "GPU goes to trials of one worker only",
                "conflict",
            )
        )
    seeds = max(sweep.seeds, sweep.rerun_best.seeds if sweep.rerun_best.count else 1)
    if experiment.train.seed + seeds - 1 > MAX_SEED:
        given = f"given {experiment.train.seed}, from which {seeds} seeds are counted up"
        problems.append(Problem("train.seed", f"{given}; allowed: at most {MAX_SEED - seeds + 1}"))
    views = task_views(experiment)
    if all(view.experiment.data.eval is None for view in views):
        key = "task.tasks.<name>.data.eval" if views[0].label else "data.eval"
        problems.append(Problem(key, "required by a sweep: labelled rows on which students are compared", "required"))
    return problems


def _impossible(problem: Problem, where: list[dict[str, Any]], all_corners: list[dict[str, Any]]) -> str:
    """The problem and the values that bring it about: those shared by all corners that have it."""
    shared = {
        key: value
        for key, value in where[0].items()
        if all(key in values and values[key] == value for values in where)
        and any(values.get(key, value) != value for values in all_corners)
    }
    named = ", ".join(f"{key}={show_value_of(value)}" for key, value in shared.items())
    count = f"{len(where)} of {len(all_corners)} corners"
    return f"impossible{' with ' + named if named else ''} ({count}): {problem}"

"""Functions of the user's that an experiment names: said before they are imported, checked before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from raybrew.config import Experiment, MultiTaskConfig
from raybrew.config.kinds import task_spec
from raybrew.config.outside import is_outside, load_outside
from raybrew.errors import ConfigError, Problem
from raybrew.losses.own import check_signature
from raybrew.verbs.prepare import Say

__all__ = ["check_functions"]

_LOSS = ("student", "teacher", "mask")
_RULE = ("student_layers", "teacher_layers")
_START = ("student", "teacher", "layers")


class _Named(NamedTuple):
    """A part at a key; of functions how they are called."""

    key: str
    target: str
    arguments: tuple[str, ...]
    options: tuple[str, ...] = ()


def check_functions(experiment: Experiment, say: Say) -> None:
    """Import what `distill`, `student` and `store` name of the user's, each told in one line first; ConfigError lists
    all that does not fit."""
    problems: list[Problem] = []
    for key, target, arguments, options in _named(experiment):
        say(f"{key}: imports {target}")
        try:
            part = load_outside(target, key)
            if arguments:
                check_signature(part, target, key, arguments, options)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError("\n".join(map(str, problems)), tuple(problems))


def _named(experiment: Experiment) -> Iterator[_Named]:
    task, student = experiment.task, experiment.student
    kinds = [part.task.kind for part in task.tasks.values()] if isinstance(task, MultiTaskConfig) else [task.kind]
    options = ["temperature", "scale_by_temperature_squared"]
    if any(task_spec(kind).places for kind in kinds):
        options.append("class_mask")
    for key, part in experiment.distill.keyed_parts:
        if is_outside(part.kd_loss.kind) and part.kd_weight > 0:
            yield _Named(f"{key}.kd_loss.kind", part.kd_loss.kind, _LOSS, tuple(options))
        for index, match in enumerate(part.matches):
            if match.is_own and match.weight > 0:
                yield _Named(f"{key}.matches.{index}.loss", match.loss, _LOSS)
            if isinstance(match.layers, str) and is_outside(match.layers):
                yield _Named(f"{key}.matches.{index}.layers", match.layers, _RULE)
    yield from (
        _Named(f"store.forms.{kind}", form, ()) for kind, form in experiment.store.forms.items() if is_outside(form)
    )
    if is_outside(student.init):
        yield _Named("student.init", student.init, _START)
    if isinstance(student.init_layers, str) and is_outside(student.init_layers):
        yield _Named("student.init_layers", student.init_layers, _RULE)

"""The objective of `distill` for one task: its matches resolved for the depths and widths of student and teachers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from raybrew.catalog.losses import MATCH_LOSSES
from raybrew.config import DistillConfig
from raybrew.config.kinds import task_spec
from raybrew.config.outside import is_outside, load_outside
from raybrew.config.problems import raise_problems
from raybrew.distillers.changes import with_changes
from raybrew.distillers.matches import LayerMatch, resolve_matches
from raybrew.distillers.objective import Objective, build_objective, in_stages
from raybrew.errors import ConfigError, ModelError, Problem
from raybrew.losses.own import check_signature
from raybrew.models.composite import check_hybrid
from raybrew.models.forward import forward
from raybrew.models.loading import ModelSource, load_config
from raybrew.models.shapes import TeacherDims, dims_of
from raybrew.models.students import empty_model, empty_student
from raybrew.pipeline.resolve import Resolved, ResolvedTask
from raybrew.pipeline.rows import Say
from raybrew.signals import PAIR_KINDS, VECTOR_KINDS, Signal
from raybrew.tasks.heads import Head

__all__ = ["check_functions", "labels_only", "likely_objective", "objective_of"]

#: Rows and tokens that tell the shape of a module's output.
_TOKENS = (2, 5)
#: Arguments of the user's functions.
_LOSS = ("student", "teacher", "mask")
_RULE = ("student_layers", "teacher_layers")
_START = ("student", "teacher", "layers")


def objective_of(
    task: ResolvedTask, student_config: Any, teachers: Mapping[str, ModelSource], head: Head | None = None
) -> Objective:
    """The objective of a task, with all its stages.

    `teachers` are its teachers by label. `head`: that of the task, default as configured.
    """
    head = head or task.task.head
    if task.distill.trains_in_teacher:
        check_hybrid(student_config, load_config(teachers[""]))
    stages: list[Objective] = []
    earlier: dict[str, nn.Module] = {}
    for key, losses in task.distill.keyed_parts:
        # Each stage draws its new projections anew.
        seed = task.train.seed + len(stages)
        stages.append(_of_stage(task, key, losses, student_config, teachers, seed=seed, earlier=earlier, head=head))
        earlier |= dict(stages[-1].projections.items())
    objective = in_stages(stages)
    if not task.train.changes:
        return objective

    def match_weights(losses: DistillConfig) -> dict[str, float]:
        if not losses.matches:
            return {}
        depths = {name: dims_of(load_config(source)).layers for name, source in teachers.items()}
        found = resolve_matches(losses.matches, dims_of(student_config).layers, depths)
        return {match.name: match.weight for match in found}

    return with_changes(objective, task.distill, task.train, match_weights)


def likely_objective(task: ResolvedTask, labels: tuple[str, ...], shape: ModelSource | None) -> Objective:
    """The objective of a task before its student is made; ConfigError for layers that do not exist.

    `shape` is the teacher that a student's shape is made after.
    """
    return objective_of(task, empty_student(task.student, shape, task.kind, labels).config, task.sources)


def labels_only(distill: DistillConfig) -> DistillConfig:
    """What fine-tuning learns from."""
    alone: dict[str, Any] = {"method": None, "matches": (), "emd": None, "theseus": None, "stages": ()}
    return distill.model_copy(update=alone | {"kd_weight": 0.0, "hard_label_weight": 1.0})


def _of_stage(
    task: ResolvedTask,
    key: str,
    losses: DistillConfig,
    student_config: Any,
    teachers: Mapping[str, ModelSource],
    *,
    seed: int,
    earlier: Mapping[str, nn.Module],
    head: Head,
) -> Objective:
    if not losses.compares_layers:
        return build_objective(losses, head=head)
    dims = {name: dims_of(load_config(source)) for name, source in teachers.items()}
    student = dims_of(student_config)
    depths = {name: found.layers for name, found in dims.items()}
    matches = resolve_matches(losses.matches, student.layers, depths, key)
    attended = [match.name for match in matches if match.student.kind in (*PAIR_KINDS, *VECTOR_KINDS)]
    if not student.heads and (attended or (losses.emd is not None and losses.emd.attention > 0)):
        words = f"{', '.join(attended) or 'emd.attention'} cannot be, as the student has no attention"
        raise_problems(key, [Problem(f"{key}.{'matches' if attended else 'emd'}", words)])
    shapes: dict[str, dict[Signal, tuple[int, ...]]] = {"student": {}, "teacher": {}}
    if any(match.student.module for match in matches):
        matches, shapes = _with_modules(task, matches, student_config, teachers[""])
    return build_objective(
        losses,
        matches,
        {match.student: _size(student, match.student, shapes["student"]) for match in matches},
        {match.teacher: _size(dims[match.teacher.owner], match.teacher, shapes["teacher"]) for match in matches},
        seed=seed,
        teacher_heads={name: found.heads for name, found in dims.items()},
        head=head,
        dims=(student, dims[""]) if losses.emd is not None else None,
        earlier=earlier,
    )


def _with_modules(
    task: ResolvedTask, matches: tuple[LayerMatch, ...], student_config: Any, teacher: ModelSource
) -> tuple[tuple[LayerMatch, ...], dict[str, dict[Signal, tuple[int, ...]]]]:
    """What matches of modules count, and the shapes of their outputs, from models without weights.

    ConfigError names every match whose modules do not exist or cannot be compared.
    """
    found = [match for match in matches if match.student.module]
    models = {
        "student": empty_model(student_config, task.kind, task.student.trust_remote_code),
        "teacher": empty_model(load_config(teacher), task.kind, teacher.trust_remote_code),
    }
    shapes: dict[str, dict[Signal, tuple[int, ...]]] = {"student": {}, "teacher": {}}
    problems: list[Problem] = []
    for side, model in models.items():
        for signal in dict.fromkeys(getattr(match, side) for match in found):
            try:
                shapes[side][signal] = _shape(model, signal)
            except ModelError as error:
                problems.append(Problem(f"distill.matches: {side}_module", str(error)))
    counted: dict[str, str] = {}
    for match in found:
        pair = shapes["student"].get(match.student), shapes["teacher"].get(match.teacher)
        if pair[0] is None or pair[1] is None:
            continue
        if pair[0][:-1] != pair[1][:-1] or pair[0][:-1] not in (_TOKENS, _TOKENS[:1]):
            problems.append(
                Problem(
                    f"distill.matches: {match.name}",
                    f"for {_TOKENS[0]} rows of {_TOKENS[1]} tokens the student's module gives {pair[0]}, the teacher's "
                    f"{pair[1]}; wanted of both: (rows, tokens, width) or (rows, width)",
                )
            )
        elif len(pair[0]) == 2:
            counted[match.name] = "row"
            if not match.is_own and not MATCH_LOSSES[match.loss].of_rows:
                fit = ", ".join(name for name, entry in MATCH_LOSSES.items() if entry.of_rows)
                words = f"both give {pair[0]}, one vector per row; allowed: {fit}, a function of your own"
                problems.append(Problem(f"distill.matches: {match.name}", words))
        elif match.is_own:
            counted[match.name] = match.per or "token"
    raise_problems("distill.matches", problems)
    return tuple(
        dataclasses.replace(match, per=counted[match.name]) if match.name in counted else match for match in matches
    ), shapes


def _shape(model: Any, signal: Signal) -> tuple[int, ...]:
    tokens = torch.ones(_TOKENS, dtype=torch.int64, device="meta")
    with torch.no_grad():
        return tuple(forward(model, {"input_ids": tokens}, [signal])[signal].shape)


def _size(dims: TeacherDims, signal: Signal, shapes: Mapping[Signal, tuple[int, ...]]) -> int:
    if signal.module is not None:
        return shapes[signal][-1]
    return dims.heads if signal.kind in PAIR_KINDS else dims.hidden


class _Named(NamedTuple):
    """A part at a key; of functions how they are called."""

    key: str
    target: str
    arguments: tuple[str, ...]
    options: tuple[str, ...] = ()


def check_functions(resolved: Resolved, say: Say) -> None:
    """Import what `distill`, `student` and `store` name of the user's, each told in one line first; ConfigError lists
    all that does not fit."""
    problems: list[Problem] = []
    for key, target, arguments, options in _named(resolved):
        say(f"{key}: imports {target}")
        try:
            part = load_outside(target, key)
            if arguments:
                check_signature(part, target, key, arguments, options)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError("\n".join(map(str, problems)), tuple(problems))


def _named(resolved: Resolved) -> Iterator[_Named]:
    experiment = resolved.experiment
    student = experiment.student
    options = ["temperature", "scale_by_temperature_squared"]
    if any(task_spec(kind).places for kind in resolved.kinds):
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

"""Rules of `distill.method` and `distill.stages`, and which steps each stage has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from raybrew.catalog.methods import contradictions
from raybrew.config.distill import DistillConfig, StageConfig, method_of
from raybrew.config.kinds import is_multi
from raybrew.config.problems import raise_problems
from raybrew.config.student import StudentConfig
from raybrew.config.teacher import TeacherConfig
from raybrew.config.train import TrainConfig
from raybrew.errors import ConfigError, Problem

__all__ = ["check_method", "check_stages", "check_steps", "check_theseus", "method_notes", "stage_ends", "stage_names"]

#: Shares that add up to 1 only as far as decimal fractions do.
_ROUNDING = 1e-9


def stage_names(distill: DistillConfig) -> list[str]:
    """What logs call the stages: their names, or numbers from 1."""
    return [stage.name or str(index) for index, stage in enumerate(distill.stages, 1)]


def stage_ends(stages: Sequence[StageConfig], num_steps: int) -> tuple[int, ...]:
    """Steps that are done at the end of each stage of a run of `num_steps`; (num_steps,) without stages.

    ConfigError if a stage is left without a step.
    """
    ends: list[int] = []
    exact = 0.0
    for stage in stages[:-1]:
        # Shares are added up before they are rounded, so that three thirds are thirds.
        exact += stage.steps if stage.steps is not None else (stage.share or 0.0) * num_steps
        ends.append(math.floor(exact + 0.5))
    ends.append(num_steps)
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    short = next((index for index, length in enumerate(lengths) if length < 1), None)
    if short is not None and stages:
        problem = f"stages of {', '.join(map(str, lengths))} steps in a run of {num_steps}; each needs one at least"
        raise_problems("distill.stages", [Problem(f"distill.stages.{short}", problem)])
    return tuple(ends)


def method_notes(distill: DistillConfig, student: StudentConfig) -> list[str]:
    """Where a valid experiment does not start its student as the method's paper does."""
    if distill.method is None or student.shape is None or student.starts_random:
        return []
    return [
        f"distill.method {distill.method}: its paper starts the student with student.{key}={value}; "
        f"here it is {getattr(student, key)!r}"
        for key, value in method_of(distill.method).starts.items()
        if getattr(student, key) != value
    ]


def check_method(distill: DistillConfig) -> list[Problem]:
    """What is given beside a method and makes another one of it."""
    if distill.method is None:
        return []
    row = method_of(distill.method)
    found = contradictions(distill.method, row, distill.model_fields_set, distill.model_dump(mode="json"))
    return [Problem(f"distill.{key}", f"{words} (`raybrew list methods`)", "conflict") for key, words in found]


def check_stages(distill: DistillConfig) -> list[Problem]:
    """Whether stages divide the steps of any run."""
    stages = distill.stages
    if not stages:
        return []
    problems = []
    for index, stage in enumerate(stages):
        key = f"distill.stages.{index}"
        if stage.share is not None and stage.steps is not None:
            problems.append(Problem(f"{key}.steps", "given beside share; allowed: one of them", "conflict"))
        if index + 1 < len(stages) and stage.share is None and stage.steps is None:
            problems.append(
                Problem(key, "needs share or steps; only the last stage takes what the others leave", "required")
            )
    if stages[-1].steps is not None:
        problems.append(
            Problem(
                f"distill.stages.{len(stages) - 1}.steps",
                f"given {stages[-1].steps} for the last stage, which takes what the others leave; remove it",
                "unused",
            )
        )
    shares = [stage.share for stage in stages if stage.share is not None]
    total = math.fsum(shares)
    if stages[-1].share is not None and len(shares) == len(stages) and abs(total - 1) > _ROUNDING:
        problems.append(Problem("distill.stages", f"the shares add up to {total:g}; allowed: 1"))
    elif stages[-1].share is not None and len(shares) < len(stages):
        problems.append(
            Problem(
                f"distill.stages.{len(stages) - 1}.share",
                "given for the last stage beside stages with steps, of which it takes what they leave; remove it",
                "conflict",
            )
        )
    elif stages[-1].share is None and total > 1 - _ROUNDING:
        problems.append(
            Problem("distill.stages", f"the shares add up to {total:g} and leave nothing for the last one", "empty")
        )
    names = stage_names(distill)
    problems += [
        Problem(
            f"distill.stages.{index}.name",
            f"given {name!r}, which another stage is called; names must differ",
            "duplicate",
        )
        for index, name in enumerate(names)
        if name in names[:index]
    ]
    return problems


def check_steps(distill: DistillConfig, train: TrainConfig) -> list[Problem]:
    """Whether the longest run that `train.max_steps` allows has a step for each stage."""
    if not distill.stages or train.max_steps is None or check_stages(distill):
        return []
    try:
        stage_ends(distill.stages, train.max_steps)
    except ConfigError as error:
        return [Problem("train.max_steps", f"given {train.max_steps}; {problem}") for problem in error.problems]
    return []


def check_theseus(
    distill: DistillConfig, train: TrainConfig, student: StudentConfig, teacher: TeacherConfig, task: Any
) -> list[Problem]:
    """What a student that trains inside its teacher does not go with."""
    problems = []
    for section, part in distill.keyed_parts:
        if part.theseus is None:
            continue
        key = f"{section}.theseus"
        if part.compares_layers:
            problems.append(
                Problem(
                    key,
                    "given with matches or emd, for which layers inside the teacher have no outputs; drop one",
                    "conflict",
                )
            )
        if is_multi(task) or teacher.members:
            problems.append(Problem(key, "given with several tasks or teachers; it is for one of each", "conflict"))
        elif not teacher.given:
            problems.append(Problem(key, "needs teacher.model, inside which the student trains", "required"))
        if student.model is not None or student.starts_random:
            what = "student.model" if student.model is not None else f"student.init {student.init!r}"
            problems.append(
                Problem(
                    key,
                    f"given with {what}; the student starts from the teacher's embeddings and head: give "
                    "student.shape, with student.init auto or teacher",
                    "conflict",
                )
            )
        if student.vocabulary is not None:
            problems.append(
                Problem("student.vocabulary", f"given with {key}, where the embeddings are the teacher's", "conflict")
            )
        problems += [
            Problem(f"train.{name}", f"given with {key}; allowed there: {allowed}", "conflict")
            for name, allowed in (("compile", "false"), ("gradient_checkpointing", "false"))
            if getattr(train, name)
        ]
        if train.parallel == "fsdp":
            problems.append(Problem("train.parallel", f"given 'fsdp' with {key}; allowed there: ddp", "conflict"))
    return list(dict.fromkeys(problems))

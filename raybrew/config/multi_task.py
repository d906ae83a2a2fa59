"""`task.kind: multi`: several tasks for one student, each with its own rows and teachers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from raybrew.catalog.losses import RAW_LOSSES
from raybrew.config.base import MAX_WEIGHT, Name, Section
from raybrew.config.data import DataConfig
from raybrew.config.distill import DistillConfig, with_matches
from raybrew.config.kinds import task_spec
from raybrew.config.matches import MatchConfig, matches_of_task
from raybrew.config.problems import near_match
from raybrew.config.student import StudentConfig
from raybrew.config.task import TaskConfig
from raybrew.config.task_kinds import ClassificationConfig
from raybrew.config.teacher import TeacherConfig
from raybrew.errors import Problem

__all__ = ["MultiTaskConfig", "TaskPart", "check_one_task", "check_tasks"]


class TaskPart(Section):
    """One task among several: what an experiment of this task alone has in the sections of these names."""

    task: TaskConfig = ClassificationConfig()
    """What is predicted, and by which metric it is judged."""
    data: DataConfig = DataConfig()
    """Its rows."""
    teacher: TeacherConfig = TeacherConfig()
    """Its teacher or teachers."""
    weight: float = Field(default=1.0, gt=0, le=MAX_WEIGHT)
    """Factor on all losses of this task."""


class MultiTaskConfig(Section):
    """Several tasks for one student: a shared encoder with a head for each.

    Example:
        >>> parts = {"rte": {"teacher": "owner/rte"}, "mrpc": {"teacher": "owner/mrpc"}}
        >>> raybrew.MultiTask(tasks=parts).tasks["rte"].teacher
        Teacher(model='owner/rte')
    """

    kind: Literal["multi"] = "multi"
    """Which task; `raybrew list tasks` shows all."""
    tau: float = Field(default=0.5, ge=0, le=10)
    """The task of a step is drawn with probability proportional to its number of rows ** tau: 1 by size, 0 alike."""
    metric: Literal["mean"] = "mean"
    """What chooses the best checkpoint: the mean over tasks of each one's own `metric`."""
    tasks: dict[Name, TaskPart] = Field(min_length=2)
    """The tasks by name, each with the sections task, data and teacher, and with weight."""

    @classmethod
    def long_form(cls, value: Any) -> Any:
        """As of any section, and of each task's own sections."""
        value = super().long_form(value)
        if isinstance(value, dict) and isinstance(value.get("tasks"), Mapping):
            value["tasks"] = {name: TaskPart.long_form(part) for name, part in value["tasks"].items()}
        return value


#: Sections that each task has for itself.
_OWN = ("task", "data", "teacher")


def check_one_task(sections: Mapping[str, Any]) -> list[Problem]:
    """What an experiment of one task says about its teachers in other sections than theirs."""
    problems: list[Problem] = []
    student: StudentConfig | None = sections.get("student")
    distill: DistillConfig | None = sections.get("distill")
    teacher: TeacherConfig | None = sections.get("teacher")
    if teacher is None:
        return problems
    if student is not None and student.teacher is not None:
        problems += _student_teacher(
            student, list(teacher.members), "it has one teacher; teacher.members names several"
        )
    for key, match in _keyed_matches(distill):
        if match.teacher is None:
            if teacher.members:
                problems.append(
                    Problem(key, f"required with several teachers; allowed: {', '.join(teacher.members)}", "required")
                )
        elif match.teacher not in teacher.members:
            problems.append(_unknown(key, match.teacher, list(teacher.members), "there is one teacher"))
    raw = [
        part.kd_loss.kind for part in (distill.parts if distill is not None else ()) if part.kd_loss.kind in RAW_LOSSES
    ]
    if teacher.members and teacher.average == "probabilities" and raw:
        given = f"given 'probabilities' with distill.kd_loss.kind {raw[0]!r}, which compares logits"
        problems.append(Problem("teacher.average", given, "conflict"))
    return problems


def _keyed_matches(distill: DistillConfig | None) -> Iterator[tuple[str, MatchConfig]]:
    """All matches of all stages, with the dotted keys of their teachers."""
    for key, part in distill.keyed_parts if distill is not None else ():
        for index, match in enumerate(part.matches):
            yield f"{key}.matches.{index}.teacher", match


def check_tasks(
    sections: Mapping[str, Any], task: MultiTaskConfig, check: Callable[[Mapping[str, Any]], list[Problem]]
) -> list[Problem]:
    """Problems of several tasks; `check` is what an experiment of one task is checked with."""
    problems = _top_level(sections)
    student, distill, train = (sections.get(name) for name in ("student", "distill", "train"))
    if train is not None and train.parallel == "fsdp":
        problems.append(Problem("train.parallel", "given 'fsdp' with several tasks; allowed there: ddp", "conflict"))
    for key, part in distill.keyed_parts if distill is not None else ():
        if part.theseus is not None:
            problems.append(
                Problem(f"{key}.theseus", "given with several tasks; it is for one task and one teacher", "conflict")
            )
    named = _names(task)
    if student is not None:
        problems += _student_teacher(student, named, "")
    for key, match in _keyed_matches(distill):
        problems += _match_teacher(key, match.teacher, task, named)
    for name, part in task.tasks.items():
        if not task_spec(part.task.kind).stored:
            given = f"given {part.task.kind!r}, which is a task of its own; allowed: others"
            problems.append(Problem(f"task.tasks.{name}.task.kind", given, "conflict"))
        own = {**sections, "task": part.task, "data": part.data, "teacher": part.teacher}
        if student is not None:
            own["student"] = student.model_copy(update={"teacher": None})
        if distill is not None:
            own["distill"] = with_matches(distill, functools.partial(_seen_by, task=name, teacher=part.teacher))
        for problem in check(own):
            mine = problem.key.split(".")[0] in _OWN
            problems.append(dataclasses.replace(problem, key=f"task.tasks.{name}.{problem.key}") if mine else problem)
    return list(dict.fromkeys(problems))


def _top_level(sections: Mapping[str, Any]) -> list[Problem]:
    """What stands in `data` or `teacher` although each task has its own."""
    problems = []
    data, teacher = sections.get("data"), sections.get("teacher")
    if data is not None and data.model_copy(update={"cache": None}) != DataConfig():
        problems.append(
            Problem("data", "given beside task.tasks; rows belong to each task: task.tasks.<name>.data", "conflict")
        )
    if teacher is not None and teacher != TeacherConfig():
        problems.append(
            Problem(
                "teacher", "given beside task.tasks; teachers belong to each: task.tasks.<name>.teacher", "conflict"
            )
        )
    return problems


def _names(task: MultiTaskConfig) -> list[str]:
    names: list[str] = []
    for name, part in task.tasks.items():
        names += [name, *(f"{name}/{member}" for member in part.teacher.members)]
    return names


def _match_teacher(key: str, given: str | None, task: MultiTaskConfig, named: list[str]) -> list[Problem]:
    if given is not None and given not in named:
        return [_unknown(key, given, named, "")]
    owners = [given] if given is not None else list(task.tasks)
    several = [name for name in owners if name in task.tasks and task.tasks[name].teacher.members]
    if several:
        choice = ", ".join(f"{name}/{member}" for name in several for member in task.tasks[name].teacher.members)
        return [Problem(key, f"{several[0]} has several teachers; name one of them: {choice}", "required")]
    return []


def _student_teacher(student: StudentConfig, allowed: list[str], otherwise: str) -> list[Problem]:
    if student.teacher is None:
        return []
    if student.shape is None:
        return [Problem("student.teacher", "applies to student.shape only, which is made after a teacher", "unused")]
    return [] if student.teacher in allowed else [_unknown("student.teacher", student.teacher, allowed, otherwise)]


def _unknown(key: str, given: str, allowed: Iterable[str], otherwise: str) -> Problem:
    allowed = list(allowed)
    if not allowed:
        return Problem(key, f"given {given!r}, but {otherwise}; leave it out", "unused")
    return Problem(key, f"given {given!r}; allowed: {', '.join(allowed)}{near_match(given, allowed)}", "unknown")


def _seen_by(matches: tuple[MatchConfig, ...], task: str, teacher: TeacherConfig) -> tuple[MatchConfig, ...]:
    """`matches` as task `task` has them, those of others without weight."""
    return tuple(_one_seen_by(match, task, teacher) for match in matches)


def _one_seen_by(match: MatchConfig, task: str, teacher: TeacherConfig) -> MatchConfig:
    """`match` as task `task` has it: without weight if it is another's. Its teacher's name was looked at before."""
    mine = matches_of_task((match,), task)
    member = mine[0].teacher if mine else None
    fits = bool(mine) and (member in teacher.members if teacher.members else member is None)
    stand_in = next(iter(teacher.members), None)
    return match.model_copy(update={"teacher": member if fits else stand_in, "weight": match.weight if fits else 0.0})

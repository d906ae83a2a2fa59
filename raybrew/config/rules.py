"""All rules over several keys, and whether named files exist. Each stands at the end of the file of its section."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from raybrew.config.augment import check_augment
from raybrew.config.changes import check_changes
from raybrew.config.data import check_columns, check_data, missing_data
from raybrew.config.distill import check_distill, check_student_layers, check_unlabeled, check_without_layers
from raybrew.config.multi_task import MultiTaskConfig, check_one_task, check_tasks
from raybrew.config.paths import absolute, exists
from raybrew.config.problems import shown
from raybrew.config.stages import check_method, check_stages, check_steps, check_theseus
from raybrew.config.store import check_store
from raybrew.config.student import check_student, check_vocabulary
from raybrew.config.task import check_kd_loss, check_masked_lm, check_masked_lm_student, check_qa, check_tagging
from raybrew.config.teacher import check_average, check_early_stopping, check_teacher
from raybrew.config.train import check_train
from raybrew.errors import Problem

__all__ = ["check_sections"]

#: `name` or `owner/name`; anything else can only be a folder.
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")

#: Names of the sections that a rule reads, and the rule. It runs if these sections were valid.
_RULES: tuple[tuple[tuple[str, ...], Callable[..., list[Problem]]], ...] = (
    (("data",), check_data),
    (("train",), lambda train: check_train("train", train)),
    (("teacher",), check_teacher),
    (("student", "teacher"), check_student),
    (("distill",), check_method),
    (("distill",), check_stages),
    (("distill", "teacher"), check_distill),
    (("student", "distill"), check_without_layers),
    (("student",), check_vocabulary),
    (("data", "distill"), check_unlabeled),
    (("distill", "train"), check_student_layers),
    (("distill", "train"), check_steps),
    (("distill", "train", "student", "teacher", "task"), check_theseus),
    (("distill", "train", "teacher", "task"), check_changes),
    (("data", "train", "teacher", "task"), check_early_stopping),
    (("store",), check_store),
    (("task", "data"), check_columns),
    (("task",), check_tagging),
    (("task",), check_qa),
    (("task", "data", "teacher", "store"), check_masked_lm),
    (("task", "student"), check_masked_lm_student),
    (("task", "data"), check_augment),
    (("task", "teacher"), check_average),
    (("task", "distill"), check_kd_loss),
)


def check_sections(sections: Mapping[str, Any], check_files: bool) -> list[Problem]:
    """Problems of combinations and, with `check_files`, of missing files."""
    task = sections.get("task")
    if isinstance(task, MultiTaskConfig):
        found = check_tasks(sections, task, lambda own: check_sections(own, check_files))
        if all(name in sections for name in ("distill", "train", "teacher")):
            found += check_changes(sections["distill"], sections["train"], sections["teacher"], task)
        return list(dict.fromkeys(found))
    problems: list[Problem] = []
    for names, rule in _RULES:
        if all(name in sections for name in names):
            problems += rule(*(sections[name] for name in names))
    problems += check_one_task(sections)
    if check_files:
        problems += missing_data(sections["data"]) if "data" in sections else []
        problems += [problem for name, model in _models(sections) for problem in _missing_model(name, model)]
    return problems


def _models(sections: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """Every key that names a model, and the model."""
    found = [(name, sections[name].model) for name in ("teacher", "student") if name in sections]
    if "teacher" in sections:
        found += [(f"teacher.members.{name}", member.model) for name, member in sections["teacher"].members.items()]
    if "data" in sections and sections["data"].augment is not None:
        found.append(("data.augment", sections["data"].augment.model))
    return found


def _missing_model(name: str, model: str | None) -> list[Problem]:
    if model is None or exists(model, folder=True) or _HUB_NAME.fullmatch(model):
        return []
    return [Problem(f"{name}.model", f"given {shown(model)}; no such folder: {absolute(model)}", "missing")]

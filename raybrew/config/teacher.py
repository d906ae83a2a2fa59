"""`teacher`: the model that is imitated, or several of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from raybrew.config.base import MAX_WEIGHT, NOT_IDENTITY, Name, Section
from raybrew.config.data import DataConfig
from raybrew.config.kinds import is_multi, task_spec
from raybrew.config.train import FinetuneConfig, TrainConfig, check_train
from raybrew.errors import Problem

__all__ = ["TeacherConfig", "TeacherMember", "check_average", "check_early_stopping", "check_teacher"]


class TeacherMember(Section):
    """One of several teachers of a task.

    Example:
        >>> raybrew.TeacherMember("owner/model", weight=2)
        TeacherMember(model='owner/model', weight=2.0)
    """

    short: ClassVar[str] = "model"
    model: str
    """Folder or hub name of this teacher (of its starting point when `finetune` is set)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Allow the model's own Python code to run. Only for code you have read."""
    finetune: FinetuneConfig | None = None
    """How `raybrew finetune` trains this teacher on labels. Not set: the model is used as it is."""
    source: Literal["auto", "store", "live"] = "auto"
    """Where its outputs come from, as `teacher.source`."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of its forward pass."""
    weight: float = Field(default=1.0, ge=0, le=MAX_WEIGHT)
    """Its share of the average, relative to the other teachers'; 0: only its layers are matched."""


class TeacherConfig(Section):
    """A Hugging Face model folder or hub name, fine-tuned already or by `raybrew finetune`; or `members`.

    In place of the section may stand the model alone, or a list of teachers, each named by the last part of its model.

    Example:
        >>> raybrew.Teacher(["owner/large", "owner/small"], average="probabilities").members["small"]
        TeacherMember(model='owner/small')
    """

    model: str | None = None
    """Folder or hub name of the teacher (of its starting point when `teacher.finetune` is set)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Allow the model's own Python code to run. Only for code you have read."""
    finetune: FinetuneConfig | None = None
    """How `raybrew finetune` trains the teacher on labels. Not set: `teacher.model` is used as it is."""
    source: Literal["auto", "store", "live"] = "auto"
    """Where a student's targets come from: `store` (captured once), `live` (teacher runs in every step);
    `auto` uses the store and captures what it lacks, but runs the teacher live where a store of 1 GiB or more would not
    fit on the disk, or would be read once only (train.epochs=1) and is not there yet."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the teacher's forward pass; `auto`: bf16 on GPUs that have it, else fp32."""
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", json_schema_extra=NOT_IDENTITY)
    """Where teacher actors run; fixed by `train.device` for a live teacher."""
    members: dict[Name, TeacherMember] = Field(default={})
    """Several teachers of one task instead of `model`, by name: {big: {model: ..., weight: 2}, other: {model: ...}},
    each with the keys model, revision, trust_remote_code, finetune, source, precision and weight."""
    average: Literal["logits", "probabilities"] = "logits"
    """What of several teachers is averaged: their logits, or their softmaxes at `distill.temperature`."""

    @classmethod
    def long_form(cls, value: Any) -> Any:
        """The model alone, or a list of members."""
        if isinstance(value, str):
            return {"model": value, "members": {}}
        if isinstance(value, list | tuple):
            return {"model": None, "members": _named(value)}
        value = super().long_form(value)
        if isinstance(value, dict) and isinstance(value.get("members"), Mapping):
            value["members"] = {name: TeacherMember.long_form(each) for name, each in value["members"].items()}
        return value

    @property
    def given(self) -> bool:
        """Whether there is a teacher at all."""
        return self.model is not None or bool(self.members)

    def member(self, name: str) -> TeacherConfig:
        """One of `members` as an only teacher."""
        chosen = self.members[name]
        return TeacherConfig(
            model=chosen.model,
            revision=chosen.revision,
            trust_remote_code=chosen.trust_remote_code,
            finetune=chosen.finetune,
            source=chosen.source,
            precision=chosen.precision,
            device=self.device,
        )


def _named(members: list[Any] | tuple[Any, ...]) -> dict[str, Any]:
    """Teachers of a list by the last part of their models: owner/bert-base is bert-base."""
    named: dict[str, Any] = {}
    for each in map(TeacherMember.long_form, members):
        model = each.get("model") if isinstance(each, Mapping) else getattr(each, "model", None)
        if not isinstance(model, str):
            raise ValueError("a list of models, each as text or {model: ...}")
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", model.rstrip("/").rpartition("/")[2]).lstrip("-_")[:50]
        if not name or name in named:
            raise ValueError(f"models with different last parts, by which teachers are named ({name!r} is taken or "
                             "empty); name them yourself: members: {a: ..., b: ...}")  # fmt: skip
        named[name] = each
    return named


def check_teacher(teacher: TeacherConfig) -> list[Problem]:
    problems = _members(teacher)
    for name, member in teacher.members.items():
        if member.finetune is not None:
            problems += check_train(f"teacher.members.{name}.finetune", member.finetune)
    if teacher.finetune is not None:
        problems += check_train("teacher.finetune", teacher.finetune)
        if not teacher.given:
            problems.append(
                Problem("teacher.model", "required with teacher.finetune: the model that it starts from", "required")
            )
    return problems


def _members(teacher: TeacherConfig) -> list[Problem]:
    """Problems of `teacher.members` beside those of each one."""
    problems = []
    if not teacher.members:
        if teacher.average != "logits":
            problems.append(
                Problem(
                    "teacher.average",
                    f"given {teacher.average!r}, but there is one teacher; name teacher.members",
                    "unused",
                )
            )
        return problems
    defaults = TeacherConfig()
    problems += [
        Problem(
            f"teacher.{key}",
            f"given beside teacher.members; it is a key of each of them: {', '.join(teacher.members)}",
            "conflict",
        )
        for key in ("model", "revision", "trust_remote_code", "finetune", "source", "precision")
        if getattr(teacher, key) != getattr(defaults, key)
    ]
    if not any(member.weight for member in teacher.members.values()):
        problems.append(Problem("teacher.members", "all weights are 0: there is nothing to average", "empty"))
    return problems


def check_average(task: Any, teacher: TeacherConfig) -> list[Problem]:
    spec = task_spec(task.kind)
    if teacher.average == "probabilities" and not (spec.one_of_many and spec.stored):
        return [
            Problem(
                "teacher.average",
                f"given 'probabilities'; allowed for task.kind {task.kind!r}: logits (a softmax over all outputs of an "
                "item is what is averaged, which only classification and tagging have)",
                "conflict",
            )
        ]
    return []


def check_early_stopping(data: DataConfig, train: TrainConfig, teacher: TeacherConfig, task: Any) -> list[Problem]:
    if data.eval is not None or is_multi(task):  # each of several tasks has rows of its own
        return []
    return [
        Problem(
            f"{key}.early_stopping", "given without data.eval: nothing is evaluated that it could stop at", "required"
        )
        for key, config in (("train", train), ("teacher.finetune", teacher.finetune))
        if config is not None and config.early_stopping is not None
    ]

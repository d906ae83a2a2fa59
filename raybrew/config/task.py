"""`task`: what is predicted, and by which metric a student is judged. One config per `task.kind`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, Union

from pydantic import (
    Discriminator,
    SerializeAsAny,
    Tag,
)

from raybrew.catalog.tasks import DEFAULT_KIND, TASKS
from raybrew.config.base import Section
from raybrew.config.data import DataConfig
from raybrew.config.distill import DistillConfig
from raybrew.config.kinds import kd_losses_for, task_spec
from raybrew.config.outside import is_outside
from raybrew.config.store import StoreConfig
from raybrew.config.student import WITHOUT_LAYERS, StudentConfig
from raybrew.config.task_kinds import (
    ClassificationConfig,
    MaskedLMConfig,
    MultilabelConfig,
    OwnTaskConfig,
    QAConfig,
    RegressionConfig,
    TaggingConfig,
    own_config,
)
from raybrew.config.teacher import TeacherConfig
from raybrew.errors import Problem

__all__ = [
    "TASK_CONFIGS",
    "WHY_LIVE",
    "TaskConfig",
    "check_kd_loss",
    "check_masked_lm",
    "check_masked_lm_student",
    "check_qa",
    "check_tagging",
    "task_config_of",
]


#: Tag of tasks of the user's among all tasks.
_OWN = "package.module:Name"

_CONFIGS: tuple[type[Section], ...] = (
    ClassificationConfig,
    MultilabelConfig,
    RegressionConfig,
    TaggingConfig,
    QAConfig,
    MaskedLMConfig,
)
#: `task.kind` -> its config.
TASK_CONFIGS: Mapping[str, type[Section]] = MappingProxyType(
    {config.model_fields["kind"].default: config for config in _CONFIGS}
)


def _kind_of(value: Any) -> Any:
    if isinstance(value, str):
        return value
    kind = value.get("kind", DEFAULT_KIND) if isinstance(value, Mapping) else getattr(value, "kind", None)
    return _OWN if is_outside(kind) else kind


#: Any task, told apart by `kind`; without one it is classification.
if TYPE_CHECKING:
    TaskConfig: TypeAlias = (
        ClassificationConfig
        | MultilabelConfig
        | RegressionConfig
        | TaggingConfig
        | QAConfig
        | MaskedLMConfig
        | OwnTaskConfig
    )
else:
    _members = [Annotated[config, Tag(kind)] for kind, config in TASK_CONFIGS.items()]
    TaskConfig = Annotated[
        Union[(*_members, Annotated[SerializeAsAny[OwnTaskConfig], Tag(_OWN)])],
        Discriminator(_kind_of),
    ]


def task_config_of(value: Any) -> type[Section] | None:
    """The config that `value` of the section `task` is meant for; None if its `kind` is none that exists.

    ConfigError for a task of the user's that cannot be imported.
    """
    kind = value.get("kind", DEFAULT_KIND) if isinstance(value, Mapping) else getattr(value, "kind", None)
    if isinstance(kind, str) and is_outside(kind):
        return own_config(task_spec(kind))
    return TASK_CONFIGS.get(kind) if isinstance(kind, str) else None


#: Why no store holds what a teacher says of masked texts.
WHY_LIVE = "masks are new in every epoch, and a teacher's logits over its vocabulary are too large to keep"


def check_kd_loss(task: TaskConfig, distill: DistillConfig) -> list[Problem]:
    problems, allowed, spec = [], kd_losses_for(task.kind), task_spec(task.kind)
    for key, part in distill.keyed_parts:
        kind = part.kd_loss.kind
        shown = f"given {kind!r}; allowed for task.kind {task.kind!r}: auto, {', '.join(allowed)}"
        if part.kd_weight > 0 and ":" not in kind and kind not in ("auto", *allowed):
            problems.append(Problem(f"{key}.kd_loss.kind", shown))
    if distill.temperature_schedule is not None and not spec.one_of_many:
        problems.append(
            Problem(
                "distill.temperature_schedule",
                f"given for task.kind {task.kind!r}; it compares classes that exclude one another, of a fixed number "
                f"({', '.join(kind for kind, each in TASKS.items() if each.one_of_many)})",
                "conflict",
            )
        )
    if distill.probability_shift and spec.outputs != "classes":
        problems.append(
            Problem(
                "distill.probability_shift",
                f"given for task.kind {task.kind!r}, which has no single true class",
                "conflict",
            )
        )
    return problems


def check_qa(task: TaskConfig) -> list[Problem]:
    if not isinstance(task, QAConfig):
        return []
    # Three or four tokens around question and window, and a window moves on by at least half of its size.
    room = task.max_length - task.max_question - 4
    if 2 * task.stride > room:
        return [
            Problem(
                "task.stride",
                f"given {task.stride}; allowed: at most half of what max_length ({task.max_length}) leaves beside "
                f"max_question ({task.max_question}): {max(0, room // 2)}",
            )
        ]
    return []


def check_tagging(task: TaskConfig) -> list[Problem]:
    if isinstance(task, TaggingConfig) and task.scheme == "none" and task.metric in ("f1", "precision", "recall"):
        allowed = "accuracy, macro_f1, as task.scheme 'none' has no spans"
        return [Problem("task.metric", f"given {task.metric!r}; allowed: {allowed}")]
    return []


def check_masked_lm(task: TaskConfig, data: DataConfig, teacher: TeacherConfig, store: StoreConfig) -> list[Problem]:
    if not isinstance(task, MaskedLMConfig):
        return []
    problems = []
    if task.masked + task.randomised > 1 + 1e-9:
        problems.append(
            Problem(
                "task.randomised",
                f"given {task.randomised} beside masked {task.masked}; allowed: shares that add up to 1 at most",
            )
        )
    if data.unlabeled is not None:
        problems.append(
            Problem(
                "data.unlabeled",
                f"given for task.kind {task.kind!r}, whose rows need no labels; use data.train",
                "conflict",
            )
        )
    if teacher.members:
        problems.append(
            Problem("teacher.members", f"given for task.kind {task.kind!r}; allowed: one teacher.model", "conflict")
        )
    if teacher.source == "store":
        problems.append(
            Problem(
                "teacher.source",
                f"given 'store' for task.kind {task.kind!r}; allowed: auto, live ({WHY_LIVE})",
                "conflict",
            )
        )
    if store.signals:
        problems.append(
            Problem(
                "store.signals",
                f"given {list(store.signals)} for task.kind {task.kind!r}, which has no store: {WHY_LIVE}",
                "conflict",
            )
        )
    return problems


def check_masked_lm_student(task: TaskConfig, student: StudentConfig) -> list[Problem]:
    if not isinstance(task, MaskedLMConfig):
        return []
    problems = []
    if student.vocabulary is not None:
        why = "the student guesses among the tokens that its teacher knows"
        problems.append(Problem("student.vocabulary", f"given for task.kind {task.kind!r}, where {why}", "conflict"))
    if student.shape in WITHOUT_LAYERS:
        problems.append(
            Problem(
                "student.shape",
                f"given {student.shape!r}, which has no masked-LM head; allowed: transformers",
                "conflict",
            )
        )
    return problems

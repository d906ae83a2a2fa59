"""Rules of experiment files that depend on the kind of task: columns, sizes, and which losses fit its outputs."""

from __future__ import annotations

from collections.abc import Callable

from raybrew.catalog.tasks import TASKS
from raybrew.config.augment import augment_problems
from raybrew.config.data import DataConfig
from raybrew.config.distill import DistillConfig
from raybrew.config.problems import Problem
from raybrew.config.store import StoreConfig
from raybrew.config.student import WITHOUT_LAYERS, StudentConfig
from raybrew.config.task import MaskedLMConfig, QAConfig, TaggingConfig, TaskConfig, kd_losses_for, task_spec
from raybrew.config.teacher import TeacherConfig

__all__ = ["TASK_RULES", "WHY_LIVE"]

#: Why no store holds what a teacher says of masked texts.
WHY_LIVE = "masks are new in every epoch, and a teacher's logits over its vocabulary are too large to keep"


def _columns(task: TaskConfig, data: DataConfig) -> list[Problem]:
    spec = task_spec(task.kind)
    problems, used = [], spec.columns
    for key in sorted(data.columns.model_fields_set - set(used)):
        value = getattr(data.columns, key)
        if value != type(data.columns).model_fields[key].get_default():
            problems.append(
                Problem(f"data.columns.{key}", f"given {value!r}, but task.kind {task.kind!r} reads {', '.join(used)}")
            )
    columns = [value for key in used if (value := getattr(data.columns, key)) is not None]
    if len(set(columns)) != len(columns):
        shown = ", ".join(map(str, columns))
        problems.append(Problem("data.columns", f"given {shown}; each column must be another one"))
    if data.format == "conll" and not spec.conll:
        readers = ", ".join(kind for kind, each in TASKS.items() if each.conll)
        problems.append(
            Problem("data.format", f"given 'conll', which task.kind {readers} reads, but task.kind is {task.kind!r}")
        )
    for key in ("tokens", "tags"):
        value = getattr(data.columns, key)
        if isinstance(value, int) and data.format not in ("auto", "conll"):
            problems.append(
                Problem(
                    f"data.columns.{key}", f"given {value}; numbers are for columns of CoNLL files, data.format=conll"
                )
            )
        if isinstance(value, str) and value != key and data.format == "conll":
            problems.append(
                Problem(
                    f"data.columns.{key}", f"given {value!r}; columns of CoNLL files have numbers, from 0 or -1 back"
                )
            )
    return problems


def _kd_of_task(task: TaskConfig, distill: DistillConfig) -> list[Problem]:
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
            )
        )
    if distill.probability_shift and spec.outputs != "classes":
        problems.append(
            Problem("distill.probability_shift", f"given for task.kind {task.kind!r}, which has no single true class")
        )
    return problems


def _average(task: TaskConfig, teacher: TeacherConfig) -> list[Problem]:
    spec = task_spec(task.kind)
    if teacher.average == "probabilities" and not (spec.one_of_many and spec.stored):
        return [
            Problem(
                "teacher.average",
                f"given 'probabilities'; allowed for task.kind {task.kind!r}: logits (a softmax over all outputs of an "
                "item is what is averaged, which only classification and tagging have)",
            )
        ]
    return []


def _qa(task: TaskConfig) -> list[Problem]:
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


def _tagging(task: TaskConfig) -> list[Problem]:
    if isinstance(task, TaggingConfig) and task.scheme == "none" and task.metric in ("f1", "precision", "recall"):
        allowed = "accuracy, macro_f1, as task.scheme 'none' has no spans"
        return [Problem("task.metric", f"given {task.metric!r}; allowed: {allowed}")]
    return []


def _masked_lm(task: TaskConfig, data: DataConfig, teacher: TeacherConfig, store: StoreConfig) -> list[Problem]:
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
            Problem("data.unlabeled", f"given for task.kind {task.kind!r}, whose rows need no labels; use data.train")
        )
    if teacher.members:
        problems.append(Problem("teacher.members", f"given for task.kind {task.kind!r}; allowed: one teacher.model"))
    if teacher.source == "store":
        problems.append(
            Problem("teacher.source", f"given 'store' for task.kind {task.kind!r}; allowed: auto, live ({WHY_LIVE})")
        )
    if store.signals:
        problems.append(
            Problem(
                "store.signals",
                f"given {list(store.signals)} for task.kind {task.kind!r}, which has no store: {WHY_LIVE}",
            )
        )
    return problems


def _masked_lm_student(task: TaskConfig, student: StudentConfig) -> list[Problem]:
    if not isinstance(task, MaskedLMConfig):
        return []
    problems = []
    if student.vocabulary is not None:
        why = "the student guesses among the tokens that its teacher knows"
        problems.append(Problem("student.vocabulary", f"given for task.kind {task.kind!r}, where {why}"))
    if student.shape in WITHOUT_LAYERS:
        given = f"given {student.shape!r}, which has no masked-LM head"
        problems.append(Problem("student.shape", f"{given}; allowed: transformers"))
    return problems


def _augment(task: TaskConfig, data: DataConfig) -> list[Problem]:
    if data.augment is None:
        return []
    return augment_problems(data.augment, task.kind, data.columns.text_pair is not None, data.unlabeled is not None)


#: Names of the sections that a rule reads, and the rule.
TASK_RULES: tuple[tuple[tuple[str, ...], Callable[..., list[Problem]]], ...] = (
    (("task", "data"), _columns),
    (("task",), _tagging),
    (("task",), _qa),
    (("task", "data", "teacher", "store"), _masked_lm),
    (("task", "student"), _masked_lm_student),
    (("task", "data"), _augment),
    (("task", "teacher"), _average),
    (("task", "distill"), _kd_of_task),
)

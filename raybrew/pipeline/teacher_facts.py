"""What a student's summary says about its teachers: each by name, and together as what it is measured against."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raybrew.config import TeacherConfig
from raybrew.config.kinds import task_spec
from raybrew.data.cautions import Caution, tell
from raybrew.data.model_cautions import OtherScale
from raybrew.data.rows import RowSet, subset_indices
from raybrew.data.tables import taken
from raybrew.models.loading import ModelSource
from raybrew.pipeline.evaluation import (
    Evaluation,
    average_name,
    evaluate_ensemble,
    evaluate_teacher,
    joint_metrics,
    keep_scores,
)
from raybrew.pipeline.inputs import Inputs
from raybrew.pipeline.model_checks import confirms_order, model_cautions, renamed_outputs, unnamed_outputs, whose
from raybrew.pipeline.reporter import Reporter
from raybrew.pipeline.resolve import ResolvedTask, ResolvedTeacher
from raybrew.pipeline.rows import Rows
from raybrew.reports.rows import model_name
from raybrew.signals import Signal
from raybrew.storage.open import open_storage
from raybrew.store.manifest import captured_labels

__all__ = ["TaskPlan", "teacher_facts"]

#: Training rows on which a teacher is compared with their labels.
_SOME_ROWS = 256


@dataclasses.dataclass(frozen=True)
class TaskPlan:
    """A task of `distill` before its teachers are ready: its rows, and what all its teachers are asked for."""

    task: ResolvedTask
    rows: Rows
    request: tuple[Signal, ...]

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher has a part in training: by its outputs, or as what the student trains in."""
        return bool(self.request) or self.task.distill.trains_in_teacher


def teacher_facts(
    tasks: Sequence[TaskPlan], inputs: Sequence[Inputs], reporter: Reporter, run: Path | None = None
) -> dict[str, Any] | None:
    """Facts of the only teacher; of several the average's, with each one's under `members`. Tells what is doubtful.

    What each evaluation row adds to the teacher's metrics is kept in the folder of `run`.

    Of several tasks, `members` are the tasks' teachers, and the whole is what they come to together: the same metrics
    as the student's, and the sum of sizes.
    """
    found = {each.task.label: _of_task(each, part, reporter, run) for each, part in zip(tasks, inputs, strict=True)}
    if "" in found:
        return found[""]
    members = {name: facts for name, facts in found.items() if facts is not None}
    if not members:
        return None
    whole: dict[str, Any] = {
        "model": ", ".join(
            f"{each.task.label}: {_short_name(each.task.teacher)}" for each in tasks if each.task.teachers
        ),
        "fingerprint": None,
        "members": members,
    }
    measured = {name: facts["metrics"] for name, facts in members.items() if facts.get("metrics")}
    if len(measured) == len(tasks):
        metrics = {each.task.label: each.task.metric for each in tasks}
        whole["metrics"] = joint_metrics(measured, metrics)
        for key in ("parameters", "megabytes"):
            whole[key] = round(sum(facts[key] for facts in members.values()), 2)
    return whole


def _short_name(teacher: TeacherConfig) -> str:
    """What the experiment calls it, which says more than the folder of a finetune run."""
    return average_name(teacher) if teacher.members else model_name(teacher.model or "")


def _of_task(plan: TaskPlan, inputs: Inputs, reporter: Reporter, run: Path | None) -> dict[str, Any] | None:
    task = plan.task
    if not task.teachers:
        return None
    measure = plan.rows.evaluation is not None and plan.has_teacher
    if measure and plan.request and not any(signal.kind == "logits" for signal in plan.request):
        # An encoder whose layers alone are distilled has no head, so it has no quality either.
        measure = all(task.models.has_head(teacher.source, task.kind) for teacher in task.teachers)
    first, fingerprints = task.teachers[0], {teacher.label: teacher.fingerprint for teacher in inputs.teachers}
    if not first.label:
        facts: dict[str, Any] = {"model": first.source.model, "fingerprint": fingerprints.get("")}
        found = evaluate_teacher(task, first.source, plan.rows, reporter) if measure else None
        if found is not None:
            facts |= _measured(found)
            if run is not None:
                keep_scores(run, task.label, "teacher-eval", found)
        return facts | _doubtful(plan, inputs, first, found, reporter)
    members: dict[str, dict[str, Any]] = {
        teacher.label: {
            "model": teacher.source.model,
            "fingerprint": fingerprints.get(teacher.label),
            "weight": teacher.weight,
        }
        for teacher in task.teachers
    }
    facts = {
        "model": average_name(task.teacher),
        "fingerprint": None,
        "average": task.teacher.average,
        "members": members,
    }
    each: Mapping[str, Evaluation] = {}
    if measure:
        averaged, each = evaluate_ensemble(task, plan.rows, reporter)
        facts |= _measured(averaged)
        if run is not None:
            keep_scores(run, task.label, "teacher-eval", averaged)
        for name, found in each.items():
            members[name] |= _measured(found)
    for teacher in task.teachers:
        members[teacher.label] |= _doubtful(plan, inputs, teacher, each.get(teacher.label), reporter)
    return facts


def _doubtful(
    plan: TaskPlan, inputs: Inputs, teacher: ResolvedTeacher, found: Evaluation | None, reporter: Reporter
) -> dict[str, Any]:
    """The cautions about one teacher, which are told: by its evaluation, if it has one, and by its names."""
    task, source, labels = plan.task, teacher.source, plan.rows.labels
    who = whose(task.label, teacher.label)
    cautions: list[Caution] = []
    if found is not None:
        cautions += model_cautions(who, source, found.agreement, found.metrics, labels, task.metric)
    elif plan.request:
        cautions += unnamed_outputs(who, source, labels)
        cautions += _other_scale(plan, who, source, reporter)
    confirmed = found is not None and confirms_order(found.agreement)
    for given in inputs.teachers:
        if given.name == teacher.name and given.store is not None:
            captured = captured_labels(open_storage(given.store, task.store.cache))
            cautions += renamed_outputs(who, captured, labels, confirmed)
    tell(cautions, reporter.say)
    return {"cautions": [caution.plain() for caution in cautions]} if cautions else {}


def _other_scale(plan: TaskPlan, who: str, source: ModelSource, reporter: Reporter) -> list[Caution]:
    """Without evaluation rows: whether numbers and labels that one student learns together are on different scales."""
    task, rows = plan.task, plan.rows
    together = any(part.hard_label_weight > 0 and part.kd_weight > 0 for part in task.distill.parts)
    if task_spec(task.kind).outputs != "numbers" or not together or not rows.num_labelled:
        return []
    labelled = rows.training.slice(0, rows.num_labelled)
    some = RowSet(taken(labelled, subset_indices(rows.num_labelled, _SOME_ROWS)), rows.labels, (), "data.train")
    found = evaluate_teacher(task, source, dataclasses.replace(rows, evaluation=some), reporter)
    cautions = model_cautions(who, source, found.agreement, found.metrics, rows.labels, task.metric)
    return [dataclasses.replace(each, rows="training") for each in cautions if isinstance(each, OtherScale)]


def _measured(found: Evaluation) -> dict[str, Any]:
    return {
        "parameters": found.parameters,
        "megabytes": found.megabytes,
        "metrics": found.metrics,
    }

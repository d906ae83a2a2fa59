"""What a student's summary says about its teachers: each by name, and together as what it is measured against."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raybrew.config import Experiment, TeacherConfig
from raybrew.config.kinds import task_spec
from raybrew.data.cautions import Caution, tell
from raybrew.data.model_cautions import OtherScale
from raybrew.data.rows import RowSet, subset_indices
from raybrew.data.tables import taken
from raybrew.models.loading import ModelSource, has_head
from raybrew.reports.rows import model_name
from raybrew.signals import Signal
from raybrew.storage.open import open_storage
from raybrew.store.manifest import captured_labels
from raybrew.verbs.evaluate import Evaluation, average_name, evaluate_ensemble, evaluate_teacher
from raybrew.verbs.inputs import Inputs
from raybrew.verbs.job import joint_metrics
from raybrew.verbs.model_checks import confirms_order, model_cautions, renamed_outputs, unnamed_outputs, whose
from raybrew.verbs.prepare import Rows
from raybrew.verbs.reporter import Reporter
from raybrew.verbs.scoring import keep_scores

__all__ = ["TaskPlan", "described_teachers"]

#: Training rows on which a teacher is compared with their labels.
_SOME_ROWS = 256


@dataclasses.dataclass(frozen=True)
class TaskPlan:
    """One task of `distill` before its teachers are ready; `view` is the experiment of this task alone."""

    name: str | None
    view: Experiment
    rows: Rows
    sources: Mapping[str | None, ModelSource]
    request: tuple[Signal, ...]

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher has a part in training: by its outputs, or as what the student trains in."""
        return bool(self.request) or self.view.distill.trains_in_teacher


def described_teachers(
    tasks: Sequence[TaskPlan], inputs: Sequence[Inputs], reporter: Reporter, run: Path | None = None
) -> dict[str, Any] | None:
    """Facts of the only teacher; of several the average's, with each one's under `members`. Tells what is doubtful.

    What each evaluation row adds to the teacher's metrics is kept in the folder of `run`.

    Of several tasks, `members` are the tasks' teachers, and the whole is what they come to together: the same metrics
    as the student's, and the sum of sizes.
    """
    found = {task.name or "": _of_task(task, part, reporter, run) for task, part in zip(tasks, inputs, strict=True)}
    if "" in found:
        return found[""]
    members = {name: facts for name, facts in found.items() if facts is not None}
    if not members:
        return None
    whole: dict[str, Any] = {
        "model": ", ".join(f"{task.name}: {_short_name(task.view.teacher)}" for task in tasks if task.sources),
        "fingerprint": None,
        "members": members,
    }
    measured = {name: facts["metrics"] for name, facts in members.items() if facts.get("metrics")}
    if len(measured) == len(tasks):
        metrics = {str(task.name): task.view.task.metric for task in tasks}
        whole["metrics"] = joint_metrics(measured, metrics)
        for key in ("parameters", "megabytes"):
            whole[key] = round(sum(facts[key] for facts in members.values()), 2)
    return whole


def _short_name(teacher: TeacherConfig) -> str:
    """What the experiment calls it, which says more than the folder of a finetune run."""
    return average_name(teacher) if teacher.members else model_name(teacher.model or "")


def _of_task(task: TaskPlan, inputs: Inputs, reporter: Reporter, run: Path | None) -> dict[str, Any] | None:
    if not task.sources:
        return None
    measure = task.rows.evaluation is not None and task.has_teacher
    if measure and task.request and not any(signal.kind == "logits" for signal in task.request):
        # An encoder whose layers alone are distilled has no head, so it has no quality either.
        measure = all(has_head(source, task.view.task.kind) for source in task.sources.values())
    fingerprints = {teacher.name: teacher.fingerprint for teacher in inputs.teachers}
    if None in task.sources:
        source = task.sources[None]
        facts: dict[str, Any] = {"model": source.model, "fingerprint": fingerprints.get(None)}
        found = evaluate_teacher(task.view, source, task.rows, reporter) if measure else None
        if found is not None:
            facts |= _measured(found)
            if run is not None:
                keep_scores(run, task.name, "teacher-eval", found)
        return facts | _doubtful(task, inputs, None, found, reporter)
    members: dict[str, dict[str, Any]] = {
        str(name): {
            "model": source.model,
            "fingerprint": fingerprints.get(name),
            "weight": task.view.teacher.members[str(name)].weight,
        }
        for name, source in task.sources.items()
    }
    facts = {
        "model": average_name(task.view.teacher),
        "fingerprint": None,
        "average": task.view.teacher.average,
        "members": members,
    }
    each: Mapping[str, Evaluation] = {}
    if measure:
        sources = {str(name): source for name, source in task.sources.items()}
        averaged, each = evaluate_ensemble(task.view, sources, task.rows, reporter)
        facts |= _measured(averaged)
        if run is not None:
            keep_scores(run, task.name, "teacher-eval", averaged)
        for name, found in each.items():
            members[name] |= _measured(found)
    for name, known in members.items():
        known |= _doubtful(task, inputs, name, each.get(name), reporter)
    return facts


def _doubtful(
    task: TaskPlan, inputs: Inputs, name: str | None, found: Evaluation | None, reporter: Reporter
) -> dict[str, Any]:
    """The cautions about one teacher, which are told: by its evaluation, if it has one, and by its names."""
    who, source, labels = whose(task.name, name), task.sources[name], task.rows.labels
    cautions: list[Caution] = []
    if found is not None:
        cautions += model_cautions(who, source, found.agreement, found.metrics, labels, task.view.task.metric)
    elif task.request:
        cautions += unnamed_outputs(who, source, labels)
        cautions += _other_scale(task, who, source, reporter)
    confirmed = found is not None and confirms_order(found.agreement)
    for teacher in inputs.teachers:
        if teacher.name == name and teacher.store is not None:
            captured = captured_labels(open_storage(teacher.store, task.view.store.cache))
            cautions += renamed_outputs(who, captured, labels, confirmed)
    tell(cautions, reporter.say)
    return {"cautions": [caution.plain() for caution in cautions]} if cautions else {}


def _other_scale(task: TaskPlan, who: str, source: ModelSource, reporter: Reporter) -> list[Caution]:
    """Without evaluation rows: whether numbers and labels that one student learns together are on different scales."""
    view, rows = task.view, task.rows
    together = any(part.hard_label_weight > 0 and part.kd_weight > 0 for part in view.distill.parts)
    if task_spec(view.task.kind).outputs != "numbers" or not together or not rows.num_labelled:
        return []
    labelled = rows.training.slice(0, rows.num_labelled)
    some = RowSet(taken(labelled, subset_indices(rows.num_labelled, _SOME_ROWS)), rows.labels, (), "data.train")
    found = evaluate_teacher(view, source, dataclasses.replace(rows, evaluation=some), reporter)
    cautions = model_cautions(who, source, found.agreement, found.metrics, rows.labels, view.task.metric)
    return [dataclasses.replace(each, rows="training") for each in cautions if isinstance(each, OtherScale)]


def _measured(found: Evaluation) -> dict[str, Any]:
    return {
        "parameters": found.parameters,
        "megabytes": found.megabytes,
        "metrics": found.metrics,
    }

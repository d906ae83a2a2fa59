"""distill: train a student on the teacher's outputs, from the store or live."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raybrew.config import DistillConfig, Experiment, MultiTaskConfig
from raybrew.config.kinds import kd_losses_for, task_spec
from raybrew.config.stages import stage_ends, stage_names
from raybrew.config.views import task_views
from raybrew.distillers.ensemble import request_of_member
from raybrew.distillers.objective import Objective
from raybrew.errors import ConfigError
from raybrew.models.devices import place_of_training
from raybrew.models.loading import ModelSource
from raybrew.records.summary import Losses, TeacherFacts
from raybrew.reports.html import write_report
from raybrew.signals import Signal, sorted_signals
from raybrew.training.context import OnEvaluation
from raybrew.training.run_folder import RunFolder
from raybrew.verbs.capture import likely_objective
from raybrew.verbs.choose import student_teacher, teacher_sources, weight_of
from raybrew.verbs.described import TaskPlan, described_teachers
from raybrew.verbs.functions import check_functions
from raybrew.verbs.inputs import Inputs, TeacherInput, fingerprints_of
from raybrew.verbs.parts import num_steps_of
from raybrew.verbs.prepare import (
    Rows,
    check_labels,
    check_teacher_labels,
    data_key,
    encode,
    read_rows,
    same_tokens,
)
from raybrew.verbs.reporter import QuietReporter, Reporter
from raybrew.verbs.result import RunResult
from raybrew.verbs.scoring import score_run
from raybrew.verbs.teachers import ready_teachers
from raybrew.verbs.training import train_run
from raybrew.verbs.units import evaluation_units
from raybrew.verbs.vocabulary import student_tokens

__all__ = ["distill", "tell_projections"]


def distill(
    experiment: Experiment,
    *,
    run_id: str | None = None,
    teacher_run: str | None = None,
    report: bool = True,
    reporter: Reporter | None = None,
    command: str | None = None,
    on_evaluation: OnEvaluation | None = None,
    score_test: bool = True,
    needs_student: bool = True,
    alone: bool = True,
) -> RunResult:
    """Train the student of `experiment` and keep the best by `task.metric` as a Hugging Face folder.

    Where no loss of the last stage reads the student's logits, nothing trains the head that the metric judges; then the
    checkpoint with the lowest evaluation loss is kept.
    `teacher.source: auto` captures what the store lacks first; `store` wants it there; `live` runs the teacher in every
    step. The same call continues an interrupted run and returns a finished one at once; one whose student a sweep has
    removed is trained again, unless `needs_student` is false. `on_evaluation` hears of each evaluation and may end the
    training of one worker; `command` is what the run notes as its command. With `score_test` the best student and its
    teacher are scored on `data.test` in the end. `alone` is false for trials of a sweep, whose time per example is
    measured while others run. Raises ConfigError, DataError, ModelError, StoreError before training, and Interrupted
    when asked to stop (the state is saved).
    """
    reporter = reporter or QuietReporter()
    if experiment.student.model is None and experiment.student.shape is None:
        raise ConfigError("student: required by `raybrew distill`; give student.model or student.shape")
    run = RunFolder.of(experiment, "distill", run_id)
    check_functions(experiment, reporter.say)
    shape = student_teacher(experiment, teacher_run)
    tasks = [_read(name, view, shape, teacher_run, reporter) for name, view in task_views(experiment).items()]
    tokens = student_tokens(experiment, shape, [(task.view, task.rows.training) for task in tasks], reporter.say)
    with run.locked():
        finished = run.summary()
        done = finished is not None and (run.has_student or not needs_student)
        if not done:
            place_of_training(experiment.train)  # before the teacher's pass, which may take hours
        inputs = [_inputs(experiment, task, tokens, reporter) for task in tasks]
        if finished is not None:
            run.prepare(experiment, "distill", fingerprints_of(inputs), None)
            if done:
                if score_test:
                    score_run(run.path, reporter, experiment)
                return RunResult(run.path, (run.summary() or finished).plain(), already_done=True)
            reporter.say(f"{run.lost_student}; it is trained again")
            run.mark_pruned(None)
        teacher = described_teachers(tasks, inputs, reporter, run.path)
        facts: dict[str, Any] = {
            "role": "student" if any(task.has_teacher for task in tasks) else "control",
            "teacher": None if teacher is None else TeacherFacts.read(teacher),
            "distill": Losses.read(_described_losses(experiment, inputs)),
            "cautions": [caution.plain() for task in tasks for caution in task.rows.cautions],
        }
        if len(inputs) > 1:
            facts["tasks"] = {str(part.task): _described_task(part) for part in inputs}
        result = train_run(
            experiment,
            "distill",
            run,
            inputs,
            shape,
            experiment.train,
            reporter,
            facts,
            "train",
            command,
            on_evaluation,
            Path(tokens.model) if experiment.student.vocabulary is not None else None,
            score_test=score_test,
            alone=alone,
        )
        if report:
            write_report([run.path], run.path / "report.html", title=f"{experiment.name}: {run.run_id}")
        return result


def _read(
    name: str | None, view: Experiment, shape: ModelSource | None, teacher_run: str | None, reporter: Reporter
) -> TaskPlan:
    """What one task has: rows, teachers, and what is asked of them."""
    sources = teacher_sources(view, teacher_run)
    rows = read_rows(view, next(iter(sources.values()), None), reporter.say, key=data_key(name))
    request: tuple[Signal, ...] = ()
    if sources:
        objective = likely_objective(view, sources, rows.labels.names, shape)
        request = sorted_signals(objective.teacher_union)
        tell_projections(objective, reporter)
    for member, source in sources.items():
        if view.distill.trains_in_teacher or request_of_member(request, member, weight_of(view, member)):
            check_teacher_labels(source, rows.labels)
    return TaskPlan(name, view, rows, sources, request)


def tell_projections(objective: Objective, reporter: Reporter) -> None:
    """That what is compared in the teacher's width is not what the student is left with."""
    names = [name for name, module in objective.projections.items() if any(True for _ in module.parameters())]
    if names:
        reporter.say(
            f"distill: {', '.join(names)}: compared through projections to the teacher's width, which the finished "
            "student leaves behind: its own vectors are not the teacher's; a student of that width needs none"
        )


def _inputs(experiment: Experiment, task: TaskPlan, tokens: ModelSource, reporter: Reporter) -> Inputs:
    view = task.view
    teachers, rows, others = ready_teachers(view, task.sources, task.request, task.rows, tokens, reporter, task.name)
    training = encode(view, rows.training, tokens, *others)
    evaluation, fitted = evaluation_units(view, rows, tokens, others)
    if any(part.hard_label_weight > 0 for part in view.distill.parts):
        check_labels(view, rows, training, reporter.say)
    several = experiment.task if isinstance(experiment.task, MultiTaskConfig) else None
    if task_spec(view.task.kind).places:
        # Start and end are places among tokens; those of another tokenizer are found by their characters.
        teachers = tuple(
            teacher if same_tokens(teacher.source, tokens) else _aligned(view, rows, teacher, tokens, others)
            for teacher in teachers
        )
    return Inputs(
        rows.labels,
        training,
        evaluation,
        rows.num_labelled,
        rows.num_unlabeled,
        teachers,
        task.name,
        several.tasks[str(task.name)].weight if several is not None else 1.0,
        rows.num_augmented,
        fitted,
        tuple(task.sources.values()),
    )


def _aligned(
    view: Experiment, rows: Rows, teacher: TeacherInput, tokens: ModelSource, others: Sequence[ModelSource]
) -> TeacherInput:
    """`teacher` with its own tokens of all rows."""
    aligned = encode(view, rows.training, teacher.source, tokens, *others)
    teacher = dataclasses.replace(teacher, aligned=str(aligned.folder))
    if rows.evaluation is None:
        return teacher
    evaluation = encode(view, rows.evaluation.table, teacher.source, tokens, *others)
    return dataclasses.replace(teacher, aligned_evaluation=str(evaluation.folder))


def _described_losses(experiment: Experiment, inputs: Sequence[Inputs]) -> dict[str, Any]:
    """What the summary says about what the student learns from."""
    distill = experiment.distill
    sources = {"live" if teacher.store is None else "store" for part in inputs for teacher in part.teachers}
    facts = {"source": " and ".join(sorted(sources)) or "labels"}
    if distill.method is not None:
        facts = {"method": distill.method} | facts
    if not distill.stages:
        return facts | _losses(experiment, distill)
    ends = stage_ends(distill.stages, num_steps_of(experiment, inputs, experiment.train))
    spans = zip(stage_names(distill), distill.parts, (0, *ends[:-1]), ends, strict=True)
    return facts | {
        f"stage {name}": f"{end - start} steps: {_in_words(experiment, part)}" for name, part, start, end in spans
    }


def _in_words(experiment: Experiment, losses: DistillConfig) -> str:
    """What is learnt in a stage, in one line."""
    facts = _losses(experiment, losses)
    words = list(facts["matches"])
    if losses.hard_label_weight:
        words.insert(0, f"labels x {losses.hard_label_weight:g}")
    if losses.kd_weight:
        words.insert(0, f"{facts['kd_loss']} at temperature {losses.temperature:g} x {losses.kd_weight:g}")
    text = " + ".join(words)
    return text if losses.theseus is None else f"{text}, inside the teacher ({facts['theseus']})"


def _losses(experiment: Experiment, losses: DistillConfig) -> dict[str, Any]:
    return {
        "temperature": losses.temperature,
        "scale_by_temperature_squared": losses.scale_by_temperature_squared,
        "kd_loss": _kd_losses(experiment, losses),
        "kd_weight": losses.kd_weight,
        "hard_label_weight": losses.hard_label_weight,
        "matches": [
            f"{match.loss} {match.layers} x {match.weight:g}" + (f" of {match.teacher}" if match.teacher else "")
            for match in losses.matches
        ]
        + ([f"emd x {losses.emd.hidden:g} hidden, {losses.emd.attention:g} attention"] if losses.emd else []),
        **(
            {"theseus": f"layers replaced with probability {losses.theseus.start:g} to 1"}
            if losses.theseus is not None
            else {}
        ),
    }


def _kd_losses(experiment: Experiment, losses: DistillConfig) -> str:
    """Names of the KD losses; of several tasks each may have another one."""
    kind, task = losses.kd_loss.kind, experiment.task
    if kind != "auto":
        return kind
    parts = [part.task.kind for part in task.tasks.values()] if isinstance(task, MultiTaskConfig) else [task.kind]
    return ", ".join(dict.fromkeys(kd_losses_for(part)[0] for part in parts))


def _described_task(part: Inputs) -> dict[str, Any]:
    return {
        "labels": list(part.labels.names),
        "weight": part.weight,
        "rows": {
            "train": part.num_labelled,
            "unlabeled": part.num_unlabeled,
            **({"augmented": part.num_augmented} if part.num_augmented else {}),
            "eval": part.evaluation.num_rows if part.evaluation is not None else 0,
        },
    }

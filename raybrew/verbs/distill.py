"""distill: train a student on the teacher's outputs, from the store or live."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raybrew.config import DistillConfig, Experiment
from raybrew.config.kinds import kd_losses_for, task_spec
from raybrew.config.stages import stage_ends, stage_names
from raybrew.distillers.objective import Objective
from raybrew.errors import ConfigError
from raybrew.models.devices import place_of_training
from raybrew.models.loading import ModelSource
from raybrew.pipeline.inputs import Inputs, TeacherInput
from raybrew.pipeline.objective import check_functions, likely_objective
from raybrew.pipeline.reporter import QuietReporter, Reporter
from raybrew.pipeline.resolve import Resolved, ResolvedTask, resolve
from raybrew.pipeline.rows import Rows, check_labels, check_teacher_labels, read_rows
from raybrew.pipeline.teacher_facts import TaskPlan, teacher_facts
from raybrew.pipeline.teachers import ready_teachers
from raybrew.pipeline.units import encode, evaluation_units, same_tokens
from raybrew.pipeline.vocabulary import student_tokens
from raybrew.records.summary import Losses, TeacherFacts
from raybrew.reports.html import write_report
from raybrew.runs.program import RunSpec, num_steps_of
from raybrew.runs.result import RunResult
from raybrew.runs.train_run import finished_run, train_run
from raybrew.signals import Signal, sorted_signals
from raybrew.training.context import OnEvaluation
from raybrew.training.run_folder import RunFolder

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
    resolved = resolve(experiment, teacher_run=teacher_run)
    check_functions(resolved, reporter.say)
    shape = resolved.shape
    plans = [_read(task, shape, reporter) for task in resolved.tasks]
    tokens = student_tokens(resolved, shape, [plan.rows.training for plan in plans], reporter.say)
    with run.locked():
        if run.summary() is None or (needs_student and not run.has_student):
            place_of_training(experiment.train)  # before the teacher's pass, which may take hours
        inputs = tuple(_inputs(plan, tokens, reporter) for plan in plans)
        trimmed = Path(tokens.model) if experiment.student.vocabulary is not None else None
        spec = RunSpec(resolved, "distill", experiment.train, run, inputs, shape, trimmed, alone)
        finished = finished_run(spec, reporter, needs_student=needs_student, score_test=score_test)
        if finished is not None:
            return finished
        facts = _facts(resolved, plans, inputs, reporter, run)
        result = train_run(spec, reporter, facts, command=command, on_evaluation=on_evaluation, score_test=score_test)
        if report:
            write_report([run.path], run.path / "report.html", title=f"{experiment.name}: {run.run_id}")
        return result


def _facts(
    resolved: Resolved, plans: Sequence[TaskPlan], inputs: Sequence[Inputs], reporter: Reporter, run: RunFolder
) -> dict[str, Any]:
    """What the summary says of teachers, losses and rows."""
    teacher = teacher_facts(plans, inputs, reporter, run.path)
    facts: dict[str, Any] = {
        "role": "student" if any(plan.has_teacher for plan in plans) else "control",
        "teacher": None if teacher is None else TeacherFacts.read(teacher),
        "distill": Losses.read(_losses_in_words(resolved, inputs)),
        "cautions": [caution.plain() for plan in plans for caution in plan.rows.cautions],
    }
    if len(inputs) > 1:
        facts["tasks"] = {part.task: _rows_of_task(part) for part in inputs}
    return facts


def _read(task: ResolvedTask, shape: ModelSource | None, reporter: Reporter) -> TaskPlan:
    """The rows of a task, and what is asked of its teachers."""
    rows = read_rows(task, task.first_source, reporter.say)
    request: tuple[Signal, ...] = ()
    if task.teachers:
        objective = likely_objective(task, rows.labels.names, shape)
        request = sorted_signals(objective.teacher_union)
        tell_projections(objective, reporter)
    for teacher in task.teachers:
        if task.distill.trains_in_teacher or teacher.asked(request):
            check_teacher_labels(teacher.source, rows.labels)
    return TaskPlan(task, rows, request)


def tell_projections(objective: Objective, reporter: Reporter) -> None:
    """That what is compared in the teacher's width is not what the student is left with."""
    names = [name for name, module in objective.projections.items() if any(True for _ in module.parameters())]
    if names:
        reporter.say(
            f"distill: {', '.join(names)}: compared through projections to the teacher's width, which the finished "
            "student leaves behind: its own vectors are not the teacher's; a student of that width needs none"
        )


def _inputs(plan: TaskPlan, tokens: ModelSource, reporter: Reporter) -> Inputs:
    task = plan.task
    teachers, rows, others = ready_teachers(task, plan.request, plan.rows, tokens, reporter)
    training = encode(task, rows.training, tokens, *others)
    evaluation, fitted = evaluation_units(task, rows, tokens, others)
    if any(part.hard_label_weight > 0 for part in task.distill.parts):
        check_labels(task, rows, training, reporter.say)
    if task_spec(task.kind).places:
        # Start and end are places among tokens; those of another tokenizer are found by their characters.
        teachers = tuple(
            teacher
            if same_tokens(task.models, teacher.source, tokens)
            else _aligned(task, rows, teacher, tokens, others)
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
        task.label,
        task.weight,
        rows.num_augmented,
        fitted,
        tuple(task.sources.values()),
    )


def _aligned(
    task: ResolvedTask, rows: Rows, teacher: TeacherInput, tokens: ModelSource, others: Sequence[ModelSource]
) -> TeacherInput:
    """`teacher` with its own tokens of all rows."""
    aligned = encode(task, rows.training, teacher.source, tokens, *others)
    teacher = dataclasses.replace(teacher, aligned=str(aligned.folder))
    if rows.evaluation is None:
        return teacher
    evaluation = encode(task, rows.evaluation.table, teacher.source, tokens, *others)
    return dataclasses.replace(teacher, aligned_evaluation=str(evaluation.folder))


def _losses_in_words(resolved: Resolved, inputs: Sequence[Inputs]) -> dict[str, Any]:
    """What the summary says about what the student learns from."""
    distill, kinds = resolved.experiment.distill, resolved.kinds
    sources = {"live" if teacher.store is None else "store" for part in inputs for teacher in part.teachers}
    facts = {"source": " and ".join(sorted(sources)) or "labels"}
    if distill.method is not None:
        facts = {"method": distill.method} | facts
    if not distill.stages:
        return facts | _losses(kinds, distill)
    ends = stage_ends(distill.stages, num_steps_of(resolved.tau, inputs, resolved.experiment.train))
    spans = zip(stage_names(distill), distill.parts, (0, *ends[:-1]), ends, strict=True)
    return facts | {
        f"stage {name}": f"{end - start} steps: {_in_words(kinds, part)}" for name, part, start, end in spans
    }


def _in_words(kinds: Sequence[str], losses: DistillConfig) -> str:
    """What is learnt in a stage, in one line."""
    facts = _losses(kinds, losses)
    words = list(facts["matches"])
    if losses.hard_label_weight:
        words.insert(0, f"labels x {losses.hard_label_weight:g}")
    if losses.kd_weight:
        words.insert(0, f"{facts['kd_loss']} at temperature {losses.temperature:g} x {losses.kd_weight:g}")
    text = " + ".join(words)
    return text if losses.theseus is None else f"{text}, inside the teacher ({facts['theseus']})"


def _losses(kinds: Sequence[str], losses: DistillConfig) -> dict[str, Any]:
    return {
        "temperature": losses.temperature,
        "scale_by_temperature_squared": losses.scale_by_temperature_squared,
        "kd_loss": _kd_losses(kinds, losses),
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


def _kd_losses(kinds: Sequence[str], losses: DistillConfig) -> str:
    """Names of the KD losses; of several tasks each may have another one."""
    kind = losses.kd_loss.kind
    return kind if kind != "auto" else ", ".join(dict.fromkeys(kd_losses_for(each)[0] for each in kinds))


def _rows_of_task(part: Inputs) -> dict[str, Any]:
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

"""Finished models scored on `data.test`, the rows that choose nothing.

A run is scored once, after its best checkpoint is known; a sweep's finalists and controls after its best configuration
is. What each row adds to the metrics stays in `<run>/scores/`, so that reports can compare models row by row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from raybrew.config.loading import load_experiment
from raybrew.errors import RunError
from raybrew.exports.card import model_card
from raybrew.exports.facts import CardFacts, summary_of_task
from raybrew.exports.folder import write_card
from raybrew.models.loading import ModelSource
from raybrew.pipeline.evaluation import (
    Evaluation,
    evaluate_ensemble,
    evaluate_rows,
    evaluate_teacher,
    evaluation_rows,
    joint_metrics,
    keep_scores,
    score_file,
)
from raybrew.pipeline.reporter import Reporter
from raybrew.pipeline.resolve import Resolved, ResolvedTask, resolve
from raybrew.pipeline.rows import Rows
from raybrew.records.runs import load_run
from raybrew.records.summary import HeldOut, RunSummary, write_summary
from raybrew.tracking.trackers import add_test
from raybrew.training.run_folder import RunFolder

__all__ = ["mirror_test", "score_run", "scored", "write_cards"]


def score_run(folder: Path, reporter: Reporter, resolved: Resolved | None = None) -> HeldOut | None:
    """Score the finished run in `folder` on `data.test` and note it in its summary, whose `test` is returned.

    None without `data.test`. What was scored on the same rows before is not scored again. `resolved` is the run's own
    configuration by default. RunError if the run has not finished, or if its student is gone.
    """
    run = RunFolder(folder, folder.name)
    summary = run.summary()
    if summary is None:
        raise RunError(f"{folder}: the run has not finished, so there is no student to score on data.test")
    resolved = resolved or resolve(load_experiment(folder / "config.yaml", check_files=False))
    found = scored(resolved, summary, folder, reporter)
    if found is None:
        return None
    if found != summary:
        write_cards(resolved, run, found, load_run(folder).command or "")
        write_summary(folder, found)
        mirror_test(resolved, run, found)
    return found.test


def scored(resolved: Resolved, summary: RunSummary, folder: Path, reporter: Reporter) -> RunSummary | None:
    """`summary` with `test` and what the teacher reaches on the same rows; None if there is nothing to score.

    `summary` is what is known of the run so far; its student must be in `folder`.
    """
    tasks = [task for task in resolved.tasks if task.data.test is not None]
    if not tasks:
        return None
    if summary.verb == "distill" and not resolved.experiment.distill.trains_head:
        reporter.say("data.test: not scored, as no loss trains the head: metrics would be those of an untrained one")
        return None
    students = {task.name: ModelSource(str(folder / "student" / task.label)) for task in tasks}
    for source in students.values():
        if not Path(source.model).is_dir():
            raise RunError(
                f"{source.model} does not exist, so the student cannot be scored on data.test; train it again"
            )
    rows = {task.name: evaluation_rows(task, students[task.name], "test") for task in tasks}
    key = " ".join(encoded.key for _, encoded in rows.values())
    known = summary.test.key if summary.test is not None else None
    if known == key and all(score_file(folder, task.label, "test").is_file() for task in tasks):
        return summary
    found = {}
    for task in tasks:
        read, encoded = rows[task.name]
        source, number = students[task.name], len(read.training)
        found[task.name] = evaluate_rows(task, source, encoded, number, read.labels, reporter, "data.test")
    for task in tasks:
        keep_scores(folder, task.label, "test", found[task.name])
    metrics, metric = _joint(tasks, found), resolved.experiment.task.metric
    test = HeldOut(
        metric=metric,
        value=metrics[metric],
        metrics=metrics,
        rows=sum(len(each.training) for each, _ in rows.values()),
        source=", ".join(dict.fromkeys(str(task.data.test) for task in tasks)),
        key=key,
    )
    tested = _teacher(tasks, summary, {name: each for name, (each, _) in rows.items()}, folder, reporter)
    teacher = summary.teacher
    if teacher is not None and tested is not None:
        teacher = dataclasses.replace(teacher, test=tested)
    return dataclasses.replace(summary, test=test, teacher=teacher)


def mirror_test(resolved: Resolved, run: RunFolder, summary: RunSummary) -> None:
    """Add the values on data.test to the summaries of the run's mirrors, where it has any."""
    experiment = resolved.experiment
    if summary.test is not None:
        add_test(
            experiment.tracking,
            experiment=experiment.name,
            job_type=str(summary.verb),
            folder=run.path,
            test=summary.test.plain(),
        )


def write_cards(resolved: Resolved, run: RunFolder, summary: RunSummary, command: str) -> None:
    """The model card of each task's student, telling what `summary` tells."""
    for task in resolved.tasks:
        facts = CardFacts(summary_of_task(summary, task.label), task.kind, command=command)
        write_card(run.student / task.label, model_card(facts))


def _joint(tasks: Sequence[ResolvedTask], found: Mapping[str, Evaluation]) -> dict[str, float]:
    return joint_metrics(
        {task.label: found[task.name].metrics for task in tasks}, {task.label: task.metric for task in tasks}
    )


def _teacher(
    tasks: Sequence[ResolvedTask],
    summary: RunSummary,
    rows: Mapping[str, Rows],
    folder: Path,
    reporter: Reporter,
) -> HeldOut | None:
    """What the teacher of a student reaches on the test rows; None where a teacher has no trained head."""
    if summary.role != "student" or summary.teacher is None:
        return None
    found: dict[str, Evaluation] = {}
    for task in tasks:
        teachers = task.teachers
        if not teachers or not all(task.models.has_head(teacher.source, task.kind) for teacher in teachers):
            return None
        if teachers[0].label:
            found[task.name], _ = evaluate_ensemble(task, rows[task.name], reporter)
        else:
            found[task.name] = evaluate_teacher(task, teachers[0].source, rows[task.name], reporter)
        keep_scores(folder, task.label, "teacher-test", found[task.name])
    return HeldOut(metrics=_joint(tasks, found), rows=sum(each.rows for each in found.values()))

"""Finished models scored on `data.test`, the rows that choose nothing.

A run is scored once, after its best checkpoint is known; a sweep's finalists and controls after its best configuration
is. What each row adds to the metrics stays in `<run>/scores/`, so that reports can compare models row by row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raybrew.config.loading import load_experiment
from raybrew.errors import RunError
from raybrew.exports.card import model_card, summary_of_task
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
from raybrew.tracking.wandb import add_test
from raybrew.training.run_folder import RunFolder

__all__ = ["mirror_test", "score_run", "scored", "write_cards"]


def score_run(folder: Path, reporter: Reporter, resolved: Resolved | None = None) -> dict[str, Any] | None:
    """Score the finished run in `folder` on `data.test` and note it in its summary; returns `summary["test"]`.

    None without `data.test`. What was scored on the same rows before is not scored again. `resolved` is the run's own
    configuration by default. RunError if the run has not finished, or if its student is gone.
    """
    run = RunFolder(folder, folder.name)
    summary = run.summary()
    if summary is None:
        raise RunError(f"{folder}: the run has not finished, so there is no student to score on data.test")
    resolved = resolved or resolve(load_experiment(folder / "config.yaml", check_files=False))
    found = scored(resolved, summary, folder, reporter)
    if not found:
        return None
    if any(summary.get(name) != value for name, value in found.items()):
        whole = {**summary, **found}
        write_cards(resolved, run, whole, load_run(folder).command or "")
        run.finish(whole)
        mirror_test(resolved, run, whole)
    test: dict[str, Any] = found["test"]
    return test


def scored(resolved: Resolved, summary: Mapping[str, Any], folder: Path, reporter: Reporter) -> dict[str, Any]:
    """`test` for a run's summary and, with what the teacher reaches on the same rows, `teacher`.

    Empty without `data.test`. `summary` is what is known of the run so far; its student must be in `folder`.
    """
    tasks = [task for task in resolved.tasks if task.data.test is not None]
    if not tasks:
        return {}
    if summary["verb"] == "distill" and not resolved.experiment.distill.trains_head:
        reporter.say("data.test: not scored, as no loss trains the head: metrics would be those of an untrained one")
        return {}
    students = {task.name: ModelSource(str(folder / "student" / task.label)) for task in tasks}
    for source in students.values():
        if not Path(source.model).is_dir():
            raise RunError(
                f"{source.model} does not exist, so the student cannot be scored on data.test; train it again"
            )
    rows = {task.name: evaluation_rows(task, students[task.name], "test") for task in tasks}
    key = " ".join(encoded.key for _, encoded in rows.values())
    known = summary.get("test") or {}
    if known.get("key") == key and all(score_file(folder, task.label, "test").is_file() for task in tasks):
        return {"test": known}
    found = {}
    for task in tasks:
        read, encoded = rows[task.name]
        source, number = students[task.name], len(read.training)
        found[task.name] = evaluate_rows(task, source, encoded, number, read.labels, reporter, "data.test")
    for task in tasks:
        keep_scores(folder, task.label, "test", found[task.name])
    metrics, metric = _joint(tasks, found), resolved.experiment.task.metric
    test = {
        "metric": metric,
        "value": metrics[metric],
        "metrics": metrics,
        "rows": sum(len(each.training) for each, _ in rows.values()),
        "source": ", ".join(dict.fromkeys(str(task.data.test) for task in tasks)),
        "key": key,
    }
    teacher = _teacher(tasks, summary, {name: each for name, (each, _) in rows.items()}, folder, reporter)
    return {"test": test} | ({} if teacher is None else {"teacher": {**summary["teacher"], "test": teacher}})


def mirror_test(resolved: Resolved, run: RunFolder, summary: Mapping[str, Any]) -> None:
    """Add the values on data.test to the summary of the run's W&B run, where it has one."""
    experiment = resolved.experiment
    config, test = experiment.tracking.wandb, summary.get("test")
    if config is not None and test:
        add_test(config, experiment=experiment.name, job_type=str(summary.get("verb")), folder=run.path, test=test)


def write_cards(resolved: Resolved, run: RunFolder, summary: Mapping[str, Any], command: str) -> None:
    """The model card of each task's student, telling what `summary` tells."""
    for task in resolved.tasks:
        known = {"command": command, "task": task.kind}
        write_card(run.student / task.label, model_card(summary_of_task(summary, task.label) | known))


def _joint(tasks: Sequence[ResolvedTask], found: Mapping[str, Evaluation]) -> dict[str, float]:
    return joint_metrics(
        {task.label: found[task.name].metrics for task in tasks}, {task.label: task.metric for task in tasks}
    )


def _teacher(
    tasks: Sequence[ResolvedTask],
    summary: Mapping[str, Any],
    rows: Mapping[str, Rows],
    folder: Path,
    reporter: Reporter,
) -> dict[str, Any] | None:
    """What the teacher of a student reaches on the test rows; None where a teacher has no trained head."""
    if summary.get("role") != "student" or not summary.get("teacher"):
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
    return {"metrics": _joint(tasks, found), "rows": sum(each.rows for each in found.values())}

"""Finished models scored on `data.test`, the rows that choose nothing.

A run is scored once, after its best checkpoint is known; a sweep's finalists and controls after its best configuration
is. What each row adds to the metrics stays in `<run>/scores/`, so that reports can compare models row by row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from raybrew.config import Experiment
from raybrew.config.loading import load_experiment
from raybrew.config.views import task_views
from raybrew.data.encoded import EncodedRows
from raybrew.errors import RunError
from raybrew.exports.card import model_card
from raybrew.exports.facts import CardFacts, summary_of_task
from raybrew.exports.folder import write_card
from raybrew.models.loading import ModelSource, has_head
from raybrew.records.runs import load_run
from raybrew.records.summary import HeldOut, RunSummary, write_summary
from raybrew.tasks.scores import save_scores
from raybrew.tracking.trackers import add_test
from raybrew.training.run_folder import RunFolder
from raybrew.verbs.choose import teacher_sources
from raybrew.verbs.evaluate import Evaluation, evaluate_ensemble, evaluate_rows, evaluate_teacher, evaluation_rows
from raybrew.verbs.job import joint_metrics
from raybrew.verbs.prepare import Rows
from raybrew.verbs.reporter import Reporter

__all__ = ["keep_scores", "mirror_test", "score_run", "scored", "write_cards"]


def score_run(folder: Path, reporter: Reporter, experiment: Experiment | None = None) -> HeldOut | None:
    """Score the finished run in `folder` on `data.test` and note it in its summary, whose `test` is returned.

    None without `data.test`. What was scored on the same rows before is not scored again. `experiment` is the run's
    own configuration by default. RunError if the run has not finished, or if its student is gone.
    """
    run = RunFolder(folder, folder.name)
    summary = run.summary()
    if summary is None:
        raise RunError(f"{folder}: the run has not finished, so there is no student to score on data.test")
    experiment = experiment or load_experiment(folder / "config.yaml", check_files=False)
    found = scored(experiment, summary, folder, reporter)
    if found is None:
        return None
    if found != summary:
        write_cards(experiment, run, found, load_run(folder).command or "")
        write_summary(folder, found)
        mirror_test(experiment, run, found)
    return found.test


def scored(experiment: Experiment, summary: RunSummary, folder: Path, reporter: Reporter) -> RunSummary | None:
    """`summary` with `test` and what the teacher reaches on the same rows; None if there is nothing to score.

    `summary` is what is known of the run so far; its student must be in `folder`.
    """
    views = {name: view for name, view in task_views(experiment).items() if view.data.test is not None}
    if not views:
        return None
    if summary.verb == "distill" and not experiment.distill.trains_head:
        reporter.say("data.test: not scored, as no loss trains the head: metrics would be those of an untrained one")
        return None
    students = {name: ModelSource(str(folder / "student" / (name or ""))) for name in views}
    for source in students.values():
        if not Path(source.model).is_dir():
            raise RunError(
                f"{source.model} does not exist, so the student cannot be scored on data.test; train it again"
            )
    rows: dict[str | None, tuple[Rows, EncodedRows]] = {
        name: evaluation_rows(view, students[name], "test") for name, view in views.items()
    }
    key = " ".join(encoded.key for _, encoded in rows.values())
    known = summary.test.key if summary.test is not None else None
    if known == key and all(_score_file(folder, name, "test").is_file() for name in views):
        return summary
    found = {
        name: evaluate_rows(
            view,
            students[name],
            rows[name][1],
            len(rows[name][0].training),
            rows[name][0].labels,
            reporter,
            "data.test",
        )
        for name, view in views.items()
    }
    for name, each in found.items():
        keep_scores(folder, name, "test", each)
    metrics, metric = _joint(views, found), experiment.task.metric
    test = HeldOut(
        metric=metric,
        value=metrics[metric],
        metrics=metrics,
        rows=sum(len(each.training) for each, _ in rows.values()),
        source=", ".join(dict.fromkeys(str(view.data.test) for view in views.values())),
        key=key,
    )
    tested = _teacher(views, summary, {name: each for name, (each, _) in rows.items()}, folder, reporter)
    teacher = summary.teacher
    if teacher is not None and tested is not None:
        teacher = dataclasses.replace(teacher, test=tested)
    return dataclasses.replace(summary, test=test, teacher=teacher)


def mirror_test(experiment: Experiment, run: RunFolder, summary: RunSummary) -> None:
    """Add the values on data.test to the summaries of the run's mirrors, where it has any."""
    if summary.test is not None:
        add_test(
            experiment.tracking,
            experiment=experiment.name,
            job_type=str(summary.verb),
            folder=run.path,
            test=summary.test.plain(),
        )


def keep_scores(folder: Path, task: str | None, name: str, found: Evaluation) -> None:
    """Keep what each row adds to the metrics with a run: `name` is `eval`, `test`, `teacher-eval` or `teacher-test`."""
    if found.scores is not None:
        save_scores(_score_file(folder, task, name), found.scores)


def write_cards(experiment: Experiment, run: RunFolder, summary: RunSummary, command: str) -> None:
    """The model card of each task's student, telling what `summary` tells."""
    for name, view in task_views(experiment).items():
        facts = CardFacts(summary_of_task(summary, name), view.task.kind, command=command)
        write_card(run.student / (name or ""), model_card(facts))


def _score_file(folder: Path, task: str | None, name: str) -> Path:
    return folder / "scores" / (task or "") / f"{name}.npz"


def _joint(views: Mapping[str | None, Experiment], found: Mapping[str | None, Evaluation]) -> dict[str, float]:
    return joint_metrics(
        {name or "": each.metrics for name, each in found.items()},
        {name or "": view.task.metric for name, view in views.items()},
    )


def _teacher(
    views: Mapping[str | None, Experiment],
    summary: RunSummary,
    rows: Mapping[str | None, Rows],
    folder: Path,
    reporter: Reporter,
) -> HeldOut | None:
    """What the teacher of a student reaches on the test rows; None where a teacher has no trained head."""
    if summary.role != "student" or summary.teacher is None:
        return None
    found: dict[str | None, Evaluation] = {}
    for name, view in views.items():
        sources = teacher_sources(view)
        if not sources or not all(has_head(source, view.task.kind) for source in sources.values()):
            return None
        if None in sources:
            found[name] = evaluate_teacher(view, sources[None], rows[name], reporter)
        else:
            members = {str(member): source for member, source in sources.items()}
            found[name], _ = evaluate_ensemble(view, members, rows[name], reporter)
        keep_scores(folder, name, "teacher-test", found[name])
    return HeldOut(metrics=_joint(views, found), rows=sum(each.rows for each in found.values()))

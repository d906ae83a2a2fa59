"""evaluate: metrics of a model on labelled rows."""

from __future__ import annotations

import dataclasses

from raybrew.config import DataConfig, Experiment
from raybrew.data.cautions import tell
from raybrew.errors import ConfigError, RunError
from raybrew.models.loading import ModelSource
from raybrew.pipeline.evaluation import (
    Evaluation,
    Split,
    evaluate_ensemble,
    evaluate_rows,
    evaluation_rows,
    labelled_rows,
)
from raybrew.pipeline.model_checks import model_cautions, whose
from raybrew.pipeline.reporter import QuietReporter, Reporter
from raybrew.pipeline.resolve import ANY_ROWS, Resolved, ResolvedTask, chosen_teachers, label_of, resolve
from raybrew.pipeline.rows import Rows, check_teacher_labels, data_of, say_cautions
from raybrew.training.run_folder import RunFolder

__all__ = ["AVERAGE", "Evaluation", "evaluate", "evaluate_all", "pick_model"]

#: What the average of several teachers is called where one of their names may stand.
AVERAGE = "average"


def evaluate(
    experiment: Experiment,
    *,
    model: str = "student",
    task: str | None = None,
    teacher: str | None = None,
    data: str | None = None,
    split: Split = "eval",
    run_id: str | None = None,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Metrics of this experiment's `student` or `teacher`, or of a model folder or hub model, on labelled rows.

    The rows are those of `data`, a source as `data.eval` names it, else of `data.eval` or, with `split="test"`, of
    `data.test`. Nothing is trained: the model is that of the finished run of this configuration, whatever rows the
    experiment now names for evaluation. `task` chooses one of several tasks, and `teacher` one of several teachers:
    one of their names, or `average`.
    """
    found = evaluate_all(
        experiment, model=model, task=task, teacher=teacher, data=data, split=split, run_id=run_id, reporter=reporter
    )
    if len(found) > 1:
        raise ConfigError(f"evaluate: several models are meant, choose one or evaluate_all: {', '.join(found)}")
    return next(iter(found.values()))


def evaluate_all(
    experiment: Experiment,
    *,
    model: str = "student",
    task: str | None = None,
    teacher: str | None = None,
    data: str | None = None,
    split: Split = "eval",
    run_id: str | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Evaluation]:
    """As `evaluate` for all tasks, and with `model="teacher"` for all teachers and their average, by name."""
    reporter = reporter or QuietReporter()
    if teacher is not None and model != "teacher":
        raise ConfigError(f"--teacher: given {teacher!r}, which applies to --model teacher only")
    resolved = resolve(experiment, other_rows=ANY_ROWS)
    tasks = resolved.chosen(task)
    if data is not None and len(tasks) > 1:
        names = ", ".join(each.name for each in tasks)
        raise ConfigError(f"--data: names the rows of one task, and there are several: {names}; choose one with --task")
    found: dict[str, Evaluation] = {}
    for each in tasks:
        trained = each.data
        if data is not None:
            each = each.changed(data=data_of(trained, data, "eval"))
        if model == "teacher" and each.teacher.members:
            of_task = _evaluate_members(each, trained, split, teacher, reporter)
        elif teacher is not None:
            raise ConfigError(f"--teacher: given {teacher!r}, but there is one teacher only; leave it out")
        else:
            source = pick_model(resolved, each, model, run_id)
            of_task = {"": _evaluate_one(each, source, trained, split, model == "teacher", reporter)}
        found |= {label_of(each.label, label): one for label, one in of_task.items()}
    return found


def _evaluate_members(
    task: ResolvedTask, trained: DataConfig, split: Split, teacher: str | None, reporter: Reporter
) -> dict[str, Evaluation]:
    """The evaluations of a task's several teachers and of their average, by label."""
    sources = task.sources
    chosen = chosen_teachers([*sources, AVERAGE], teacher)
    rows = labelled_rows(task, next(iter(sources.values())), split, trained)
    say_cautions(rows.cautions, {split: rows.evaluation}, reporter.say)
    for source in sources.values():
        check_teacher_labels(source, rows.labels)
    averaged, members = evaluate_ensemble(task, rows, reporter)
    every = {**members, AVERAGE: averaged}
    return {
        label: _doubted(every[label], whose(task.label, label), sources.get(label), rows, task.metric, reporter)
        for label in chosen
    }


def _evaluate_one(
    task: ResolvedTask, source: ModelSource, trained: DataConfig, split: Split, is_teacher: bool, reporter: Reporter
) -> Evaluation:
    rows, encoded = evaluation_rows(task, source, split, trained)
    assert rows.evaluation is not None
    say_cautions(rows.cautions, {split: rows.evaluation}, reporter.say)
    found = evaluate_rows(task, source, encoded, len(rows.evaluation), rows.labels, reporter)
    who = whose(task.label) if is_teacher else f"the model {source.model}"
    return _doubted(found, who, source, rows, task.metric, reporter)


def _doubted(
    found: Evaluation, who: str, source: ModelSource | None, rows: Rows, metric: str, reporter: Reporter
) -> Evaluation:
    """The evaluation with what is doubtful about the model, which is told, and about its rows, which was."""
    cautions = model_cautions(who, source, found.agreement, found.metrics, rows.labels, metric)
    tell(cautions, reporter.say)
    return dataclasses.replace(found, cautions=(*rows.cautions, *cautions))


def pick_model(resolved: Resolved, task: ResolvedTask, model: str, run_id: str | None = None) -> ModelSource:
    """`student`, `teacher`, or a folder or hub name as a source; RunError when the student is not trained yet."""
    if model == "teacher":
        only = next((teacher for teacher in task.teachers if not teacher.label), None)
        if only is None:
            raise ConfigError("teacher.model: required by this command; name a folder or a hub model")
        return only.source
    if model == "student":
        run = RunFolder.trained(resolved.experiment, "distill", run_id, ANY_ROWS)
        folder = run.student / task.label
        if run.summary() is not None and not run.has_student:
            raise RunError(f"{run.why_no_student()}, or name a model folder with --model")
        if not folder.is_dir():
            raise RunError(
                f"no student yet: {folder} does not exist; run `raybrew distill` with this experiment first, "
                "or name a model folder with --model"
            )
        return ModelSource(str(folder))
    return ModelSource(model)

"""finetune: train a model on labels; makes the teacher of an experiment."""

from __future__ import annotations

import functools

from raybrew.config import Experiment
from raybrew.errors import ConfigError
from raybrew.pipeline.inputs import Inputs
from raybrew.pipeline.reporter import QuietReporter, Reporter
from raybrew.pipeline.resolve import ResolvedTask, base_of, finetune_config, label_of, resolve
from raybrew.pipeline.rows import Say, check_labels, read_rows
from raybrew.pipeline.units import encode
from raybrew.runs.program import RunSpec
from raybrew.runs.result import RunResult
from raybrew.runs.train_run import finished_run, train_run
from raybrew.training.run_folder import RunFolder

__all__ = ["finetune", "finetune_all"]


def finetune(
    experiment: Experiment,
    *,
    task: str | None = None,
    teacher: str | None = None,
    run_id: str | None = None,
    reporter: Reporter | None = None,
) -> RunResult:
    """Train `teacher.model` on the labels of `data.train` as `teacher.finetune` says; keep the best by `task.metric`.

    `task` and `teacher` choose one of several. The same call continues an interrupted run and returns a finished one at
    once. Raises ConfigError, DataError, ModelError before training, and Interrupted when asked to stop (the state is
    saved).
    """
    chosen = _to_train(experiment, task, teacher)
    if len(chosen) > 1:
        raise ConfigError(f"teacher: this experiment has several, choose one or finetune_all: {', '.join(chosen)}")
    reporter = reporter or QuietReporter()
    return _finetune(next(iter(chosen.values())), run_id, reporter, reporter.say)


def finetune_all(
    experiment: Experiment,
    *,
    task: str | None = None,
    teacher: str | None = None,
    run_id: str | None = None,
    reporter: Reporter | None = None,
) -> dict[str, RunResult]:
    """Train all teachers of all tasks that have `finetune`, or those that `task` and `teacher` choose, by name.

    Each has a run folder of its own; equal settings share one.
    """
    reporter = reporter or QuietReporter()
    chosen = _to_train(experiment, task, teacher)
    if run_id is not None and len(chosen) > 1:
        raise ConfigError(f"--run-id: names one run, but there are several teachers ({', '.join(chosen)}); choose one")
    found = {}
    say_once = functools.cache(reporter.say)  # teachers of one task read the same rows
    for label, one in chosen.items():
        if len(chosen) > 1:
            reporter.say(f"teacher {label}: {one.teacher.model}")
        found[label] = _finetune(one, run_id, reporter, say_once)
    return found


def _to_train(experiment: Experiment, task: str | None, teacher: str | None) -> dict[str, ResolvedTask]:
    """Label -> a task with one teacher to train as the only one; ConfigError if there is none."""
    found: dict[str, ResolvedTask] = {}
    for each in resolve(experiment).chosen(task):
        for one in each.chosen(teacher):
            if one.config.finetune is not None:
                found[label_of(each.label, one.label)] = each.alone(one)
    if not found:
        finetune_config(experiment)  # says what is missing of a single teacher
        raise ConfigError("teacher.members: none of those chosen has `finetune`; there is nothing to train")
    return found


def _finetune(task: ResolvedTask, run_id: str | None, reporter: Reporter, say: Say) -> RunResult:
    experiment = task.experiment
    config = finetune_config(experiment)
    if experiment.teacher.model is None:
        raise ConfigError("teacher.model: required by `raybrew finetune`; name a folder or a hub model")
    source = base_of(experiment.teacher)
    run = RunFolder.of(experiment, "finetune", run_id)
    with run.locked():
        # Its own labels do not bind: a model that is fine-tuned gets a head for the data's.
        rows = read_rows(task, None, say, with_unlabeled=False)
        training = encode(task, rows.training, source)
        check_labels(task, rows, training, reporter.say)
        inputs = Inputs(
            rows.labels,
            training,
            encode(task, rows.evaluation.table, source) if rows.evaluation is not None else None,
            rows.num_labelled,
            0,
        )
        spec = RunSpec(
            resolve(experiment, models=task.models), "finetune", config, run, (inputs,), source, vocabulary=None
        )
        finished = finished_run(spec, reporter)
        if finished is not None:
            return finished
        facts = {
            "role": "teacher",
            "teacher": None,
            "base_model": experiment.teacher.model,
            "cautions": [caution.plain() for caution in rows.cautions],
        }
        return train_run(spec, reporter, facts)

"""finetune: train a model on labels; makes the teacher of an experiment."""

from __future__ import annotations

import functools

from raybrew.config import Experiment
from raybrew.config.views import teacher_views
from raybrew.errors import ConfigError
from raybrew.models.loading import ModelSource
from raybrew.training.run_folder import RunFolder
from raybrew.verbs.choose import chosen_tasks, chosen_teachers
from raybrew.verbs.inputs import Inputs
from raybrew.verbs.prepare import Say, check_labels, data_key, encode, finetune_config, read_rows
from raybrew.verbs.reporter import QuietReporter, Reporter
from raybrew.verbs.result import RunResult
from raybrew.verbs.scoring import score_run
from raybrew.verbs.training import train_run

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
    name, one = next(iter(chosen.values()))
    return _finetune(name, one, run_id, reporter, reporter.say)


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
    for label, (name, one) in chosen.items():
        if len(chosen) > 1:
            reporter.say(f"teacher {label}: {one.teacher.model}")
        found[label] = _finetune(name, one, run_id, reporter, say_once)
    return found


def _to_train(
    experiment: Experiment, task: str | None, teacher: str | None
) -> dict[str, tuple[str | None, Experiment]]:
    """Label -> name of the task, and experiment of it and one teacher to train; ConfigError if there is none."""
    found: dict[str, tuple[str | None, Experiment]] = {}
    for name, view in chosen_tasks(experiment, task).items():
        teachers = teacher_views(view)
        for member in chosen_teachers(list(teachers), teacher):
            if teachers[member].teacher.finetune is not None:
                found["/".join(part for part in (name, member) if part)] = (name, teachers[member])
    if not found:
        finetune_config(experiment)  # says what is missing of a single teacher
        raise ConfigError("teacher.members: none of those chosen has `finetune`; there is nothing to train")
    return found


def _finetune(task: str | None, experiment: Experiment, run_id: str | None, reporter: Reporter, say: Say) -> RunResult:
    config = finetune_config(experiment)
    teacher = experiment.teacher
    if teacher.model is None:
        raise ConfigError("teacher.model: required by `raybrew finetune`; name a folder or a hub model")
    source = ModelSource(teacher.model, teacher.revision, teacher.trust_remote_code)
    run = RunFolder.of(experiment, "finetune", run_id)
    with run.locked():
        # Its own labels do not bind: a model that is fine-tuned gets a head for the data's.
        rows = read_rows(experiment, None, say, with_unlabeled=False, key=data_key(task))
        training = encode(experiment, rows.training, source)
        check_labels(experiment, rows, training, reporter.say)
        inputs = Inputs(
            rows.labels,
            training,
            encode(experiment, rows.evaluation.table, source) if rows.evaluation is not None else None,
            rows.num_labelled,
            0,
        )
        finished = run.summary()
        if finished is not None:
            run.prepare(experiment, "finetune", inputs.fingerprints(), None)
            if run.has_student:
                score_run(run.path, reporter, experiment)
                return RunResult(run.path, (run.summary() or finished).plain(), already_done=True)
            reporter.say(f"{run.lost_student}; it is trained again")
            run.mark_pruned(None)
        facts = {
            "role": "teacher",
            "teacher": None,
            "base_model": teacher.model,
            "cautions": [caution.plain() for caution in rows.cautions],
        }
        return train_run(experiment, "finetune", run, [inputs], source, config, reporter, facts, "teacher.finetune")

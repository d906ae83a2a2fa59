"""finetune: train a model on labels; makes the teacher of an experiment."""

from __future__ import annotations

from raybrew.config import Experiment
from raybrew.errors import ConfigError
from raybrew.models.loading import ModelSource
from raybrew.training.run_folder import RunFolder
from raybrew.verbs.prepare import encode, finetune_config, read_rows
from raybrew.verbs.reporter import QuietReporter, Reporter
from raybrew.verbs.result import RunResult
from raybrew.verbs.training import Inputs, train_run

__all__ = ["finetune"]


def finetune(experiment: Experiment, *, run_id: str | None = None, reporter: Reporter | None = None) -> RunResult:
    """Train `teacher.model` on the labels of `data.train` as `teacher.finetune` says; keep the best by `task.metric`.

    The same call continues an interrupted run and returns a finished one at once. Raises ConfigError, DataError,
    ModelError before training, and Interrupted when asked to stop (the state is saved).
    """
    reporter = reporter or QuietReporter()
    config = finetune_config(experiment)
    teacher = experiment.teacher
    if teacher.model is None:
        raise ConfigError("teacher.model: required by `raybrew finetune`; name a folder or a hub model")
    source = ModelSource(teacher.model, teacher.revision, teacher.trust_remote_code)
    run = RunFolder.of(experiment, "finetune", run_id)
    with run.locked():
        # Its own labels do not bind: a model that is fine-tuned gets a head for the data's.
        rows = read_rows(experiment, None, reporter.say, with_unlabeled=False)
        inputs = Inputs(
            rows.labels,
            encode(experiment, rows.training, source),
            encode(experiment, rows.evaluation.table, source) if rows.evaluation is not None else None,
            rows.num_labelled,
            0,
            source,
        )
        finished = run.summary()
        if finished is not None:
            run.prepare(experiment, "finetune", inputs.fingerprints(), None)
            return RunResult(run.path, finished, already_done=True)
        facts = {"role": "teacher", "teacher": None, "base_model": teacher.model}
        return train_run(experiment, "finetune", run, inputs, config, reporter, facts, "teacher.finetune")

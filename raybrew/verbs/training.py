"""The part that `finetune` and `distill` share: from a spec to a finished run folder."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raybrew.config import Experiment, TrainConfig
from raybrew.config.views import task_views
from raybrew.errors import Interrupted, RaybrewError
from raybrew.models.devices import Place, place_of_training
from raybrew.models.inspection import count_parameters, describe, model_megabytes
from raybrew.models.loading import ModelSource, load_model
from raybrew.records.summary import (
    Best,
    Chosen,
    Latency,
    Measured,
    ModelFacts,
    RowCounts,
    RunSummary,
    write_summary,
)
from raybrew.secrets import scrub
from raybrew.training.checkpoints import Checkpoints
from raybrew.training.context import OnEvaluation
from raybrew.training.launch import launch
from raybrew.training.run_folder import RunFolder
from raybrew.verbs.inputs import Inputs, fingerprints_of
from raybrew.verbs.job import run_job
from raybrew.verbs.needs import needed_files
from raybrew.verbs.parts import num_steps_of
from raybrew.verbs.reporter import Reporter, follow_metrics
from raybrew.verbs.result import RunResult
from raybrew.verbs.scoring import mirror_test, scored, write_cards
from raybrew.verbs.timing import student_latency, timed_inputs

__all__ = ["command_line", "facts_of_model", "train_run"]


def train_run(
    experiment: Experiment,
    verb: str,
    run: RunFolder,
    inputs: Sequence[Inputs],
    source: ModelSource | None,
    config: TrainConfig,
    reporter: Reporter,
    facts: Mapping[str, Any],
    key: str,
    command: str | None = None,
    on_evaluation: OnEvaluation | None = None,
    vocabulary: Path | None = None,
    score_test: bool = True,
    alone: bool = True,
) -> RunResult:
    """Train by `config` in `run`, or continue there; write the summary and model cards. Interrupted after a stop.

    `inputs` are those of each task; `source` is what is fine-tuned, or what a shape is made after.
    `vocabulary` is the folder of a student's trimmed tokenizer.
    `command` is what the run notes as its command; default: the command line of this process.
    With `score_test` the best model is scored on `data.test` in the end.
    `alone`: whether nothing else that raybrew started runs beside this run.
    """
    command = command_line() if command is None else str(scrub(command))
    place = place_of_training(config, key)
    inputs = [_in_precision(part, place) for part in inputs]
    run.prepare(experiment, verb, fingerprints_of(inputs), command, _precisions(inputs, place))
    reporter.say(f"{verb} {experiment.name} on {place.text}")
    spec = {
        "experiment": experiment.plain(),
        "verb": verb,
        "run_folder": str(run.path),
        "run_id": run.run_id,
        "inputs": [part.plain() for part in inputs],
        "source": dataclasses.asdict(source) if source is not None else None,
        "vocabulary": None if vocabulary is None else str(vocabulary),
        "alone": alone,
        "precision": place.precision,
    }
    num_steps = num_steps_of(experiment, inputs, config)
    try:
        with follow_metrics(run.metrics, reporter, f"{verb} {experiment.name}", num_steps):
            needs = needed_files(experiment, inputs, source, vocabulary)
            result = launch(run_job, spec, config, run.path, reporter.say, key, on_evaluation, needs)
    except RaybrewError as error:
        run.note_failure(error)
        raise
    if result["status"] == "interrupted":
        raise Interrupted(f"{result['message']} in {run.path}; the same command continues it")
    best = None if result["best"] is None else Best.read(result["best"])
    evaluated = sum(part.evaluation.num_source_rows for part in inputs if part.evaluation is not None)
    summary = RunSummary(
        verb=verb,
        name=experiment.name,
        run_id=run.run_id,
        status="done",
        seed=config.seed,
        student=ModelFacts.read(facts_of_model(run.student, experiment, inputs, key)),
        best=best,
        chosen=Chosen(rows=evaluated, checkpoints=result["judged"], by=None if best is None else best.metric),
        last=Measured.read(result["last"]),
        steps=result["steps"],
        ended_by=result["ended_by"],
        epochs=result["epochs"],
        rows=RowCounts(
            train=sum(part.num_labelled for part in inputs),
            unlabeled=sum(part.num_unlabeled for part in inputs),
            augmented=sum(part.num_augmented for part in inputs) or None,
            eval=evaluated,
        ),
        wall_seconds=round(result["seconds"], 2),
        workers=result["workers"],
        precision=result["precision"],
        device=result["device"],
        latency=None if result["latency"] is None else Latency.read(result["latency"]),
        latency_ms=student_latency(result["latency"]),
        **facts,
    )
    run.keep_architecture(timed_inputs(inputs).task or "")
    if score_test:
        summary = scored(experiment, summary, run.path, reporter) or summary
    write_cards(experiment, run, summary, command)
    write_summary(run.path, summary)
    mirror_test(experiment, run, summary)
    # The state of a finished run is of no more use, and it is three times the size of the model.
    Checkpoints(run.checkpoints, 1).clear()
    return RunResult(run.path, summary.plain())


def _in_precision(inputs: Inputs, place: Place) -> Inputs:
    """`inputs` whose live teachers are computed in what `auto` is at the place of training."""
    teachers = (dataclasses.replace(each, precision=place.precision_of(each.precision)) for each in inputs.teachers)
    return dataclasses.replace(inputs, teachers=tuple(teachers))


def _precisions(inputs: Sequence[Inputs], place: Place) -> dict[str, str]:
    """What the student and its live teachers are computed in; stores are named after theirs."""
    live = {each.precision for part in inputs for each in part.teachers if each.store is None}
    return {"train": place.precision, **({"teacher": ", ".join(sorted(live))} if live else {})}


def facts_of_model(
    folder: Path, experiment: Experiment, inputs: Sequence[Inputs], key: str = "train"
) -> dict[str, Any]:
    """Sizes of the model in `folder`, or of those below it: their shared encoder counts once. Bytes are of float32."""
    views = task_views(experiment)
    first, *others = inputs
    model = load_model(ModelSource(str(folder / (first.task or ""))), views[first.task].task.kind)
    facts = describe(model)
    if isinstance(experiment.student.shape, str) and key == "train":
        facts["description"] = experiment.student.shape
    else:
        facts["description"] = f"{model.config.model_type} {facts['layers']} x {facts['hidden']}"
    parameters, megabytes = count_parameters(model), model_megabytes(model)
    for part in others:
        other = load_model(ModelSource(str(folder / str(part.task))), views[part.task].task.kind)
        parameters += count_parameters(other) - count_parameters(other.base_model)
        megabytes += model_megabytes(other) - model_megabytes(other.base_model)
    return {
        **facts,
        "parameters": parameters,
        "megabytes": round(megabytes, 2),
    }


def command_line() -> str:
    """The command that is running, as a user would type it, without secrets."""
    import shlex

    name = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    # Before words are quoted, for a secret with a quote in it; and after, for an option and its value.
    return str(scrub(shlex.join([name, *scrub(sys.argv[1:])])))

"""The part that `finetune` and `distill` share: from a spec to a finished run folder."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raybrew.errors import Interrupted, RaybrewError
from raybrew.models.devices import Place, choose_launcher, place_of_training
from raybrew.models.inspection import count_parameters, describe, model_megabytes
from raybrew.models.loading import ModelSource
from raybrew.pipeline.inputs import Inputs, fingerprints_of
from raybrew.pipeline.reporter import Reporter, follow_metrics
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
from raybrew.runs.job import run_job
from raybrew.runs.latency import student_latency, timed_inputs
from raybrew.runs.needs import needed_files
from raybrew.runs.program import RunSpec
from raybrew.runs.result import RunResult
from raybrew.runs.scoring import mirror_test, score_run, scored, write_cards
from raybrew.secrets import scrub
from raybrew.training.checkpoints import Checkpoints
from raybrew.training.context import OnEvaluation
from raybrew.training.launch import launch

__all__ = ["command_line", "finished_run", "train_run"]


def train_run(
    spec: RunSpec,
    reporter: Reporter,
    facts: Mapping[str, Any],
    *,
    command: str | None = None,
    on_evaluation: OnEvaluation | None = None,
    score_test: bool = True,
) -> RunResult:
    """Train by `spec`, or continue; write the summary, with `facts`, and model cards. Interrupted after a stop.

    `command` is what the run notes as its command; default: the command line of this process.
    With `score_test` the best model is scored on `data.test` in the end.
    """
    resolved, run, config, verb = spec.resolved, spec.run, spec.config, spec.verb
    experiment = resolved.experiment
    command = command_line() if command is None else str(scrub(command))
    place = place_of_training(config, spec.key)
    inputs = tuple(_in_precision(part, place) for part in spec.inputs)
    reads_again = score_test and any(task.data.test is not None for task in resolved.tasks)
    spec = dataclasses.replace(spec, inputs=inputs, precision=place.precision, reads_again=reads_again)
    run.prepare(experiment, verb, fingerprints_of(inputs), command, _precisions(inputs, place))
    reporter.say(f"{verb} {experiment.name} on {place.text}")
    num_steps = spec.num_steps
    try:
        with follow_metrics(run.metrics, reporter, f"{verb} {experiment.name}", num_steps):
            needs = needed_files(spec)
            if choose_launcher(config) != "local":
                resolved.models.release()  # beside its workers this process may have no room for a teacher
            result = launch(
                run_job, spec, config, run.path, reporter.say, key=spec.key, on_evaluation=on_evaluation, needs=needs
            )
            resolved.models.leave_device()  # a teacher that ran live in this process
    except RaybrewError as error:
        run.note_failure(error)
        raise
    if result["status"] == "interrupted":
        raise Interrupted(f"{result['message']} in {run.path}; the same command continues it")
    summary = _summary(spec, result, facts)
    run.keep_architecture(timed_inputs(inputs).label)
    if score_test:
        summary = scored(resolved, summary, run.path, reporter) or summary
    write_cards(resolved, run, summary, command)
    write_summary(run.path, summary)
    mirror_test(resolved, run, summary)
    # The state of a finished run is of no more use, and it is three times the size of the model.
    Checkpoints(run.checkpoints, 1).clear()
    return RunResult(run.path, summary.plain())


def _summary(spec: RunSpec, result: Mapping[str, Any], facts: Mapping[str, Any]) -> RunSummary:
    """What a finished run tells of itself, by the `result` of its job and the `facts` known before."""
    inputs = spec.inputs
    best = None if result["best"] is None else Best.read(result["best"])
    evaluated = sum(part.evaluation.num_source_rows for part in inputs if part.evaluation is not None)
    return RunSummary(
        verb=spec.verb,
        name=spec.resolved.experiment.name,
        run_id=spec.run.run_id,
        status="done",
        seed=spec.config.seed,
        student=ModelFacts.read(_facts_of_model(spec)),
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


def finished_run(
    spec: RunSpec, reporter: Reporter, *, needs_student: bool = True, score_test: bool = True
) -> RunResult | None:
    """The result of a run that has finished as this one would; None where it is to be trained, as its student is gone.

    RunError if it was made from another configuration or other inputs.
    """
    run = spec.run
    finished = run.summary()
    if finished is None:
        return None
    run.prepare(spec.resolved.experiment, spec.verb, fingerprints_of(spec.inputs), None)
    if run.has_student or not needs_student:
        if score_test:
            score_run(run.path, reporter, spec.resolved)
        return RunResult(run.path, (run.summary() or finished).plain(), already_done=True)
    reporter.say(f"{run.lost_student}; it is trained again")
    run.mark_pruned(None)
    return None


def _in_precision(inputs: Inputs, place: Place) -> Inputs:
    """`inputs` whose live teachers are computed in what `auto` is at the place of training."""
    teachers = (dataclasses.replace(each, precision=place.precision_of(each.precision)) for each in inputs.teachers)
    return dataclasses.replace(inputs, teachers=tuple(teachers))


def _precisions(inputs: Sequence[Inputs], place: Place) -> dict[str, str]:
    """What the student and its live teachers are computed in; stores are named after theirs."""
    live = {each.precision for part in inputs for each in part.teachers if each.store is None}
    return {"train": place.precision, **({"teacher": ", ".join(sorted(live))} if live else {})}


def _facts_of_model(spec: RunSpec) -> dict[str, Any]:
    """Sizes of the finished model, or of those of all tasks: their shared encoder counts once. Bytes are of float32."""
    shape = spec.resolved.experiment.student.shape
    model, *others = (
        task.models.model(ModelSource(str(spec.run.student / task.label)), task.kind) for task in spec.resolved.tasks
    )
    facts = describe(model)
    if isinstance(shape, str) and spec.verb == "distill":
        facts["description"] = shape
    else:
        facts["description"] = f"{model.config.model_type} {facts['layers']} x {facts['hidden']}"
    parameters, megabytes = count_parameters(model), model_megabytes(model)
    for other in others:
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

"""raybrew predict."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from raybrew.cli.options import ExperimentFile, ModelChoice, Overrides, RunId, TaskChoice
from raybrew.cli.terminal import make_reporter
from raybrew.config.loading import load_experiment

__all__ = ["predict"]


def predict(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    source: Annotated[
        str | None, typer.Option("--input", "-i", help="Rows to label; - or nothing: JSON lines from stdin.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON lines file. Default: stdout.")] = None,
    model: ModelChoice = "student",
    task: TaskChoice = None,
    run_id: RunId = None,
) -> None:
    """Label new rows; writes one JSON object a row with label, score and the scores of all labels.

    Of several tasks, --task chooses one.
    """
    config = load_experiment(experiment, overrides or ())

    from raybrew.verbs.predict import lines, write_predictions
    from raybrew.verbs.predict import predict as verb

    reporter = make_reporter()
    if source is None or source == "-":
        import tempfile

        with tempfile.NamedTemporaryFile("wb", suffix=".jsonl") as file:
            file.write(sys.stdin.buffer.read())
            file.flush()
            name = "standard input"
            found = verb(config, file.name, model=model, task=task, run_id=run_id, reporter=reporter, name=name)
    else:
        found = verb(config, source, model=model, task=task, run_id=run_id, reporter=reporter)
    if output is None:
        sys.stdout.writelines(lines(found))
    else:
        write_predictions(found, output)
        reporter.say(f"{len(found)} predictions in {output}")

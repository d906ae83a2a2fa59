"""raybrew evaluate."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from raybrew.cli.options import AsJson, ExperimentFile, ModelChoice, Overrides, RunId, TaskChoice, TeacherChoice
from raybrew.cli.terminal import make_reporter, print_json, results
from raybrew.config.loading import load_experiment

__all__ = ["evaluate"]


class Split(enum.Enum):
    """What `--split` may say."""

    eval = "eval"
    test = "test"


def evaluate(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    *,
    model: ModelChoice = "student",
    task: TaskChoice = None,
    teacher: TeacherChoice = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="ROWS", help="Labelled rows to evaluate on, in place of the experiment's."),
    ] = None,
    split: Annotated[
        Split, typer.Option("--split", help="Which of the experiment's rows: data.eval or data.test.")
    ] = Split.eval,
    run_id: RunId = None,
    as_json: AsJson = False,
) -> None:
    """Metrics of the student, the teacher or any model on labelled rows; of several teachers each, and their average.

    Nothing is trained again for other rows: `--data fresh.jsonl`, `data.eval=fresh.jsonl` and `--split test` score the
    models that exist.
    """
    config = load_experiment(experiment, overrides or ())

    from raybrew.verbs.evaluate import evaluate_all

    found = evaluate_all(
        config,
        model=model,
        task=task,
        teacher=teacher,
        data=data,
        split=split.value,
        run_id=run_id,
        reporter=make_reporter(),
    )
    if as_json:
        plain = {name: one.plain() for name, one in found.items()}
        print_json(plain if len(plain) > 1 else next(iter(plain.values())))
        return
    from rich.table import Table

    for name, one in found.items():
        title = f"{f'{name}: ' if name else ''}{one.model}, {one.rows} rows"
        results().print(title, markup=False, soft_wrap=True)
        table = Table("metric", "value")
        table.columns[1].justify = "right"
        for metric, value in one.metrics.items():
            table.add_row(metric, f"{value:.4f}")
        results().print(table)

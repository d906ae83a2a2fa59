"""raybrew evaluate."""

from __future__ import annotations

from raybrew.cli.options import AsJson, ExperimentFile, ModelChoice, Overrides, RunId
from raybrew.cli.terminal import make_reporter, print_json, results
from raybrew.config.loading import load_experiment

__all__ = ["evaluate"]


def evaluate(
    experiment: ExperimentFile,
    overrides: Overrides = None,
    model: ModelChoice = "student",
    run_id: RunId = None,
    as_json: AsJson = False,
) -> None:
    """Metrics of the student, the teacher or any model on `data.eval`."""
    config = load_experiment(experiment, overrides or ())

    from raybrew.verbs.evaluate import evaluate as verb

    found = verb(config, model=model, run_id=run_id, reporter=make_reporter())
    if as_json:
        print_json(found.plain())
        return
    from rich.table import Table

    table = Table("metric", "value", title=f"{found.model}, {found.rows} rows", title_justify="left")
    table.columns[1].justify = "right"
    for name, value in found.metrics.items():
        table.add_row(name, f"{value:.4f}")
    results().print(table)

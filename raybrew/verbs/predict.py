"""predict: what a model says of new rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raybrew.config import Experiment
from raybrew.data.rows import load_rows
from raybrew.errors import DataError, EnvironmentProblem
from raybrew.files import replacing
from raybrew.pipeline.evaluation import labels_of_model, logits_of
from raybrew.pipeline.reporter import QuietReporter, Reporter
from raybrew.pipeline.resolve import ANY_ROWS, resolve
from raybrew.pipeline.rows import data_of
from raybrew.pipeline.units import encode
from raybrew.verbs.evaluate import pick_model

__all__ = ["predict", "write_predictions"]


def predict(
    experiment: Experiment,
    source: str,
    *,
    model: str = "student",
    task: str | None = None,
    run_id: str | None = None,
    reporter: Reporter | None = None,
    name: str | None = None,
) -> list[dict[str, Any]]:
    """Predictions for the rows of `source` (any format that `data.train` may have; labels are ignored), in its order.

    Each is the row's content with what the task predicts: README, "Tasks", lists it. `task` chooses one of several.
    Messages call the source `name`, by default its path; what has such a name is a pipe, in UTF-8.
    """
    reporter = reporter or QuietReporter()
    resolved = resolve(experiment, other_rows=ANY_ROWS)
    one = resolved.task(task)
    chosen = pick_model(resolved, one, model, run_id)
    data = data_of(one.data, source, "unlabeled")
    if name is not None:
        data = data.model_copy(update={"encoding": None})  # of the experiment's files
    one = one.changed(data=data)
    labels = labels_of_model(chosen, one.task, one.models)
    try:
        rows = load_rows(one.data, "unlabeled", one.task, labels, name=name)
    except DataError as error:
        # The rows came as an argument: no key of the experiment file is at fault.
        raise DataError(str(error).removeprefix("data.unlabeled: ")) from error
    for bad in rows.skipped:
        reporter.say(f"left out: {bad}")
    encoded = encode(one, rows.table, chosen)
    network = one.models.model(chosen, one.kind)
    title = f"predict {Path(chosen.model).name}"
    logits = logits_of(one, network, chosen, encoded, reporter, title, hidden=False)
    hidden = {"id", "label", "scored"} & set(rows.table.column_names)
    content = rows.table.drop_columns(sorted(hidden)).to_pylist()
    predictions = one.task.predictions(logits, encoded, rows.table, labels)
    return [row | found for row, found in zip(content, predictions, strict=True)]


def write_predictions(predictions: list[dict[str, Any]], path: Path) -> None:
    """Write JSON lines to `path`; the file appears whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as new, new.open("w", encoding="utf-8") as file:
            file.writelines(lines(predictions))
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {path}: {error.strerror or error}") from error


def lines(predictions: list[dict[str, Any]]) -> Iterator[str]:
    """Predictions as JSON lines."""
    for row in predictions:
        yield json.dumps(row, ensure_ascii=False) + "\n"

"""How fast and how good several forms of one student are, measured side by side."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import torch
from torch import nn
from transformers import PretrainedConfig

from raybrew.data.encoded import EncodedRows
from raybrew.models.inspection import measure_latency
from raybrew.tasks.base import Labels
from raybrew.verbs.evaluate import logits_of
from raybrew.verbs.exported import Exported
from raybrew.verbs.prepare import task_of
from raybrew.verbs.reporter import Reporter

__all__ = ["Evaluated", "measure_forms"]

_BATCHES = (1, 32)
#: Each form is timed so many times, one after another: what else the machine does meets all of them.
_ROUNDS, _REPEATS, _BUDGET_SECONDS = 5, 6, 2.0
#: Kind of task -> the part of a prediction that is an answer, not how sure it is.
_ANSWERS: Mapping[str, str] = {"classification": "label", "multilabel": "labels", "tagging": "tags", "qa": "answer"}


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Labelled rows, and what a model reads of them."""

    table: pa.Table
    encoded: EncodedRows


def measure_forms(
    networks: Mapping[str, nn.Module],
    config: PretrainedConfig,
    tokens: int,
    found: Exported,
    rows: Evaluated | None,
    labels: Labels,
    reporter: Reporter,
) -> dict[str, dict[str, Any]]:
    """Name -> `latency_ms` of each form of a student over `tokens` tokens, in milliseconds per row, on the CPU.

    With `rows`, their `metrics` as well, and `changed_rows`: of how many source rows the answer differs from that of
    the first form (for tasks that have answers, not numbers).
    """
    measured: dict[str, dict[str, Any]] = {name: {} for name in networks}
    if rows is not None:
        measured = _quality(networks, found, rows, labels, reporter)
    times: dict[str, list[dict[int, float]]] = {name: [] for name in networks}
    for _ in range(_ROUNDS):
        for name, network in networks.items():
            times[name].append(
                measure_latency(
                    network,
                    config=config,
                    batch_sizes=_BATCHES,
                    length=tokens,
                    repeats=_REPEATS,
                    budget_seconds=_BUDGET_SECONDS,
                )
            )
    for name, taken in times.items():
        middle = {f"batch_{size}": round(statistics.median(each[size] for each in taken), 4) for size in _BATCHES}
        measured[name]["latency_ms"] = {**middle, "tokens": tokens, "threads": torch.get_num_threads()}
    return measured


def _quality(
    networks: Mapping[str, nn.Module], found: Exported, rows: Evaluated, labels: Labels, reporter: Reporter
) -> dict[str, dict[str, Any]]:
    assert found.view is not None  # the rows are its
    train = found.view.train.model_copy(update={"device": "cpu", "precision": "fp32"})
    view = found.view.model_copy(update={"train": train})
    task, part = task_of(view), _ANSWERS.get(view.task.kind)
    measured: dict[str, dict[str, Any]] = {}
    expected: list[Any] | None = None
    for name, network in networks.items():
        logits = logits_of(view, network, found.source, rows.encoded, reporter, f"evaluate {name}")
        measured[name] = {"metrics": task.metrics(logits, rows.encoded, rows.encoded.rows, labels)}
        if part is None:
            continue
        answers = [answer[part] for answer in task.predictions(logits, rows.encoded, rows.table, labels)]
        if expected is None:
            expected = answers
        else:
            changed = sum(one != other for one, other in zip(answers, expected, strict=True))
            measured[name]["changed_rows"] = changed
    return measured

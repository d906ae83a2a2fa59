"""How fast and how good several forms of one student are, measured side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
import torch
from torch import nn
from transformers import PretrainedConfig

from raybrew.config.kinds import task_spec
from raybrew.data.encoded import EncodedRows
from raybrew.models.latency import measure_in_turn
from raybrew.pipeline.evaluation import logits_of
from raybrew.pipeline.export_source import ExportSource
from raybrew.pipeline.reporter import Reporter
from raybrew.pipeline.resolve import ResolvedTask
from raybrew.tasks.base import Labels

__all__ = ["Evaluated", "measure_forms"]

#: Seconds of timing for each form.
_BUDGET_SECONDS = 10.0


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Labelled rows of a task, and what a model reads of them."""

    task: ResolvedTask
    table: pa.Table
    encoded: EncodedRows


def measure_forms(
    networks: Mapping[str, nn.Module],
    config: PretrainedConfig,
    tokens: int,
    found: ExportSource,
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
    timings = measure_in_turn(
        {name: _given(network) for name, network in networks.items()},
        length=tokens,
        device=torch.device("cpu"),
        config=config,
        budget_seconds=_BUDGET_SECONDS * len(networks),
    )
    for name, taken in timings.milliseconds.items():
        measured[name]["latency_ms"] = {**taken, "tokens": tokens, "threads": timings.threads}
    return measured


def _given(network: nn.Module) -> Callable[[], list[nn.Module]]:
    return lambda: [network]


def _quality(
    networks: Mapping[str, nn.Module], found: ExportSource, rows: Evaluated, labels: Labels, reporter: Reporter
) -> dict[str, dict[str, Any]]:
    # Exports are for CPUs, whatever the student was trained on.
    task = rows.task.changed(train=rows.task.train.model_copy(update={"device": "cpu", "precision": "fp32"}))
    part = task_spec(task.kind).answer
    measured: dict[str, dict[str, Any]] = {}
    expected: list[Any] | None = None
    for name, network in networks.items():
        logits = logits_of(task, network, found.source, rows.encoded, reporter, f"evaluate {name}")
        measured[name] = {"metrics": task.task.metrics(logits, rows.encoded, rows.encoded.rows, labels)}
        if part is None:
            continue
        answers = [answer[part] for answer in task.task.predictions(logits, rows.encoded, rows.table, labels)]
        if expected is None:
            expected = answers
        else:
            changed = sum(one != other for one, other in zip(answers, expected, strict=True))
            measured[name]["changed_rows"] = changed
    return measured

"""What the HTML page shows of a sweep, as text ready for the template."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from raybrew.catalog.searchers import SEARCHERS
from raybrew.config.values import show_value_of
from raybrew.records.runs import RunRecord, dict_at
from raybrew.records.sweeps import Cost, SweepRecord, cost_of
from raybrew.reports.comparison import Comparison
from raybrew.reports.numbers import (
    ABSENT,
    count_of,
    metric_title,
    show_bytes,
    show_count,
    show_ms,
    show_seconds,
    show_value,
)
from raybrew.reports.rows import Row
from raybrew.reports.sweep_tables import round_cells, round_heads, rows_by_run, rule_of, trial_rows

__all__ = ["sweep_section"]


def sweep_section(record: SweepRecord, comparison: Comparison, runs: Iterable[RunRecord] = ()) -> dict[str, Any]:
    """Facts, trials, early stops and failures of one sweep; `comparison` is its leaderboard, `runs` what was read."""
    cost = cost_of(record)
    rows = trial_rows(record, runs)
    row_of_run = rows_by_run(record, comparison)
    return {
        "id": record.sweep_id,
        "name": record.name,
        "rule": rule_of(record.metric, bool(record.finalists())),
        "state": _state(record),
        "facts": [(name, text) for name, text in _facts(record, cost) if text],
        "space": [(key, _space_text(value)) for key, value in record.space.items()],
        "command": record.command,
        "heads": _heads(record),
        "trials": [_trial(record, row, comparison, row_of_run.get(row["run"])) for row in rows],
        "rounds": {"heads": round_heads(record), "rows": round_cells(record)} if record.rounds else None,
        "failed": [(trial.number, trial.label, trial.error or "") for trial in record.trials_of("failed")],
    }


def _state(record: SweepRecord) -> str:
    if record.closed == "finished":
        return "done"
    return "running or interrupted" if record.closed is None else f"stopped: {record.closed}"


def _facts(record: SweepRecord, cost: Cost) -> list[tuple[str, str]]:
    sweep = dict_at(record.experiment, "sweep")
    search, scheduler = dict_at(sweep, "search"), dict_at(sweep, "scheduler")
    counts = [
        f"{cost.num_done} done",
        f"{cost.num_stopped} {'gave way' if record.rounds else 'stopped early'}" if cost.num_stopped else "",
        f"{cost.num_failed} failed" if cost.num_failed else "",
    ]
    searched = str(search.get("kind", ""))
    if searched in SEARCHERS and "objectives" in SEARCHERS[searched].options:
        searched += f" for {', '.join(search.get('objectives') or ['quality'])}"
    if not record.replayed:
        searched += ", continued from its results alone: an unbroken sweep would have tried other configurations"
    overhead = ""
    if cost.overhead is not None:
        overhead = f"{show_seconds(cost.overhead)} beyond training (loading, timing, saving)"
    if cost.overhead_first is not None:
        first = f"{show_seconds(cost.overhead_first)} for the first trial of each place that runs trials"
        overhead = f"{overhead}, {first}" if overhead else first
    speed = cost.trial_seconds / cost.wall_seconds if cost.wall_seconds else 0.0
    return [
        ("trials", f"{cost.num_trials}: {', '.join(count for count in counts if count)}"),
        ("search", searched),
        ("scheduler", str(scheduler.get("kind", "none"))),
        ("population", _population(record)),
        ("wall time", f"{show_seconds(cost.wall_seconds)} from start to end"),
        (
            "trial time",
            f"{show_seconds(cost.trial_seconds)} added up over trials; {speed:.2f} ran at a time on average",
        ),
        ("overhead per trial", overhead),
        ("teacher", f"{count_of(cost.teacher_rows, 'row')} read once for all trials" if record.teachers else ""),
        ("signals", _signals(record)),
        (
            "steps saved by early stops",
            f"{100 * cost.saved_share:.0f} %" if cost.num_stopped and not record.rounds else "",
        ),
        ("GPU-hours", f"{cost.gpu_hours:.2f}" if cost.gpu_hours else ""),
        ("cost", f"{cost.money:.2f}" if cost.money is not None else ""),
    ]


def _signals(record: SweepRecord) -> str:
    """Each signal once: every session asks each teacher again."""
    names = dict.fromkeys(str(name) for one in record.teachers for name in one.signals)
    layers: dict[str, list[str]] = {}
    for name in names:
        kind, _, layer = name.rpartition(".")
        if layer.isdecimal():
            layers.setdefault(kind, []).append(str(int(layer)))
        else:
            layers.setdefault(name, [])
    return ", ".join(f"{kind} of layers {', '.join(of)}" if of else kind for kind, of in layers.items())


def _population(record: SweepRecord) -> str:
    members = {trial.member for trial in record.trials if trial.member is not None}
    return f"{len(members)} members, {len(record.rounds)} rounds" if members else ""


def _space_text(value: Any) -> str:
    for kind, values in value.items():
        if kind != "when":
            shown = ", ".join(show_value_of(item) for item in values)
            when = f" when {show_value_of(value['when'])}" if value.get("when") else ""
            return f"{'' if kind in ('choice', 'grid') else kind + ' '}{shown}{when}"
    return ""


def _heads(record: SweepRecord) -> list[str]:
    keys = [key.rsplit(".", 1)[-1] if key.count(".") else key for key in record.space]
    metric = metric_title(record.metric)
    rest = ["parameters", "size", "ms, b1", "ms, b32", "whole trial"]
    return [*keys, "seed", f"{metric} on data.eval", f"test {metric}", *rest]


def _trial(
    record: SweepRecord, row: dict[str, Any], comparison: Comparison, configuration: Row | None
) -> dict[str, Any]:
    metric = record.metric
    value = row["value"]
    shown = show_value(metric, value, rows=comparison.eval_rows)
    if value is not None and row["status"] not in ("done",):
        shown = f"{shown} at {100 * row['share_of_steps']:.0f} %"
    cells = [
        *(row[key] if row[key] is not None else ABSENT for key in record.space),
        str(row["seed"]),
        shown,
        show_value(metric, row["test"], rows=row["test_rows"]),
        show_count(row["parameters"]),
        show_bytes(row["megabytes"]),
        show_ms(row["ms_batch_1"]),
        show_ms(row["ms_batch_32"]),
        show_seconds(row["seconds"]),
    ]
    best = configuration is not None and configuration is comparison.best
    return {
        "number": row["trial"],
        "role": row["role"],
        "rerun": row["rerun"],
        "status": row["status"],
        "best": best,
        "shipped": comparison.shipped is not None and comparison.shipped.folder.name == row["run"],
        "cells": cells,
        "command": row["command"],
        "run": row["run"],
    }

"""A report as one HTML page that needs no network: styles, figures and plotly.js are inside it."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import plotly.offline

from raybrew.errors import EnvironmentProblem, RunError
from raybrew.files import write_text
from raybrew.records.runs import RunRecord, dict_at, load_run
from raybrew.records.sections import number
from raybrew.records.sweeps import SweepRecord
from raybrew.reports.compare import compare
from raybrew.reports.comparison import Comparison
from raybrew.reports.decision import decide
from raybrew.reports.figures.parts import Plot
from raybrew.reports.figures.runs import all_plots
from raybrew.reports.figures.sweeps import sweep_plots
from raybrew.reports.labels import LabelTable, label_tables
from raybrew.reports.numbers import (
    ABSENT,
    metric_title,
    show_bytes,
    show_count,
    show_ms,
    show_seconds,
    show_share,
    show_value,
)
from raybrew.reports.rows import Row
from raybrew.reports.statistics.evidence import Split
from raybrew.reports.sweep_page import sweep_section
from raybrew.reports.sweep_tables import leaderboard
from raybrew.reports.tables import agreed, agreed_line, is_chosen, meanings, quality_head
from raybrew.reports.words import show_difference, show_measured
from raybrew.secrets import scrub
from raybrew.version import __version__

__all__ = ["comparison_of", "render_report", "write_report"]


def write_report(
    runs: Iterable[RunRecord | str | Path],
    path: str | Path,
    title: str | None = None,
    *,
    sweeps: Sequence[SweepRecord] = (),
    now: str | None = None,
) -> Path:
    """Write the page about `runs` (records or folders) and `sweeps` to `path`, replacing it whole; returns the path.

    RunError without runs, EnvironmentProblem when the file cannot be written.
    """
    records = [run if isinstance(run, RunRecord) else load_run(run) for run in runs]
    page = render_report(records, title, sweeps=sweeps, now=now)
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write the report {path}: {error.strerror or error}") from error
    return path


def render_report(
    runs: Iterable[RunRecord],
    title: str | None = None,
    *,
    sweeps: Sequence[SweepRecord] = (),
    now: str | None = None,
    most_runs: int = 200,
) -> str:
    """The page as text. `now` is the date it shows; default: today.

    `most_runs`: of whom details are on the page, the best ones; a browser takes long to open more.

    The trials of `sweeps` are among `runs`. A page about one sweep alone takes its leaderboard as the comparison.
    """
    records = list(runs)
    if not records:
        raise RunError("a report needs at least one run; none was given")
    comparison = comparison_of(records, sweeps)
    experiments = list(dict.fromkeys(run.experiment for run in records))
    shown = records
    if len(records) > most_runs:
        # The first of each row, which are in order: their details are what a reader looks for.
        shown = [run for row in comparison.rows for run in row.runs][:most_runs]
    page = _templates().get_template("report.html.j2")
    return page.render(
        title=scrub(title or ", ".join(experiments)),
        experiments=experiments,
        num_runs=len(records),
        now=now or datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        version=__version__,
        decision=decide(comparison),
        comparison=comparison,
        table=_table(comparison),
        labels=[_labels(table) for table in label_tables(comparison.best, comparison.best and comparison.best.control)],
        plots=[_plot(plot) for plot in all_plots(comparison, of_sweep=bool(sweeps))],
        sweeps=[_sweep(record, records) for record in sweeps],
        runs=[_run(run) for run in shown],
        left_out=len(records) - len(shown),
        plotly_js=plotly.offline.get_plotlyjs(),
    )


def comparison_of(runs: Sequence[RunRecord], sweeps: Sequence[SweepRecord]) -> Comparison:
    """The leaderboard if `runs` are the trials of one sweep, else all finished runs compared."""
    if len(sweeps) == 1 and {run.folder.name for run in runs} <= {trial.run for trial in sweeps[0].trials}:
        return leaderboard(sweeps[0], runs)
    return compare(runs)


def _labels(table: LabelTable) -> dict[str, Any]:
    heads, rows = table.cells()
    return {"task": table.task, "sentence": table.sentence, "order": table.order, "heads": heads, "rows": rows}


def _sweep(record: SweepRecord, runs: Sequence[RunRecord]) -> dict[str, Any]:
    own = [run for run in runs if run.folder.parent == record.folder.parent]
    comparison = leaderboard(record, own)
    plots = sweep_plots(record, comparison)
    shown = [dataclasses.replace(plot, name=f"{record.sweep_id}-{plot.name}") for plot in plots]
    return sweep_section(record, comparison, own) | {"plots": [_plot(plot) for plot in shown]}


def _templates() -> jinja2.Environment:
    # Everything is escaped, whatever a template is called: names, labels and messages are other people's text.
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _table(comparison: Comparison) -> dict[str, Any]:
    """Heads and cells of the comparison; columns without any value are left out."""
    others = dict.fromkeys(name for row in comparison.rows for name in row.metrics if name != comparison.metric)
    rows, split = comparison.rows, comparison.split
    title = metric_title(comparison.metric)
    measured = [_quality(row, comparison, split) for row in rows]
    on_eval = [_quality(row, comparison, "eval") if split == "test" else ABSENT for row in rows]
    columns: list[tuple[str, str, list[str]]] = [
        (quality_head(comparison), "of the best checkpoint", measured),
        ("vs labels only", "minus the same student trained on labels only", [_gain(row, comparison) for row in rows]),
        ("vs teacher", "minus the teacher", [_over_teacher(row, comparison) for row in rows]),
        (
            "% of teacher",
            "share of the teacher's quality",
            [show_share(row.kept) if row.teacher_on == split else ABSENT for row in rows],
        ),
        (f"{title} on data.eval", "used for choosing", on_eval),
    ]
    facts: list[tuple[str, str, list[str]]] = [
        ("seeds", "", [str(len(row.runs)) if row.runs else ABSENT for row in rows]),
        ("para\u00admeters", "", [show_count(row.parameters) for row in rows]),
        ("size", "MB of 10^6 bytes, weights in float32", [show_bytes(row.megabytes) for row in rows]),
    ]
    for batch in ("batch_1", "batch_32"):
        cells = [show_ms(row.latency_ms[batch].mean if batch in row.latency_ms else None) for row in rows]
        facts.append((f"ms, batch\u00a0{batch.removeprefix('batch_')}", "milliseconds per example", cells))
    facts.append(("steps", "", [ABSENT if row.steps is None else f"{row.steps}" for row in rows]))
    wall = [show_seconds(row.wall_seconds.mean if row.wall_seconds else None) for row in rows]
    # What all students share stands below the table, which is wide enough without it.
    shared = {head: agreed(cells, rows) for head, _, cells in facts}
    columns += [fact for fact in facts if not shared[fact[0]]]
    columns.append(("training", "training and evaluation, mean over seeds", wall))
    for name in others:
        stats = [(row.test_metrics if split == "test" else row.metrics).get(name) for row in rows]
        cells = [show_value(name, stat.mean, rows=comparison.eval_rows) if stat else ABSENT for stat in stats]
        columns.append((f"test {metric_title(name)}" if split == "test" else metric_title(name), "mean", cells))
    columns = [column for column in columns if any(cell != ABSENT for cell in column[2])]
    entries: list[dict[str, Any]] = [
        {
            "row": row,
            "best": row is comparison.best,
            "chosen": is_chosen(row, comparison),
            "cells": [column[2][index] for column in columns],
        }
        for index, row in enumerate(rows)
    ]
    heads = [(head, hint) for head, hint, _ in columns]
    seen = " ".join([*(head for head, _ in heads), *(cell for entry in entries for cell in entry["cells"])])
    line = agreed_line((head.replace("\u00ad", ""), text) for head, text in shared.items())
    key = [f"{line[0].upper()}{line[1:]}." for line in [*meanings(comparison), *([line] if line else [])]]
    key += [comparison.rule] if comparison.rule else []
    signs = {"ms": "ms: per example.", ABSENT: f"{ABSENT}: not measured."}
    key += [text for sign, text in signs.items() if sign in seen]
    return {"heads": heads, "rows": entries, "key": key}


def _quality(row: Row, comparison: Comparison, split: Split) -> str:
    if row.on(split) is None or row.metric != comparison.metric:
        return ABSENT
    text = show_measured(row, split)
    return text if row.done else f"{text} so far"


def _gain(row: Row, comparison: Comparison) -> str:
    if row.gain is None or row.gain.on != comparison.split:
        return ABSENT
    return show_difference(row.metric, row.gain.interval)


def _over_teacher(row: Row, comparison: Comparison) -> str:
    return show_difference(row.metric, row.over_teacher) if row.teacher_on == comparison.split else ABSENT


def _plot(plot: Plot) -> dict[str, Any]:
    figure = json.loads(plot.figure.to_json())
    # The page has its own legend, which wraps at any width.
    figure["layout"]["showlegend"] = False
    return {"plot": plot, "figure": {"data": figure["data"], "layout": figure["layout"]}}


def _run(run: RunRecord) -> dict[str, Any]:
    """What the page shows of one run, as text."""
    told, best = run.facts, run.best
    facts: list[tuple[str, Any]] = [
        ("role", "distilled student" if run.role == "student" else run.role),
        ("seed", run.seed),
        ("steps", told.steps),
        ("epochs", told.epochs),
        ("rows", ", ".join(f"{count} {name}" for name, count in told.rows.named.items()) or None),
        ("training time", None if told.wall_seconds is None else show_seconds(told.wall_seconds)),
        ("workers", told.workers),
        ("device", told.device),
        ("precision", told.precision),
        ("machine", run.machine),
        ("memory", _gib(dict_at(run.environment, "machine").get("memory_gib"))),
        ("commit", run.environment.get("commit")),
        ("folder", str(run.folder)),
    ]
    versions = {
        name: value
        for name, value in run.environment.items()
        if isinstance(value, str) and name not in ("commit", "command")
    }
    problems = list(run.problems)
    if run.summary is None:
        problems.append("summary.json is missing: the run has not finished, sizes and times are not known")
    if best is None:
        problems.append("there is no evaluation")
    metrics = best.metrics if best else {}
    tested = {name: value for name, value in (told.test.metrics if told.test else {}).items() if name != "rows"}
    quality = f"{show_value(best.metric, best.value, rows=run.eval_rows)} {_plain_metric(best.metric)}" if best else ""
    return {
        "id": run.run_id,
        "experiment": run.experiment,
        "status": run.status,
        "quality": quality,
        "final": best.final if best else False,
        "best_at": _position(best.step, best.epoch) if best else "",
        "metrics": [(metric_title(name), show_value(name, metrics[name], rows=run.eval_rows)) for name in metrics],
        "test": [(metric_title(name), show_value(name, value)) for name, value in tested.items()],
        "facts": [(name, _text(value)) for name, value in facts if value is not None],
        "versions": versions,
        "command": run.command,
        "events": [
            {
                "step": ABSENT if event.step is None else event.step,
                "time": (event.date or ABSENT).replace("T", " ").replace("+00:00", " UTC"),
                "event": event.event or "",
                "message": event.message or "",
            }
            for event in run.events
        ],
        "config": run.config_text,
        "problems": problems,
    }


def _position(step: int | None, epoch: float | None) -> str:
    parts = [f"step {step}" if step is not None else "", f"epoch {epoch:.4g}" if epoch is not None else ""]
    return ", ".join(part for part in parts if part)


def _plain_metric(metric: str) -> str:
    return metric_title(metric).removesuffix(" %")


def _gib(value: Any) -> str | None:
    return None if number(value) is None else f"{value:g} GiB"


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

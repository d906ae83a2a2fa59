"""How a sweep looks while it runs: a live table on a terminal, single lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from raybrew.reports.numbers import metric_scale, metric_title, show_seconds
from raybrew.reports.sweeps import CANDIDATE, TrialRecord
from raybrew.sweeps.conductor import Conductor
from raybrew.sweeps.trials import OVER, value_of
from raybrew.verbs.reporter import QuietReporter, Reporter

__all__ = ["SweepReporter", "live_table", "news", "quiet_or", "waiting_reason"]


class SweepReporter:
    """A reporter that can also follow a sweep: by lines through `say`."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter

    def say(self, message: str) -> None:
        self.reporter.say(message)

    def bar(self, title: str, total: int, unit: str) -> Any:
        return self.reporter.bar(title, total, unit)

    @contextmanager
    def follow(self, conductor: Conductor, slots: int) -> Iterator[Callable[[], None]]:
        """A function to call whenever something may have happened."""
        told: dict[str, str] = {trial.run: trial.status for trial in conductor.trials.values()}
        waited = [""]

        def changed() -> None:
            for line in news(conductor, told):
                self.say(line)
            reason = waiting_reason(conductor, slots)
            if reason and not waited[0]:
                self.say(reason)
            waited[0] = waited[0] or reason

        changed()
        yield changed
        changed()


def quiet_or(reporter: Reporter | None) -> SweepReporter:
    """`reporter` as one that can follow a sweep; nothing is shown without one."""
    if isinstance(reporter, SweepReporter):
        return reporter
    return SweepReporter(reporter or QuietReporter())


def news(conductor: Conductor, told: dict[str, str]) -> list[str]:
    """One line for each trial whose status is not the one in `told`, which is brought up to date."""
    lines = []
    for trial in conductor.trials.take_touched():
        if told.get(trial.run) == trial.status:
            continue
        told[trial.run] = trial.status
        if trial.status in ("done", "stopped", "failed", "running", "paused"):
            lines.append(_line(trial, conductor))
    return lines


def waiting_reason(conductor: Conductor, slots: int) -> str:
    """What the trials in the queue wait for; empty if none waits."""
    waiting = len(conductor.queue)
    if not waiting or len(conductor.running) < slots:
        return ""
    sweep, train = conductor.sweep, conductor.base.train
    if sweep.concurrency is not None and sweep.concurrency == slots:
        why = f"sweep.concurrency={slots}"
    elif train.worker_range[1] > 1:
        why = f"each takes {train.worker_range[1]} workers with {train.cpus_per_worker:g} CPUs"
    else:
        gpus = f" and {sweep.resources.gpus:g} GPUs" if sweep.resources.gpus else ""
        why = f"each reserves {sweep.resources.cpus:g} CPUs{gpus} (sweep.resources)"
    return f"{waiting} trial{'s' if waiting > 1 else ''} waiting for one of {slots} places: {why}"


def live_table(conductor: Conductor, slots: int) -> Any:
    """What runs, what is best so far, what waits and what it has cost, as something rich can draw."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    metric = conductor.base.task.metric
    table = Table(title=_title(conductor), title_justify="left", title_style="bold", box=None, padding=(0, 1))
    for head in ("trial", "configuration", "seed", "progress", metric_title(metric), "time"):
        table.add_column(head, justify="left" if head in ("trial", "configuration") else "right", no_wrap=True)
    table.columns[1].overflow, table.columns[1].no_wrap = "ellipsis", True
    for trial in sorted((conductor.trials[run] for run in list(conductor.running)), key=lambda one: one.number):
        spent = time.time() - conductor.running.get(trial.run, time.time())
        table.add_row(*_cells(trial, metric, f"{100 * trial.share:.0f} %", spent), style="cyan")
    shown = conductor.trials.best()
    for trial in shown:
        style = "red" if trial.status == "failed" else "dim" if trial.role != CANDIDATE else ""
        table.add_row(*_cells(trial, metric, trial.status, trial.seconds), style=style)
    more = sum(conductor.trials.counts[status] for status in OVER) - len(shown)
    lines = [f"... and {more} more"] if more > 0 else []
    lines += [reason] if (reason := waiting_reason(conductor, slots)) else []
    return Group(table, *(Text(line, style="dim") for line in lines))


def _title(conductor: Conductor) -> str:
    spent, budget = conductor.spent(), conductor.sweep.budget
    parts = [f"{conductor.trials.counts[status]} {status}" for status in OVER if conductor.trials.counts[status]]
    limit = f" of {budget.wall_minutes:g}" if budget.wall_minutes else ""
    parts.append(f"{spent['wall_minutes']:.1f}{limit} min")
    if spent["gpu_hours"]:
        parts.append(f"{spent['gpu_hours']:.2f} GPU-hours")
    if budget.price_per_hour is not None:
        parts.append(f"cost {spent['money']:.2f}")
    return f"sweep {conductor.base.name}: {', '.join(parts)}"


def _line(trial: TrialRecord, conductor: Conductor) -> str:
    role = "" if trial.role == CANDIDATE else f" ({trial.role})"
    head = f"trial {trial.number}{role}: {trial.label}, seed {trial.seed}"
    metric = conductor.base.task.metric
    if trial.status == "running":
        if trial.paused_at is None:
            return f"{head}: starts"
        return f"{head}: goes on at {100 * trial.paused_at[1]:.0f} % of its steps"
    if trial.status == "failed":
        return f"{head}: failed: {trial.error}"
    value = value_of(trial) * metric_scale(metric)
    took = f" in {show_seconds(trial.seconds)}" if trial.seconds is not None else ""
    if trial.status == "paused" and trial.paused_at is not None:
        value = trial.paused_at[2] * metric_scale(metric)
        return f"{head}: at {100 * trial.paused_at[1]:.0f} % of its steps, {metric_title(metric)} {value:.2f}"
    if trial.status == "stopped" and trial.member is not None:
        return f"{head}: gives way, {metric_title(metric)} {value:.2f} at {100 * trial.share:.0f} % of its steps"
    if trial.status == "stopped":
        return f"{head}: stopped at {100 * trial.share:.0f} % of its steps, {metric_title(metric)} {value:.2f}"
    again = ", was there already" if trial.reused else took
    return f"{head}: {metric_title(metric)} {value:.2f}{again}"


def _cells(trial: TrialRecord, metric: str, progress: str, seconds: float | None) -> list[str]:
    value = value_of(trial)
    name = trial.label if trial.role == CANDIDATE else f"{trial.role}: {trial.label}"
    shown = "" if value != value else f"{value * metric_scale(metric):.2f}"
    return [str(trial.number), name, str(trial.seed), progress, shown, show_seconds(seconds) if seconds else ""]

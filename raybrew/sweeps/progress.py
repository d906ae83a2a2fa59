"""How a sweep looks while it runs: a live table on a terminal, single lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from raybrew.config.judge import LOSS, value_of_quality
from raybrew.pipeline.reporter import QuietReporter, Reporter
from raybrew.records.trial_index import OVER, value_of
from raybrew.records.trials import CANDIDATE, TrialRecord
from raybrew.reports.numbers import metric_scale, metric_title, show_named, show_seconds
from raybrew.sweeps.conductor import Conductor
from raybrew.sweeps.jobs import gpus_of

__all__ = ["SweepReporter", "live_table", "news", "quiet_or", "waiting_reason"]

#: Running trials that the live table shows: with the ended ones they fit a terminal of 24 lines.
_RUNNING = 8


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
        told = {trial.run: _state(trial) for trial in conductor.trials.values()}
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


def news(conductor: Conductor, told: dict[str, tuple[str, int]]) -> list[str]:
    """One line for each trial whose state is not the one in `told`, which is brought up to date."""
    lines = []
    for trial in conductor.trials.take_touched():
        if told.get(trial.run) == _state(trial):
            continue
        told[trial.run] = _state(trial)
        if trial.status in ("done", "stopped", "failed", "running", "paused"):
            lines.append(_line(trial, conductor))
    return lines


def _state(trial: TrialRecord) -> tuple[str, int]:
    return trial.status, trial.lost


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
        held = gpus_of(conductor.base, sweep, conductor.devices.gpus)
        gpus = f" and {held:g} GPU{'s' if held != 1 else ''}" if held else ""
        why = f"each reserves {sweep.resources.cpus:g} CPUs{gpus} (sweep.resources)"
    return f"{waiting} trial{'s' if waiting > 1 else ''} waiting for one of {slots} places: {why}"


def round_reason(conductor: Conductor) -> str:
    """Which members of a population wait for a round, and for whom; empty if none does."""
    if not conductor.trials.counts["paused"]:
        return ""  # nobody looks through all trials of a sweep without a population
    trials = list(conductor.trials.values())
    waiting = [trial for trial in trials if trial.status == "paused" and not trial.decided]
    if not waiting or waiting[0].paused_at is None:
        return ""
    count = f"{len(waiting)} member{'s wait' if len(waiting) > 1 else ' waits'}"
    share = 100 * waiting[0].paused_at[1]
    return f"{count} at {share:.0f} % of the steps for the others: then the round is decided"


def live_table(conductor: Conductor, slots: int, width: int = 120) -> Any:
    """What runs, what is best so far, what waits and what it has cost, as something rich can draw.

    On a narrow terminal configurations are cut, and nothing else.
    """
    import textwrap

    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    judge = conductor.judge
    heads = ["trial", "configuration", "seed", "progress", metric_title(judge), "time"]
    running = sorted((conductor.trials[run] for run in list(conductor.running)), key=lambda one: one.number)
    rows: list[tuple[list[str], str]] = []
    for trial in running[:_RUNNING]:
        spent = time.time() - conductor.running.get(trial.run, time.time())
        rows.append((_cells(trial, judge, f"{100 * trial.share:.0f} %", spent), "cyan"))
    shown = conductor.trials.best()
    for trial in shown:
        style = "red" if trial.status == "failed" else "dim" if trial.role != CANDIDATE else ""
        rows.append((_cells(trial, judge, trial.status, trial.seconds), style))
    widest = [max(map(len, column)) + 2 for column in zip(heads, *(cells for cells, _ in rows), strict=True)]
    table = Table(title=_title(conductor), title_justify="left", title_style="bold", box=None, padding=(0, 1))
    for place, head in enumerate(heads):
        left = head in ("trial", "configuration")
        # All but the configuration are shown whole.
        room = max(4, width - sum(widest) + widest[1] - 3) if head == "configuration" else None
        table.add_column(
            head, justify="left" if left else "right", no_wrap=True, overflow="ellipsis", max_width=room,
            min_width=None if room else widest[place] - 2,
        )  # fmt: skip
    for cells, style in rows:
        table.add_row(*map(Text, cells), style=style)
    more = sum(conductor.trials.counts[status] for status in OVER) - len(shown)
    lines = [f"... and {more} more that have ended"] if more > 0 else []
    if len(running) > _RUNNING:
        lines.append(f"{len(running)} run, the first {_RUNNING} are shown")
    to_come = conductor.num_trials - len(conductor.trials.known)
    if 0 < to_come < 10**8:
        lines.append(f"{to_come} more configuration{'s' if to_come > 1 else ''} to come")
    lines += [reason] if (reason := round_reason(conductor)) else []
    lines += [reason] if (reason := waiting_reason(conductor, slots)) else []
    wrapped = [part for line in lines for part in textwrap.wrap(line, max(20, width - 1))]
    return Group(table, *(Text(line, style="dim") for line in wrapped))


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
    judge = conductor.judge
    if trial.status == "running":
        if trial.error is not None:
            return f"{head}: its process is gone ({trial.error}); goes on from its last checkpoint"
        if trial.paused_at is None:
            return f"{head}: starts"
        return f"{head}: goes on at {100 * trial.paused_at[1]:.0f} % of its steps"
    if trial.status == "failed":
        return f"{head}: failed: {trial.error}"
    named = show_named(judge, value_of_quality(judge, value_of(trial)))
    took = f" in {show_seconds(trial.seconds)}" if trial.seconds is not None else ""
    if trial.status == "paused" and trial.paused_at is not None:
        named = show_named(judge, value_of_quality(judge, trial.paused_at[2]))
        return f"{head}: at {100 * trial.paused_at[1]:.0f} % of its steps, {named}"
    if trial.status == "stopped" and trial.member is not None:
        return f"{head}: gives way, {named} at {100 * trial.share:.0f} % of its steps"
    if trial.status == "stopped":
        return f"{head}: stopped at {100 * trial.share:.0f} % of its steps, {named}"
    again = ", was there already" if trial.reused else took
    return f"{head}: {named}{again}"


def _shown(judge: str, quality: float) -> str:
    """The value that a quality was made of, as people read it."""
    value = value_of_quality(judge, quality)
    return f"{value:.4g}" if judge == LOSS else f"{value * metric_scale(judge):.2f}"


def _cells(trial: TrialRecord, judge: str, progress: str, seconds: float | None) -> list[str]:
    value = value_of(trial)
    name = trial.label if trial.label == trial.role or trial.role == CANDIDATE else f"{trial.role}: {trial.label}"
    shown = "" if value != value else _shown(judge, value)
    return [str(trial.number), name, str(trial.seed), progress, shown, show_seconds(seconds) if seconds else ""]

"""What commands write where: results on stdout, progress and words on stderr; bars on a terminal, lines elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console

from raybrew.pipeline.reporter import LineReporter, Reporter

__all__ = ["TerminalReporter", "errors", "make_reporter", "print_json", "results", "write_line"]


def results() -> Console:
    """Console of stdout. Without a terminal it is as wide as a table needs, so that nothing is cut in a log."""
    return Console(soft_wrap=False, width=None if sys.stdout.isatty() else 140, highlight=False)


def errors() -> Console:
    """Console of stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def write_line(text: str, stream: TextIO | None = None) -> None:
    """One line on stdout or `stream`, at once."""
    stream = stream or sys.stdout
    stream.write(f"{text}\n")
    stream.flush()


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


def make_reporter(quiet: bool = False) -> Reporter:
    """Bars on a terminal, lines elsewhere; with `quiet` only lines that matter."""
    if sys.stderr.isatty() and not quiet:
        return TerminalReporter(errors())
    return LineReporter(lambda line: write_line(line, sys.stderr))


class TerminalReporter:
    """Bars with rate, remaining time and the last loss and metric."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def say(self, message: str) -> None:
        self.console.print(message, markup=False)

    @contextmanager
    def bar(self, title: str, total: int, unit: str) -> Iterator[Callable[[int, str], None]]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.text import Text

        class Rate(TextColumn):
            def render(self, task: Any) -> Text:
                return Text(f"{task.speed:.1f} {unit}/s" if task.speed else "", style="dim")

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            Rate(""),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[text]}", markup=False, style="cyan"),
        )
        with Progress(*columns, console=self.console, refresh_per_second=5) as progress:
            task = progress.add_task(title, total=total, text="")
            yield lambda done, text: progress.update(task, completed=done, text=text)

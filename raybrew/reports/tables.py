"""A comparison as a table: for a terminal (rich), as plain text, CSV and JSON rows."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raybrew.reports.comparison import Comparison
from raybrew.reports.numbers import (
    ABSENT,
    metric_title,
    show_count,
    show_ms,
    show_seconds,
    show_share,
    show_value,
)
from raybrew.reports.rows import Row
from raybrew.reports.words import plain_metric, show_measured

__all__ = [
    "COLUMNS",
    "Column",
    "agreed",
    "agreed_line",
    "caption_lines",
    "comparison_table",
    "csv_text",
    "is_chosen",
    "json_rows",
    "meanings",
    "quality_head",
    "table_text",
]


@dataclasses.dataclass(frozen=True)
class Column:
    """One column; those of the highest `rank` are left out first where the terminal is narrow."""

    head: Callable[[Comparison], str]
    cell: Callable[[Row, Comparison], str]
    rank: int
    left: bool = False
    fact: bool = False
    """About the model or its training, not how good it is: told below the table where all students agree."""


def _role(row: Row, comparison: Comparison) -> str:
    role = "distilled" if row.role == "student" else row.role
    if is_chosen(row, comparison):
        return f"{role}\nchosen"
    return role if row.done else f"{role}\n{'failed' if row.status == 'failed' else 'unfinished'}"


def _quality(row: Row, comparison: Comparison) -> str:
    """The value on the rows that the comparison shows first."""
    if row.on(comparison.split) is None:
        return ABSENT
    text = show_measured(row, comparison.split)
    if row.metric != comparison.metric:
        text = f"{text} {metric_title(row.metric)}"
    return text if row.done else f"{text} so far"


def _on_eval(row: Row, comparison: Comparison) -> str:
    """The value on data.eval where it is not the one that is shown first."""
    if comparison.split == "eval" or row.quality is None:
        return ABSENT
    text = show_value(row.metric, row.quality.mean, rows=row.eval_rows)
    return text if row.done else f"{text} so far"


def _gain(row: Row, comparison: Comparison) -> str:
    if row.gain is None or row.gain.on != comparison.split:
        return ABSENT
    found = row.gain.interval
    text = show_value(row.metric, row.gain.mean, found.half if found else None, rows=row.leading_rows, signed=True)
    return f"{text} *" if row.gain.differences else text


def _kept(row: Row, comparison: Comparison) -> str:
    return show_share(row.kept) if row.teacher_on == comparison.split else ABSENT


def _seeds(row: Row, _: Comparison) -> str:
    return str(len(row.runs)) if row.runs and row.done else ABSENT


def _ms(batch: str) -> Callable[[Row, Comparison], str]:
    return lambda row, _: show_ms(row.latency_ms[batch].mean if batch in row.latency_ms else None)


def _head(text: str) -> Callable[[Comparison], str]:
    return lambda _: text


def is_chosen(row: Row, comparison: Comparison) -> bool:
    """Whether `row` was chosen among several students."""
    return row is comparison.best and row.role == "student" and comparison.tried > 1


def quality_head(comparison: Comparison) -> str:
    """`test accuracy %`, or `accuracy %` of data.eval."""
    title = metric_title(comparison.metric)
    return f"test {title}" if comparison.split == "test" else title


COLUMNS = (
    Column(_head("model"), lambda row, _: f"{row.label}\n{row.variant}".strip(), 0, left=True),
    Column(_head("role"), _role, 0, left=True),
    Column(_head("seeds"), _seeds, 3, fact=True),
    Column(_head("params"), lambda row, _: show_count(row.parameters), 0, fact=True),
    Column(_head("MB"), lambda row, _: ABSENT if row.megabytes is None else f"{row.megabytes:.1f}", 4, fact=True),
    Column(quality_head, _quality, 0),
    Column(_head("on data.eval"), _on_eval, 1),
    Column(_head("vs labels\nonly"), _gain, 0),
    Column(_head("% of\nteacher"), _kept, 1),
    Column(_head("ms b1"), _ms("batch_1"), 2, fact=True),
    Column(_head("ms b32"), _ms("batch_32"), 2, fact=True),
    Column(_head("steps"), lambda row, _: ABSENT if row.steps is None else str(row.steps), 5, fact=True),
    Column(_head("training"), lambda row, _: show_seconds(row.wall_seconds.mean if row.wall_seconds else None), 6),
)

_STYLES = {"teacher": "cyan", "student": "", "control": "dim"}
#: The first column folds rather than pushing others out; it is no narrower than this.
_MODEL_WIDTH = 22
#: Fewer students and controls than this are compared fact by fact, also where they agree.
_LEAST_AGREED = 3
#: Characters between two columns.
_GAP = 2
_ASCII_LINES = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


def comparison_table(comparison: Comparison, width: int = 100, *, plain: bool = False) -> Table:
    """A rich table of at most `width` characters, the best row in bold; `plain` keeps its lines to ASCII.

    Where it is too narrow, time, steps, MB, seeds, latencies, what is kept and values on data.eval are left out, in
    that order: they stay in `json_rows`.
    """
    columns = known_columns(comparison)
    while _width(columns, comparison) > width and any(column.rank for column in columns):
        last = max(column.rank for column in columns)
        columns = [column for column in columns if column.rank != last]
    return _table(columns, comparison, plain)


def known_columns(comparison: Comparison) -> list[Column]:
    """The columns in which any of the rows has something, without facts in which all students agree."""
    found = []
    for column in COLUMNS:
        cells = [column.cell(row, comparison) for row in comparison.rows]
        if any(cell != ABSENT for cell in cells) and not (column.fact and agreed(cells, comparison.rows)):
            found.append(column)
    return found


def agreed(cells: Sequence[str], rows: Sequence[Row]) -> str:
    """`15.6 M (teacher 22.7 M)`: the one value of all students and controls; empty if they differ or are few."""
    own = [cell for cell, row in zip(cells, rows, strict=True) if row.role != "teacher"]
    if len(own) < _LEAST_AGREED or len(set(own)) > 1 or own[0] == ABSENT:
        return ""
    teachers = dict.fromkeys(cell for cell, row in zip(cells, rows, strict=True) if row.role == "teacher")
    told = ", ".join(cell for cell in teachers if cell != ABSENT)
    return f"{own[0]} (teacher {told})" if told else own[0]


def agreed_line(named: Iterable[tuple[str, str]]) -> str:
    """One line for facts in which all students agree, from (name, what `agreed` says); empty without any."""
    parts = [f"{name} = {text}" for name, text in named if text]
    return f"equal in all students: {'; '.join(parts)}" if parts else ""


def _widths(columns: Sequence[Column], comparison: Comparison) -> list[int]:
    """Width of the widest line of each column."""
    cells = [
        [column.head(comparison), *(column.cell(row, comparison) for row in comparison.rows)] for column in columns
    ]
    return [max(cell_len(line) for text in texts for line in text.splitlines()) for texts in cells]


def _width(columns: Sequence[Column], comparison: Comparison) -> int:
    """Width of the table with its first column folded as far as it may be."""
    first, *others = _widths(columns, comparison)
    return min(first, _MODEL_WIDTH) + sum(width + _GAP for width in others)


def _table(columns: Sequence[Column], comparison: Comparison, plain: bool) -> Table:
    lines = _ASCII_LINES if plain else box.SIMPLE_HEAD
    table = Table(box=lines, pad_edge=False, padding=(0, 1), collapse_padding=True, show_edge=False)
    for column, width in zip(columns, _widths(columns, comparison), strict=True):
        if column is COLUMNS[0]:
            table.add_column(column.head(comparison), overflow="fold", min_width=min(width, _MODEL_WIDTH))
        else:
            justify: Any = "left" if column.left else "right"
            table.add_column(column.head(comparison), justify=justify, no_wrap=True, min_width=width)
    for row in comparison.rows:
        style = "bold" if row is comparison.best else _STYLES[row.role] if row.done else "yellow"
        # Text, not markup: names come from users.
        table.add_row(*(Text(column.cell(row, comparison)) for column in columns), style=style)
    return table


def caption_lines(comparison: Comparison) -> list[str]:
    """What to print under the table: what its signs mean, and what limits the comparison."""
    lines = meanings(comparison)
    facts = [column for column in COLUMNS if column.fact]
    cells = {column.head(comparison): [column.cell(row, comparison) for row in comparison.rows] for column in facts}
    line = agreed_line((name, agreed(found, comparison.rows)) for name, found in cells.items())
    lines += [line] if line else []
    alike: dict[tuple[str, ...], list[str]] = {}
    for row in comparison.rows:
        if row.gain and row.gain.differences:
            alike.setdefault(row.gain.differences, []).append(row.name)
    for differences, names in alike.items():
        who = f"{names[0]} and its control" if len(names) == 1 else f"{len(names)} students and their controls"
        lines.append(f"* {who} also differ in {', '.join(differences)}")
    return [*lines, *comparison.notes, *([comparison.rule] if comparison.rule else [])]


def meanings(comparison: Comparison) -> list[str]:
    """What the values are, on which rows they were measured, and which of these rows chose something."""
    lines, metric = [], plain_metric(comparison.metric)
    measured = [row for row in comparison.rows if row.leading is not None]
    if comparison.split == "test":
        lines.append(f"test {metric}: on data.test, held out, not used for choosing")
        if any(row.quality for row in measured):
            lines.append("on data.eval: used for choosing checkpoints and configurations, so optimistic")
    elif any(row.done for row in measured):
        lines.append(f"{metric}: on data.eval; checkpoints and configurations were chosen on these rows")
    if any(row.gain for row in comparison.rows):
        lines.append("vs labels only: minus the same student trained on labels only")
    intervals = [row.interval for row in measured if row.interval is not None and row.interval.half is not None]
    if intervals:
        several = any(found.seeds > 1 for found in intervals)
        lines.append(f"±: half of the 95 % interval over the choice of rows{' and of seeds' if several else ''}")
    tries = {row.tries[row.gain.on] for row in comparison.rows if row.gain and row.gain.on == comparison.split}
    if tries and max(tries) > 1:
        lines.append(f"intervals of differences are corrected for {max(tries)} configurations on the same rows")
    if any(row.gain or row.over_teacher for row in comparison.rows):
        lines.append("differences are rounded after subtraction")
    return lines


def table_text(comparison: Comparison, width: int = 100) -> str:
    """The table and its caption as plain text without colours, for logs and pipes."""
    stream = io.StringIO()
    # In a notebook rich would show the table there, instead of writing it.
    looks: dict[str, Any] = {"no_color": True, "highlight": False, "legacy_windows": False, "force_jupyter": False}
    console = Console(file=stream, width=width, **looks)
    console.print(comparison_table(comparison, width, plain=True))
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    return "\n".join([*lines, "", *caption_lines(comparison)]).rstrip() + "\n"


def json_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One plain mapping per row."""
    return [row.to_dict() for row in comparison.rows]


def csv_text(comparison: Comparison) -> str:
    """CSV with a head; numbers at full precision, empty where nothing was measured."""
    rows = []
    for row in json_rows(comparison):
        metrics, on_test = row.pop("metrics"), row.pop("test_metrics")
        flat = {key: " ".join(map(str, value)) if isinstance(value, list) else value for key, value in row.items()}
        for name, stat in metrics.items():
            flat |= {name: stat["mean"], f"{name}_sd": stat["sd"]}
        flat |= {f"test_{name}": stat["mean"] for name, stat in on_test.items()}
        rows.append(flat)
    stream = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()

"""Times of rows: shared by rows of one architecture, of teachers from the rounds of their students."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence

from raybrew.records.runs import dict_at
from raybrew.reports.rows import Row
from raybrew.reports.timing import Timing, alike

__all__ = ["mark_times", "share_times", "teacher_ms", "time_teachers"]


def share_times(rows: Sequence[Row]) -> list[Row]:
    """All timings of one architecture, beside one teacher and under the same conditions, for each of its rows.

    Weights do not change how long a model takes, so a difference between a student and its control is noise.
    """
    together: dict[str, list[Timing]] = {}
    keys = [_key(row) for row in rows]
    for key, row in zip(keys, rows, strict=True):
        together.setdefault(key, []).extend(row.timings)
    shared = {key: alike(timings) for key, timings in together.items()}
    return [dataclasses.replace(row, timings=shared[key]) for key, row in zip(keys, rows, strict=True)]


def _key(row: Row) -> str:
    """Equal for rows whose times differ by noise only; unique for a model whose summary does not name its sizes."""
    summary = row.runs[0].summary or {}
    facts = dict_at(summary, "student")
    sizes = {name: value for name, value in facts.items() if name not in ("description", "megabytes")}
    first = row.timings[0] if row.timings else None
    teacher = dict_at(summary, "teacher").get("model") if first is not None and first.teacher else None
    conditions = None if first is None else dataclasses.astuple(first.conditions)
    return json.dumps([sizes if "architecture" in sizes else row.name, conditions, teacher], default=str)


def time_teachers(rows: Sequence[Row], teacher_of: Callable[[Row], Row | None]) -> list[Row]:
    """Teachers with their times from the rounds of their students; with their own only if they had a turn in none."""
    found: dict[int, list[Timing]] = {}
    taken: set[tuple[int, int]] = set()
    for row in rows:
        teacher = teacher_of(row)
        # Rows of one architecture share their timings.
        if teacher is not None and (id(teacher), id(row.timings)) not in taken:
            taken.add((id(teacher), id(row.timings)))
            found.setdefault(id(teacher), []).extend(each.of_teacher for each in row.timings if each.teacher)
    return [dataclasses.replace(row, timings=alike(found.get(id(row)) or row.timings)) for row in rows]


def mark_times(rows: Sequence[Row], notes: list[str]) -> list[Row]:
    """`timed_alike` for all rows; a note names the rows whose times do not compare with the others'."""
    common = alike(timing for row in rows for timing in row.timings[:1])
    usual = common[0].conditions if common else None
    found = [
        dataclasses.replace(row, timed_alike=not row.timings or row.timings[0].conditions == usual) for row in rows
    ]
    others = [row.name for row in found if not row.timed_alike]
    if others:
        names = ", ".join(others[:3]) + (f" and {len(others) - 3} more" if len(others) > 3 else "")
        notes.append(
            f"The time per example of {names} was measured on another device or under other conditions than the times "
            "of the other rows: do not compare them."
        )
    return found


def teacher_ms(row: Row, teacher: Row) -> dict[str, float]:
    """The teacher's times in the rounds of `row`, if these are all the rounds that the teacher's own row shows."""
    if [timing.of_teacher for timing in row.timings] != list(teacher.timings):
        return {}
    return {batch: stat.mean for batch, stat in teacher.latency_ms.items()}

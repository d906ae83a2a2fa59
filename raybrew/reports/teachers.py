"""Teachers among the rows of a comparison: who made which, and what is known of them on which rows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from raybrew.records.runs import RunRecord, dict_at, integer
from raybrew.reports.evidence import SPLITS, Split, teacher_value
from raybrew.reports.rows import Row, Stat

__all__ = ["made", "may_compare", "teacher_quality", "teachers_apart", "teachers_on_test"]


def made(teacher: Row, student: Row, facts: Mapping[str, Any]) -> bool:
    """Whether the runs of row `teacher` made the teacher that `facts` of `student` describe."""
    if teacher.role != "teacher" or not teacher.runs:
        return False
    parts = str(facts.get("model") or "").replace("\\", "/").split("/")
    if any(run.folder.name in parts for run in teacher.runs):
        return True
    # Copied or renamed: the same experiment and evaluation, and a model of the same size.
    same = any(run.experiment == student.runs[0].experiment for run in teacher.runs)
    sizes = {teacher.parameters, integer(facts.get("parameters"))} - {None}
    return same and len(sizes) <= 1 and teacher.runs[0].evaluation_key == student.runs[0].evaluation_key


def may_compare(teacher: Row, row: Row) -> bool:
    return not teacher.runs or teacher.runs[0].evaluation_key == row.runs[0].evaluation_key


def teachers_on_test(rows: Sequence[Row]) -> list[Row]:
    """`rows`, teachers that were not scored on data.test themselves with what their students' summaries say of it."""
    found = []
    for row in rows:
        if row.role == "teacher" and row.done and row.test is None:
            for student, run in ((each, run) for each in rows for run in each.runs):
                facts, value = dict_at(run.summary or {}, "teacher"), teacher_value(run, "test", row.metric)
                if value is not None and (made(row, student, facts) if row.runs else _is_told(row, run)):
                    rows_of_test = integer(dict_at(facts, "test").get("rows"))
                    row = dataclasses.replace(row, test=Stat((value,)), test_rows=rows_of_test, told_by=run)
                    break
        found.append(row)
    return found


def _is_told(teacher: Row, run: RunRecord) -> bool:
    """Whether the summary of `run` describes the same teacher as the one that told of `teacher`."""
    if teacher.told_by is None:
        return False
    one, other = (dict_at(each.summary or {}, "teacher") for each in (teacher.told_by, run))
    return (one.get("fingerprint") or one.get("model")) == (other.get("fingerprint") or other.get("model"))


def teachers_apart(rows: Sequence[Row]) -> list[Row]:
    """`rows`, teachers of one name that no run made told apart by their fingerprints."""
    often = Counter(row.label for row in rows if row.role == "teacher")
    found = []
    for row in rows:
        if row.told_by is not None and not row.runs and often[row.label] > 1:
            facts = dict_at(row.told_by.summary or {}, "teacher")
            row = dataclasses.replace(row, variant=str(facts.get("fingerprint") or facts.get("model"))[:12])
        found.append(row)
    return found


def teacher_quality(row: Row, teacher: Row | None) -> tuple[Split, float | None]:
    """The teacher's value on the rows of data.test if both were scored on them, else of data.eval, and which it is."""
    for split in SPLITS:
        if split == "test" and row.test is None:
            continue
        measured = Stat.of(teacher_value(run, split, row.metric) for run in row.runs)
        if measured is not None:
            return split, measured.mean
        stat = None if teacher is None or teacher.metric != row.metric else teacher.on(split)
        if stat is not None and teacher is not None and may_compare(teacher, row):
            return split, stat.mean
    return "eval", None

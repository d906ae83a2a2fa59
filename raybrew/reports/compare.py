"""How rows relate: what a student gains over its control, keeps of its teacher, and which one is best."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from raybrew.catalog.methods import METHODS
from raybrew.config.base import identity_of
from raybrew.config.distill import DistillConfig
from raybrew.config.judge import LOSS
from raybrew.config.judge import quality as quality_of
from raybrew.records.runs import RunRecord, dict_at
from raybrew.reports.comparison import Comparison
from raybrew.reports.notebook import html_table
from raybrew.reports.numbers import kept_share
from raybrew.reports.relations import (
    Controls,
    against_control,
    made,
    mark_times,
    may_compare,
    share_times,
    teacher_ms,
    teacher_quality,
    teachers_apart,
    teachers_on_test,
    time_teachers,
)
from raybrew.reports.rows import Row, Stat, group_runs, model_name, row_of
from raybrew.reports.statistics.evidence import Split
from raybrew.reports.tables import caption_lines, known_columns
from raybrew.reports.variants import name_variants

__all__ = ["LOSSES_DIFFER", "Comparison", "compare", "ordered"]

#: A note of comparisons whose runs are judged by their evaluation losses.
LOSSES_DIFFER = (
    "Nothing trains the head of these students, so their checkpoints are chosen by evaluation losses, which are of "
    "different terms, weights or teachers and do not rank one student before another."
)


class ShownComparison(Comparison):
    """A comparison that notebooks show as a table."""

    def _repr_html_(self) -> str:
        return self.html("runs compared")

    def html(self, title: str, notes: Sequence[str] = ()) -> str:
        """The table under a title, with further notes below it."""
        columns = known_columns(self)
        rows = [[column.cell(row, self).replace("\n", " ") for column in columns] for row in self.rows]
        return html_table(title, rows, [column.head(self) for column in columns], [*caption_lines(self), *notes])


def compare(runs: Sequence[RunRecord], also_tried: int = 0) -> ShownComparison:
    """Group `runs` and relate the groups to one another.

    `also_tried`: configurations that were judged on the same rows, but are not among these runs.
    """
    notes: list[str] = []
    groups = group_runs(runs, notes)
    rows = _like_finished([row_of(group) for group in groups])
    rows = [
        dataclasses.replace(row, variant=variant) for row, variant in zip(rows, _variants(groups, rows), strict=True)
    ]
    rows = share_times(rows)
    rows = teachers_apart(teachers_on_test(rows + _teachers_by_facts(rows)))
    known = [row for row in rows if row.role == "teacher"]
    rows = mark_times(time_teachers(rows, lambda row: _teacher_of(row, known)), notes)
    controls = Controls([row for row in rows if row.role == "control" and row.done and row.quality])
    teachers = [row for row in rows if row.role == "teacher"]
    rows = [_against_teacher(against_control(row, controls), teachers) for row in _with_tries(rows, also_tried)]
    named = Counter(row.metric for row in rows if row.quality is not None)
    metric = named.most_common(1)[0][0] if named else rows[0].metric if rows else "accuracy"
    finished = [row for row in rows if row.done and row.runs and row.quality is not None and row.metric == metric]
    best = None
    for role in ("student", "control", "teacher"):
        best = best or max(
            (row for row in finished if row.role == role),
            key=lambda row: (row.score, -(row.parameters or 0)),
            default=None,
        )
    if metric == LOSS and len({_loss_key(row) for row in finished}) > 1:
        best = None
        notes.append(LOSSES_DIFFER)
    if len({row.runs[0].evaluation_key for row in rows if row.runs}) > 1:
        notes.append("The runs are judged by different tasks or evaluation rows: compare only those that agree.")
    if len({run.machine for run in runs if run.machine}) > 1:
        notes.append("The runs come from different machines: their training times do not compare.")
    rows = ordered(rows, metric, best)
    candidates = tuple(row for row in ordered(finished, metric, best) if row.role == "student")
    return ShownComparison(tuple(rows), metric, best, tuple(notes), candidates, len(candidates) + also_tried)


def _with_tries(rows: Sequence[Row], also_tried: int) -> list[Row]:
    """`rows`, each with how many configurations were compared on its rows."""
    judged = Counter(row.runs[0].evaluation_key for row in rows if row.role == "student" and row.done and row.runs)
    tested = sum(row.role == "student" and row.test is not None for row in rows)
    found = []
    for row in rows:
        count = judged[row.runs[0].evaluation_key] + also_tried if row.runs else 1
        found.append(dataclasses.replace(row, tries={"test": max(1, tested), "eval": max(1, count)}))
    return found


def _like_finished(rows: list[Row]) -> list[Row]:
    """Unfinished runs under the label of finished ones of the same model: what they train is known from the config."""
    labels = {_model_key(row): row.label for row in rows if row.done}
    return [row if row.done else dataclasses.replace(row, label=labels.get(_model_key(row), row.label)) for row in rows]


def _model_key(row: Row) -> str:
    settings = row.runs[0].settings
    names = ("teacher",) if row.role == "teacher" else ("student", "teacher")
    return json.dumps([row.role == "teacher", *(settings.get(name) for name in names)], sort_keys=True, default=str)


def _variants(groups: Sequence[tuple[RunRecord, ...]], rows: Sequence[Row]) -> list[str]:
    """What tells rows of one label and role apart, by their settings."""
    variants = [""] * len(rows)
    together: dict[tuple[str, str], list[int]] = {}
    for index, row in enumerate(rows):
        together.setdefault((row.label, row.role), []).append(index)
    for members in together.values():
        if len(members) > 1:
            names = name_variants(_by_method([groups[index][0] for index in members]))
            for index, name in zip(members, names, strict=True):
                # A run on its own is told from its group by its seed.
                seed = "" if rows[index].done else f"seed {groups[index][0].seed}"
                variants[index] = ", ".join(part for part in (name, seed) if part)
            # What settings do not tell apart are runs that do not say what they computed.
            often = Counter(variants[index] for index in members)
            for index in members:
                if often[variants[index]] > 1:
                    variants[index] = ", ".join(filter(None, [variants[index], groups[index][0].run_id]))
    return variants


def _by_method(runs: Sequence[RunRecord]) -> list[Mapping[str, Any]]:
    """Settings of each run; in place of its losses the name of its method, with what it sets otherwise than others."""
    found = [(run.settings, run.method) for run in runs]
    own: list[dict[str, Any]] = []
    for settings, method in found:
        losses = {key: value for key, value in dict_at(settings, "distill").items() if key != "method"}
        usual = identity_of(DistillConfig.model_validate({"method": method})) if method in METHODS else {}
        own.append({key: value for key, value in losses.items() if method in METHODS and value != usual.get(key)})
    told: list[Mapping[str, Any]] = []
    for (settings, method), changed in zip(found, own, strict=True):
        if method not in METHODS:
            told.append(settings)
            continue
        differing = {key: value for key, value in changed.items() if any(other.get(key) != value for other in own)}
        words = [
            f"{key}={value:g}" if isinstance(value, int | float) else f"own {key}" for key, value in differing.items()
        ]
        told.append({**settings, "distill": {"method": ", ".join([str(method), *words])}})
    return told


def _teachers_by_facts(rows: Sequence[Row]) -> list[Row]:
    """Rows for teachers that no run of this set made, from what the students' summaries say about them."""
    found: dict[str, Row] = {}
    teachers = [row for row in rows if row.role == "teacher"]
    for row in rows:
        facts = row.runs[0].facts.teacher if row.runs else None
        if (
            row.role == "teacher"
            or facts is None
            or not facts.model
            or any(made(each, row, facts) for each in teachers)
        ):
            continue
        stats = _stats(facts.metrics)
        found.setdefault(
            facts.fingerprint or facts.model,
            Row(
                label=model_name(facts.model),
                variant="",
                role="teacher",
                status="done",
                runs=(),
                metric=row.metric,
                quality=stats.get(row.metric),
                metrics=stats,
                test_metrics=_stats(facts.test.metrics) if facts.test is not None else {},
                eval_rows=row.eval_rows,
                parameters=facts.parameters,
                megabytes=facts.megabytes,
                steps=None,
                wall_seconds=None,
                told_by=row.runs[0],
            ),
        )
    # A control knows its teacher by name alone; students of the same teacher know it better.
    known = {row.label for row in found.values() if row.parameters is not None}
    return [row for row in found.values() if row.parameters is not None or row.label not in known]


def _stats(metrics: Mapping[str, float]) -> dict[str, Stat]:
    return {name: Stat((value,)) for name, value in metrics.items() if name != "rows"}


def _against_teacher(row: Row, all_teachers: Sequence[Row]) -> Row:
    """`row` with what it keeps of its teacher, how much smaller it is, and the teacher's time."""
    if row.role == "teacher" or not row.runs:
        return row
    facts = row.runs[0].facts.teacher
    teacher = _teacher_of(row, all_teachers)
    on, quality = teacher_quality(row, teacher)
    mine = row.on(on)
    parameters = (facts.parameters if facts else None) or (teacher.parameters if teacher else None)
    return dataclasses.replace(
        row,
        teacher_quality=quality,
        teacher_on=on,
        teacher=teacher,
        kept=kept_share(mine.mean, quality) if mine and row.done else None,
        smaller=parameters / row.parameters if parameters and row.parameters else None,
        teacher_ms=teacher_ms(row, teacher) if teacher else {},
    )


def _teacher_of(row: Row, all_teachers: Sequence[Row]) -> Row | None:
    """The row of the teacher that `row` is compared with."""
    if row.role == "teacher" or not row.runs:
        return None
    facts = row.runs[0].facts.teacher
    teachers = [other for other in all_teachers if other.done]
    if facts is None:
        return teachers[0] if len(teachers) == 1 and may_compare(teachers[0], row) else None
    teacher = next((other for other in teachers if made(other, row, facts)), None)
    name = model_name(str(facts.model))
    return teacher or next((other for other in teachers if not other.runs and other.label == name), None)


def ordered(rows: Sequence[Row], metric: str, best: Row | None) -> list[Row]:
    """Teachers, `best`, other students by the value that is shown first, controls, then unfinished runs."""
    split: Split = best.split if best is not None else "eval"

    def place(row: Row) -> tuple[Any, ...]:
        value = row.on(split)
        known = value is not None and row.metric == metric
        shown = quality_of(metric, value.mean) if value is not None and known else float("-inf")
        score = row.score if row.metric == metric else float("-inf")
        role = ("teacher", "student", "control").index(row.role)
        return row.role != "teacher", not row.done, row is not best, role, -shown, -score, row.parameters or 0, row.name

    return sorted(rows, key=place)


def _loss_key(row: Row) -> str:
    """Equal for rows whose evaluation losses may be compared: of the same terms, weights and teacher."""
    settings, best = row.runs[0].settings, row.runs[0].facts.best
    parts = [settings.get("distill"), settings.get("teacher"), sorted(best.losses) if best is not None else []]
    return json.dumps(parts, sort_keys=True, default=str)

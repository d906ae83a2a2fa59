"""Precision, recall and F1 of each label: of the chosen student beside its teacher and its control."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from raybrew.reports.collect import RunRecord
from raybrew.reports.evidence import CHUNK, Split, scores_of, value_on
from raybrew.reports.intervals import Interval, Sample, difference, row_weights
from raybrew.reports.numbers import ABSENT, count_of
from raybrew.reports.rows import Row
from raybrew.reports.words import rows_text, show_difference

if TYPE_CHECKING:
    from raybrew.reports.intervals import Array
    from raybrew.tasks.scores import RowScores

__all__ = ["LabelLine", "LabelTable", "label_tables"]

#: Fewer rows of a label than this show no loss, whatever the resamples say.
LEAST_SUPPORT = 10
#: Labels of a task that are compared, those of most rows.
MOST_LABELS = 200
#: Labels that a sentence names.
_NAMED = 5

Figures = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class LabelLine:
    """One label. Figures are `precision`, `recall`, `f1`, means over seeds; None for models without row scores."""

    label: str
    support: int
    """How often it is true: rows, spans or words."""
    teacher: Figures | None
    student: Figures
    control: Figures | None
    over_teacher: Interval | None
    """F1 of the student less the teacher's, corrected for the number of labels."""
    over_control: Interval | None

    @property
    def lost(self) -> bool:
        """Whether a loss against the teacher is shown."""
        found = self.over_teacher
        return found is not None and found.shown and found.value < 0 and self.support >= LEAST_SUPPORT


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """The labels of one task, those first that lost most against the teacher."""

    task: str
    split: Split
    rows: int
    lines: tuple[LabelLine, ...]

    @property
    def sentence(self) -> str:
        """Which labels lost against the teacher, as far as that is shown."""
        lost = [line for line in self.lines if line.lost]
        where = rows_text(self.split, self.rows)
        if not any(line.over_teacher for line in self.lines):
            return f"Measured on {where}. The teacher's answers are not known row by row."
        if not lost:
            labels = count_of(len(self.lines), "label")
            return f"No label is shown to have lost against the teacher ({labels}, {where})."
        named = [
            f"{line.label} ({show_difference('f1', line.over_teacher)}, {line.support:,} times)"
            for line in lost[:_NAMED]
        ]
        more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        return f"F1 lost against the teacher on {where}: {', '.join(named)}{more}."

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Heads and rows as text: precision, recall and F1 of each model side by side."""
        models = [
            (name, [getattr(line, name) for line in self.lines])
            for name in ("teacher", "student", "control")
            if any(getattr(line, name) is not None for line in self.lines)
        ]
        heads = ["label", "support", *(f"{name} P / R / F1 %" for name, _ in models)]
        columns = [[_figures(figures) for figures in found] for _, found in models]
        for name, head in (("over_teacher", "F1 over teacher"), ("over_control", "F1 over control")):
            found = [getattr(line, name) for line in self.lines]
            if any(found):
                heads.append(head)
                columns.append([show_difference("f1", each) for each in found])
        starts = [[line.label, f"{line.support:,}"] for line in self.lines]
        return heads, [[*start, *(column[place] for column in columns)] for place, start in enumerate(starts)]


def label_tables(best: Row | None, control: Row | None) -> list[LabelTable]:
    """A table for each task that counts labels; none without row scores of the student."""
    if best is None or not best.runs or not best.done:
        return []
    split = best.split
    students = _of_runs(best.runs, split, best.metric)
    controls = _of_runs(control.runs, split, best.metric) if control is not None else []
    told = (found for run in best.runs if (found := scores_of(run, f"teacher-{split}")))
    teacher: dict[str, RowScores] = next(told, {})
    tables = []
    for task in students[0] if students else ():
        scores = [found[task] for found in students if task in found]
        others = [found[task] for found in controls if task in found]
        given = [teacher[task]] if task in teacher else []
        table = _table(task, split, scores, _same_rows(others, scores), _same_rows(given, scores))
        if table is not None:
            tables.append(table)
    return tables


Scores = Sequence["RowScores"]


def _of_runs(runs: Sequence[RunRecord], split: Split, metric: str) -> list[dict[str, RowScores]]:
    judged = [run for run in runs if value_on(run, split, metric) is not None]
    found = [scores_of(run, split) for run in judged]
    # A mean over seeds needs all of them.
    return found if all(found) else []


def _same_rows(others: Scores, scores: Scores) -> Scores:
    return others if all(one.key == scores[0].key for one in others) else []


def _table(task: str, split: Split, student: Scores, control: Scores, teacher: Scores) -> LabelTable | None:
    first = student[0]
    sides = {name: side for name, side in (("s", student), ("c", control), ("t", teacher)) if side}
    counted = {name: [scores.per_label() for scores in side] for name, side in sides.items()}
    figures = {name: _means(found) for name, found in counted.items()}
    if not figures["s"]:
        return None
    support = {label: found["support"] for label, found in figures["s"].items()}
    labels = sorted((label for label in support if support[label]), key=lambda label: -support[label])[:MOST_LABELS]
    drawn = {name: [_label_f1(scores, labels, task) for scores in side] for name, side in sides.items()}

    def sample(name: str, place: int) -> Sample | None:
        if name not in sides:
            return None
        return Sample(
            tuple(found[labels[place]]["f1"] for found in counted[name]),
            len(first),
            first.key,
            np.stack([found[place] for found in drawn[name]]),
            fixed=name == "t",
        )

    lines = []
    for place, label in enumerate(labels):
        own = sample("s", place)
        assert own is not None
        versus = {name: difference(own, other, len(labels)) if (other := sample(name, place)) else None
                  for name in ("t", "c")}  # fmt: skip
        of = {name: found[label] for name, found in figures.items()}
        lines.append(LabelLine(label, int(support[label]), of.get("t"), of["s"], of.get("c"), versus["t"], versus["c"]))
    lines.sort(key=lambda line: (not line.lost, line.over_teacher.value if line.over_teacher else 0.0))
    return LabelTable(task, split, len(first), tuple(lines))


def _means(found: Sequence[Mapping[str, Figures]]) -> dict[str, dict[str, float]]:
    """Figures of each label, means over seeds."""
    return {
        label: {name: statistics.fmean(one[label][name] for one in found) for name in found[0][label]}
        for label in found[0]
    }


def _label_f1(scores: RowScores, labels: Sequence[str], salt: str) -> Array:
    """(labels, resamples): F1 of each label on the resamples of `row_weights`."""
    place = {name: index for index, name in enumerate(scores.names)}
    columns = [place[f"{count} {label}"] for count in ("right", "named", "true") for label in labels]
    values = scores.values[:, columns].T
    weights = row_weights(len(scores), salt)
    size = max(1, CHUNK // max(1, len(scores)))
    parts = []
    for start in range(0, len(weights), size):
        right, named, true = np.split(np.asarray(values @ weights[start : start + size].T.astype(np.float64)), 3)
        whole = named + true
        parts.append(np.divide(2 * right, whole, out=np.zeros_like(whole), where=whole != 0))
    return np.concatenate(parts, axis=1)


def _figures(found: Figures | None) -> str:
    if found is None:
        return ABSENT
    return " / ".join(f"{100 * found[name]:.1f}" for name in ("precision", "recall", "f1"))

"""Precision, recall and F1 of each label: of the chosen student beside its teacher and its control."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from raybrew.records.runs import RunRecord
from raybrew.reports.numbers import ABSENT, LOWEST_TEACHER, count_of
from raybrew.reports.rows import Row
from raybrew.reports.statistics.evidence import CHUNK, Split, scores_of, value_on
from raybrew.reports.statistics.intervals import Interval, Sample, difference, row_weights
from raybrew.reports.words import rows_text, show_difference

if TYPE_CHECKING:
    from raybrew.reports.statistics.intervals import Array
    from raybrew.tasks.scores import RowScores

__all__ = ["LabelLine", "LabelTable", "label_tables", "lost_labels"]

#: A label with fewer rows shows no difference: its F1 is far from normal and its interval means nothing.
LEAST_SUPPORT = 30
#: The student has lost a label if its F1 is below this share of its teacher's or its control's.
_LOST_SHARE = 0.1
#: Begins a cell that shows no difference for want of rows.
TOO_FEW = "too few"
#: What `support` counts, by kind of row scores.
_UNITS = {"spans": "span", "words": "word"}
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
        return found is not None and found.shown and found.value < 0 and not self.few

    @property
    def few(self) -> bool:
        """Whether too few rows have this label to show a difference."""
        return self.support < LEAST_SUPPORT


@dataclasses.dataclass(frozen=True)
class LabelTable:
    """The labels of one task: the largest loss against the teacher first, labels with few rows last."""

    task: str
    split: Split
    rows: int
    lines: tuple[LabelLine, ...]
    unit: str = "row"
    """What `support` counts."""

    @property
    def sentence(self) -> str:
        """Which labels lost against the teacher, as far as that is shown."""
        lost = [line for line in self.lines if line.lost]
        where = rows_text(self.split, self.rows)
        if not any(line.over_teacher for line in self.lines):
            return f"Measured on {where}. The teacher's answers are not known row by row."
        few = [line for line in self.lines if line.few and line.over_teacher and line.over_teacher.value < 0]
        few_named = ", ".join(f"{line.label} ({count_of(line.support, self.unit)})" for line in few[:_NAMED])
        more = f" and {len(few) - _NAMED} more" if len(few) > _NAMED else ""
        rest = f" Lower too, with too few {self.unit}s to tell: {few_named}{more}." if few else ""
        if not lost:
            labels = count_of(len(self.lines), "label")
            return f"No label is shown to have lost against the teacher ({labels}, {where}).{rest}"
        named = [
            f"{line.label} ({show_difference('f1', line.over_teacher)}, {count_of(line.support, self.unit)})"
            for line in lost[:_NAMED]
        ]
        more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        return f"F1 lost against the teacher on {where}: {', '.join(named)}{more}.{rest}"

    @property
    def order(self) -> str:
        """How the lines are sorted, in words."""
        if not any(line.over_teacher or line.over_control for line in self.lines):
            return "Sorted by frequency."
        against = "the teacher" if any(line.over_teacher for line in self.lines) else "labels only"
        few = f"; labels with fewer than {LEAST_SUPPORT} {self.unit}s last" if any(x.few for x in self.lines) else ""
        return f"Sorted by F1 vs {against}, the largest loss first{few}."

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Heads and rows as text: precision, recall and F1 of each model side by side."""
        models = [
            (name, [getattr(line, name) for line in self.lines])
            for name in ("teacher", "student", "control")
            if any(getattr(line, name) is not None for line in self.lines)
        ]
        units = f"{'test' if self.split == 'test' else 'eval'} {self.unit}s"
        heads = ["label", units, *(f"{name} P / R / F1 %" for name, _ in models)]
        columns = [[_figures(figures) for figures in found] for _, found in models]
        for name, head in (("over_teacher", "F1 vs teacher"), ("over_control", "F1 vs labels only")):
            found = [getattr(line, name) for line in self.lines]
            if any(found):
                heads.append(head)
                columns.append(
                    [_difference(line, each, self.unit) for line, each in zip(self.lines, found, strict=True)]
                )
        starts = [[line.label, f"{line.support:,}"] for line in self.lines]
        return heads, [[*start, *(column[place] for column in columns)] for place, start in enumerate(starts)]


def label_tables(best: Row | None, control: Row | None) -> list[LabelTable]:
    """A table for each task that counts labels; none without row scores of the student."""
    if best is None:
        return []
    tables = (_table(task, best.split, sides) for task, sides in _sides(best, control).items())
    return [table for table in tables if table is not None]


def lost_labels(best: Row, control: Row | None) -> list[str]:
    """A caution for each task with labels that the student no longer recognises, also those with few rows."""
    cautions = []
    for task, sides in _sides(best, control).items():
        figures = {name: _means([scores.per_label() for scores in side]) for name, side in sides.items()}
        gaps = {label: gap for label in figures["s"] if (gap := _gap_of_lost(label, figures)) is not None}
        labels = sorted(gaps, key=lambda label: -gaps[label])
        if not labels:
            continue
        unit = _UNITS.get(sides["s"][0].kind, "row")
        named = [_lost_text(label, figures, unit) for label in labels[:_NAMED]]
        more = f"; and {len(labels) - _NAMED} more" if len(labels) > _NAMED else ""
        few = any(figures["s"][label]["support"] < LEAST_SUPPORT for label in labels)
        what = f"The student has lost {count_of(len(labels), 'label')}{f' of {task}' if task else ''}"
        advice = "few rows, check before shipping" if few else "check before shipping"
        cautions.append(f"{what} on {rows_text(best.split, best.leading_rows)}: {'; '.join(named)}{more}; {advice}.")
    return cautions


Scores = Sequence["RowScores"]


def _sides(best: Row, control: Row | None) -> dict[str, dict[str, Scores]]:
    """By task: row scores of the student's seeds `s`, of the control's `c` and of the teacher `t` where known."""
    if not best.runs or not best.done:
        return {}
    split = best.split
    students = _of_runs(best.runs, split, best.metric)
    controls = _of_runs(control.runs, split, best.metric) if control is not None else []
    told = (found for run in best.runs if (found := scores_of(run, f"teacher-{split}")))
    teacher: dict[str, RowScores] = next(told, {})
    sides: dict[str, dict[str, Scores]] = {}
    for task in students[0] if students else ():
        scores = [found[task] for found in students if task in found]
        others = [found[task] for found in controls if task in found]
        given = [teacher[task]] if task in teacher else []
        known = {"s": scores, "c": _same_rows(others, scores), "t": _same_rows(given, scores)}
        sides[task] = {name: side for name, side in known.items() if side}
    return sides


def _gap_of_lost(label: str, figures: Mapping[str, Mapping[str, Figures]]) -> float | None:
    """How far the student's F1 is below its teacher's or control's; None unless the student has lost the label."""
    own = figures["s"][label]
    highest = max((figures[name][label]["f1"] for name in ("t", "c") if label in figures.get(name, ())), default=0.0)
    is_lost = own["support"] > 0 and highest >= LOWEST_TEACHER and own["f1"] < _LOST_SHARE * highest
    return highest - own["f1"] if is_lost else None


def _lost_text(label: str, figures: Mapping[str, Mapping[str, Figures]], unit: str) -> str:
    """`ABBR (9 rows): student F1 0.0, labels only 73.9, teacher 80.0`."""
    names = {"s": "student F1", "c": "labels only", "t": "teacher"}
    values = [
        f"{names[name]} {100 * figures[name][label]['f1']:.1f}" for name in names if label in figures.get(name, ())
    ]
    return f"{label} ({count_of(int(figures['s'][label]['support']), unit)}): {', '.join(values)}"


def _of_runs(runs: Sequence[RunRecord], split: Split, metric: str) -> list[dict[str, RowScores]]:
    judged = [run for run in runs if value_on(run, split, metric) is not None]
    found = [scores_of(run, split) for run in judged]
    # A mean over seeds needs all of them.
    return found if all(found) else []


def _same_rows(others: Scores, scores: Scores) -> Scores:
    return others if all(one.key == scores[0].key for one in others) else []


def _table(task: str, split: Split, sides: Mapping[str, Scores]) -> LabelTable | None:
    first = sides["s"][0]
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
    lines.sort(key=_place)
    return LabelTable(task, split, len(first), tuple(lines), _UNITS.get(first.kind, "row"))


def _place(line: LabelLine) -> tuple[bool, float]:
    against = line.over_teacher or line.over_control
    return (line.few and against is not None, against.value if against else 0.0)


def _difference(line: LabelLine, found: Interval | None, unit: str) -> str:
    few = line.few and found is not None
    return f"{TOO_FEW} {unit}s ({line.support})" if few else show_difference("f1", found)


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

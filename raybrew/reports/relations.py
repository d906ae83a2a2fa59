"""Rows related to their teachers, to their controls (the same student without a teacher), and by their times."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raybrew.config.controls import is_searched
from raybrew.records.runs import dict_at
from raybrew.records.summary import Latency, TeacherFacts
from raybrew.records.timing import alike
from raybrew.reports.rows import Gain, Row, Stat
from raybrew.reports.statistics.evidence import SPLITS, Split, teacher_value, test_of, value_on

__all__ = [
    "Controls",
    "against_control",
    "made",
    "mark_times",
    "may_compare",
    "share_times",
    "teacher_ms",
    "teacher_quality",
    "teachers_apart",
    "teachers_on_test",
    "time_teachers",
]

#: Sections of the settings in which a student and its control should agree.
_COMPARED = ("student", "train", "data")


class Controls:
    """Finished controls. Thousands of students find theirs: what decides how close one is, is compared once."""

    def __init__(self, rows: Sequence[Row]) -> None:
        #: The strongest control of each closeness, and its place, under keys by which students of its shape find it.
        self._found: dict[str, dict[str, tuple[int, Row]]] = {}
        self._distances: dict[tuple[str, str], int] = {}
        for place, row in enumerate(rows):
            settings, size = _shape_keys(row)
            closeness = _closeness(row)
            for key in (f"by size {size}", f"by settings {settings}" if settings else f"by size alone {size}"):
                known = self._found.setdefault(key, {})
                if closeness not in known or row.score > known[closeness][1].score:
                    known[closeness] = place, row

    def of(self, row: Row) -> Row | None:
        """The control of a student: of the same shape and evaluation the one whose other settings agree best, if any.

        How well it is optimised is no such setting: learning rates of controls are searched as those of students are.
        """
        if row.role != "student" or not row.done or row.quality is None:
            return None
        closeness = _closeness(row)
        candidates = [
            (self._distance(closeness, row, key, other), -other.score, place, other)
            for key, (place, other) in self._with_shape_of(row)
            if other.metric == row.metric
            if _same_shape(row, other) and other.runs[0].evaluation_key == row.runs[0].evaluation_key
        ]
        # Among equally close controls the strongest, so that the gain is not flattered.
        return min(candidates)[-1] if candidates else None

    def _with_shape_of(self, row: Row) -> list[tuple[str, tuple[int, Row]]]:
        """The controls that `_same_shape` may hold for."""
        settings, size = _shape_keys(row)
        keys = [f"by settings {settings}", f"by size alone {size}"] if settings else [f"by size {size}"]
        return [each for key in keys for each in self._found.get(key, {}).items()]

    def _distance(self, mine: str, row: Row, theirs: str, other: Row) -> int:
        """In how many settings the two differ that are not searched for both."""
        if (mine, theirs) not in self._distances:
            count = sum(not is_searched(key) for key in _differences(row, other))
            self._distances[mine, theirs] = count
        return self._distances[mine, theirs]


def _closeness(row: Row) -> str:
    """Equal for rows whose comparison with any other row comes out alike, searched settings aside."""
    settings = row.runs[0].settings
    sections = {
        section: {key: value for key, value in part.items() if not is_searched(f"{section}.{key}")}
        for section in _COMPARED
        for part in [dict_at(settings, section)]
    }
    parts = [sections, row.steps, row.parameters, row.label, row.metric, row.runs[0].evaluation_key]
    return json.dumps(parts, sort_keys=True, default=str)


def _shape_keys(row: Row) -> tuple[str, str]:
    """What `_same_shape` compares: settings, empty where they are not known, and size."""
    student = dict_at(row.runs[0].settings, "student")
    known = student.get("model") or student.get("shape")
    settings = [student.get(name) for name in ("model", "revision", "shape")]
    size = json.dumps([row.parameters, row.label])
    return json.dumps(settings, sort_keys=True, default=str) if known else "", size


def against_control(row: Row, controls: Controls) -> Row:
    """`row` with its gain over its control."""
    control = controls.of(row)
    if control is None:
        return row
    on: Split = "test" if _same_test(row, control) else "eval"
    mine, theirs = _by_seed(row, on), _by_seed(control, on)
    paired = bool(mine) and set(mine) == set(theirs)
    ours, others = row.on(on), control.on(on)
    assert ours is not None
    assert others is not None
    sd: float | None = None
    wins: int | None = None
    if paired:
        gains = Stat(tuple(mine[seed] - theirs[seed] for seed in mine))
        mean, sd, wins = gains.mean, gains.sd, sum(gain > 0 for gain in gains.values)
    else:
        mean = ours.mean - others.mean
        if ours.sd is not None and others.sd is not None:
            sd = (ours.sd**2 + others.sd**2) ** 0.5
    count = min(ours.n, others.n)
    gain = Gain(mean, sd, count, paired, wins, _differences(row, control), on, (row, control))
    return dataclasses.replace(row, gain=gain, control=control)


def _same_test(row: Row, control: Row) -> bool:
    """Whether both were scored on the same rows of data.test."""
    if row.test is None or control.test is None:
        return False
    one, other = test_of(row.runs), test_of(control.runs)
    return one is not None and other is not None and (one.source, one.rows) == (other.source, other.rows)


def _by_seed(row: Row, on: Split) -> dict[int, float]:
    """Quality by seed; empty unless every run that was judged has a seed of its own."""
    found = {run.seed: value for run in row.runs if (value := value_on(run, on, row.metric)) is not None}
    stat = row.on(on)
    complete = None not in found and stat is not None and len(found) == stat.n
    return {seed: value for seed, value in found.items() if seed is not None} if complete else {}


def _same_shape(row: Row, other: Row) -> bool:
    one, two = (dict_at(item.runs[0].settings, "student") for item in (row, other))
    if one and two and (one.get("model") or one.get("shape")):
        return all(one.get(name) == two.get(name) for name in ("model", "revision", "shape"))
    return row.parameters is not None and (row.parameters, row.label) == (other.parameters, other.label)


def _differences(row: Row, control: Row) -> tuple[str, ...]:
    """Dotted keys of `student`, `train` and the labelled rows in which the two differ."""
    one, two = row.runs[0].settings, control.runs[0].settings
    found = []
    for section in _COMPARED:
        mine, theirs = dict_at(one, section), dict_at(two, section)
        found += [f"{section}.{key}" for key in sorted({*mine, *theirs}) if mine.get(key) != theirs.get(key)]
    # More unlabelled rows are what a teacher is for; a control cannot use them, and takes as many steps by more epochs.
    expected = {"data.unlabeled", "data.unlabeled_rows", "data.augment"}
    same_steps = row.steps and control.steps and abs(row.steps - control.steps) <= 0.01 * row.steps
    if same_steps and {"data.unlabeled", "data.augment"} & set(found):
        expected |= {"train.epochs", "train.max_steps", "train.eval_steps", "train.eval_epochs"}
    if _own_changes(one) == _own_changes(two):
        expected.add("train.changes")
    return tuple(key for key in found if key not in expected)


def _own_changes(settings: Mapping[str, Any]) -> list[Any]:
    """`train.changes` without what belongs to the teacher, which a control does without."""
    kept = [
        (change.get("at"), {key: value for key, value in dict_at(change, "values").items() if key.startswith("train.")})
        for change in dict_at(settings, "train").get("changes") or ()
    ]
    return [change for change in kept if change[1]]


def made(teacher: Row, student: Row, facts: TeacherFacts) -> bool:
    """Whether the runs of row `teacher` made the teacher that `facts` of `student` describe."""
    if teacher.role != "teacher" or not teacher.runs:
        return False
    parts = (facts.model or "").replace("\\", "/").split("/")
    if any(run.folder.name in parts for run in teacher.runs):
        return True
    # Copied or renamed: the same experiment and evaluation, and a model of the same size.
    same = any(run.experiment == student.runs[0].experiment for run in teacher.runs)
    sizes = {teacher.parameters, facts.parameters} - {None}
    return same and len(sizes) <= 1 and teacher.runs[0].evaluation_key == student.runs[0].evaluation_key


def may_compare(teacher: Row, row: Row) -> bool:
    return not teacher.runs or teacher.runs[0].evaluation_key == row.runs[0].evaluation_key


def teachers_on_test(rows: Sequence[Row]) -> list[Row]:
    """`rows`, teachers that were not scored on data.test themselves with what their students' summaries say of it."""
    found = []
    for row in rows:
        if row.role == "teacher" and row.done and row.test is None:
            for student, run in ((each, run) for each in rows for run in each.runs):
                facts, value = run.facts.teacher, teacher_value(run, "test", row.metric)
                if facts is None or facts.test is None or value is None:
                    continue
                if made(row, student, facts) if row.runs else _is_told(row, facts):
                    row = dataclasses.replace(row, test=Stat((value,)), test_rows=facts.test.rows, told_by=run)
                    break
        found.append(row)
    return found


def _is_told(teacher: Row, facts: TeacherFacts) -> bool:
    """Whether `facts` describe the same teacher as the summary that told of `teacher`."""
    own = None if teacher.told_by is None else teacher.told_by.facts.teacher
    return own is not None and (own.fingerprint or own.model) == (facts.fingerprint or facts.model)


def teachers_apart(rows: Sequence[Row]) -> list[Row]:
    """`rows`, teachers of one name that no run made told apart by their fingerprints."""
    often = Counter(row.label for row in rows if row.role == "teacher")
    found = []
    for row in rows:
        facts = row.told_by.facts.teacher if row.told_by is not None and not row.runs else None
        if facts is not None and often[row.label] > 1:
            row = dataclasses.replace(row, variant=str(facts.fingerprint or facts.model)[:12])
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


def share_times(rows: Sequence[Row]) -> list[Row]:
    """All timings of one architecture, beside one teacher and under the same conditions, for each of its rows.

    Weights do not change how long a model takes, so a difference between a student and its control is noise.
    """
    together: dict[str, list[Latency]] = {}
    keys = [_key(row) for row in rows]
    for key, row in zip(keys, rows, strict=True):
        together.setdefault(key, []).extend(row.timings)
    shared = {key: alike(timings) for key, timings in together.items()}
    return [dataclasses.replace(row, timings=shared[key]) for key, row in zip(keys, rows, strict=True)]


def _key(row: Row) -> str:
    """Equal for rows whose times differ by noise only; unique for a model whose summary does not name its sizes."""
    facts = row.runs[0].facts
    first = row.timings[0] if row.timings else None
    teacher = facts.teacher.model if facts.teacher is not None and first is not None and first.teacher else None
    return json.dumps([facts.student.sizes or row.name, first and first.conditions, teacher], default=str)


def time_teachers(rows: Sequence[Row], teacher_of: Callable[[Row], Row | None]) -> list[Row]:
    """Teachers with their times from the rounds of their students; with their own only if they had a turn in none."""
    found: dict[int, list[Latency]] = {}
    taken: set[tuple[int, int]] = set()
    for row in rows:
        teacher = teacher_of(row)
        # Rows of one architecture share their timings.
        if teacher is not None and (id(teacher), id(row.timings)) not in taken:
            taken.add((id(teacher), id(row.timings)))
            found.setdefault(id(teacher), []).extend(_of_teacher(each) for each in row.timings if each.teacher)
    return [dataclasses.replace(row, timings=alike(found.get(id(row)) or row.timings)) for row in rows]


def _of_teacher(timing: Latency) -> Latency:
    """The teacher's part, as a measurement of its own."""
    return dataclasses.replace(timing, student=timing.teacher or {}, teacher=None)


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
    if list(map(_of_teacher, row.timings)) != list(teacher.timings):
        return {}
    return {batch: stat.mean for batch, stat in teacher.latency_ms.items()}

"""The control of a student: the same student trained without a teacher, and the gain over it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from raybrew.config.controls import is_searched
from raybrew.records.runs import dict_at
from raybrew.reports.evidence import Split, test_of, value_on
from raybrew.reports.rows import Gain, Row, Stat

__all__ = ["Controls", "against_control"]


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
    return all(one.get(name) == other.get(name) for name in ("source", "rows"))


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

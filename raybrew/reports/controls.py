"""The control of a student: the same student trained without a teacher, and the gain over it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from raybrew.config.controls import is_searched
from raybrew.reports.collect import dict_at
from raybrew.reports.evidence import Split, test_of, value_on
from raybrew.reports.rows import Gain, Row, Stat, evaluation_key, settings_of

__all__ = ["against_control", "by_shape"]

Shapes = dict[str, list[tuple[int, Row]]]


def by_shape(controls: Sequence[Row]) -> Shapes:
    """Finished controls, with their places, under keys by which students of the same shape find them."""
    found: Shapes = {}
    for place, row in enumerate(controls):
        settings, size = _shape_keys(row)
        for key in (f"by size {size}", f"by settings {settings}" if settings else f"by size alone {size}"):
            found.setdefault(key, []).append((place, row))
    return found


def _shape_keys(row: Row) -> tuple[str, str]:
    """What `_same_shape` compares: settings, empty where they are not known, and size."""
    student = dict_at(settings_of(row.runs[0]), "student")
    known = student.get("model") or student.get("shape")
    settings = [student.get(name) for name in ("model", "revision", "shape")]
    size = json.dumps([row.parameters, row.label])
    return json.dumps(settings, sort_keys=True, default=str) if known else "", size


def _with_shape_of(row: Row, controls: Shapes) -> list[tuple[int, Row]]:
    """The controls that `_same_shape` may hold for."""
    settings, size = _shape_keys(row)
    if not settings:
        return controls.get(f"by size {size}", [])
    return [*controls.get(f"by settings {settings}", ()), *controls.get(f"by size alone {size}", ())]


def _control_among(row: Row, controls: Shapes) -> Row | None:
    """The control of a student: of the same shape and evaluation the one whose other settings agree best, if any.

    How well it is optimised is no such setting: learning rates of controls are searched as those of students are.
    """
    if row.role != "student" or not row.done or row.quality is None:
        return None
    candidates = [
        (sum(not is_searched(key) for key in _differences(row, other)), -other.quality.mean, index, other)
        for index, other in _with_shape_of(row, controls)
        if other.quality and other.metric == row.metric
        if _same_shape(row, other) and evaluation_key(other.runs[0]) == evaluation_key(row.runs[0])
    ]
    # Among equally close controls the strongest, so that the gain is not flattered.
    return min(candidates)[-1] if candidates else None


def against_control(row: Row, controls: Shapes) -> Row:
    """`row` with its gain over its control."""
    control = _control_among(row, controls)
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
    one, two = (dict_at(settings_of(item.runs[0]), "student") for item in (row, other))
    if one and two and (one.get("model") or one.get("shape")):
        return all(one.get(name) == two.get(name) for name in ("model", "revision", "shape"))
    return row.parameters is not None and (row.parameters, row.label) == (other.parameters, other.label)


def _differences(row: Row, control: Row) -> tuple[str, ...]:
    """Dotted keys of `student`, `train` and the labelled rows in which the two differ."""
    one, two = settings_of(row.runs[0]), settings_of(control.runs[0])
    found = []
    for section in ("student", "train", "data"):
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

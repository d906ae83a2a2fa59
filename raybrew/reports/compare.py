"""How rows relate: what a student gains over its control, keeps of its teacher, and which one is best."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from raybrew.config.base import identity_of
from raybrew.config.controls import is_searched
from raybrew.config.distill import DistillConfig
from raybrew.methods import METHODS
from raybrew.reports.collect import RunRecord, dict_at, integer, number
from raybrew.reports.rows import Gain, Row, Stat, evaluation_key, group_runs, model_name, row_of, settings_of
from raybrew.reports.variants import name_variants

__all__ = ["Comparison", "compare", "control_of"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All rows, teachers first, then finished ones from good to bad, then unfinished ones."""

    rows: tuple[Row, ...]
    metric: str
    """The metric of most rows, which `best` goes by."""
    best: Row | None
    """The finished student of the highest mean; without students the best control, else the best teacher."""
    notes: tuple[str, ...]
    """What a reader must know to compare these rows."""

    @property
    def teacher(self) -> Row | None:
        """The teacher's row if there is exactly one."""
        teachers = [row for row in self.rows if row.role == "teacher"]
        return teachers[0] if len(teachers) == 1 else None

    def place_of(self, row: Row) -> int:
        """Where `row`, one of these rows, stands."""
        return self._places[id(row)]

    @functools.cached_property
    def _places(self) -> dict[int, int]:
        return {id(row): place for place, row in enumerate(self.rows)}

    def _repr_html_(self) -> str:
        """The table, for notebooks."""
        return self.html("runs compared")

    def html(self, title: str, notes: Sequence[str] = ()) -> str:
        """The table under a title, with further notes below it."""
        from raybrew.reports.notebook import html_table
        from raybrew.reports.tables import caption_lines, known_columns

        columns = known_columns(self)
        rows = [[column.cell(row, self).replace("\n", " ") for column in columns] for row in self.rows]
        return html_table(title, rows, [column.head(self) for column in columns], [*caption_lines(self), *notes])

    @functools.cached_property
    def eval_rows(self) -> int | None:
        return max((row.eval_rows for row in self.rows if row.eval_rows is not None), default=None)


def compare(runs: Sequence[RunRecord]) -> Comparison:
    """Group `runs` and relate the groups to one another."""
    notes: list[str] = []
    groups = group_runs(runs, notes)
    rows = _like_finished([row_of(group) for group in groups])
    rows = [
        dataclasses.replace(row, variant=variant) for row, variant in zip(rows, _variants(groups, rows), strict=True)
    ]
    rows = _time_by_architecture(rows)
    rows += _teachers_by_facts(rows)
    controls = _by_shape([row for row in rows if row.role == "control" and row.done and row.quality])
    teachers = [row for row in rows if row.role == "teacher"]
    rows = [_against_teacher(_against_control(row, controls), teachers) for row in rows]
    named = Counter(row.metric for row in rows if row.quality is not None)
    metric = named.most_common(1)[0][0] if named else rows[0].metric if rows else "accuracy"
    rows.sort(key=lambda row: _order(row, metric))
    finished = [row for row in rows if row.done and row.runs and row.quality is not None and row.metric == metric]
    best = None
    for role in ("student", "control", "teacher"):
        best = best or max(
            (row for row in finished if row.role == role),
            key=lambda row: (row.quality.mean if row.quality else 0.0, -(row.parameters or 0)),
            default=None,
        )
    if len({evaluation_key(row.runs[0]) for row in rows if row.runs}) > 1:
        notes.append("The runs are judged by different tasks or evaluation rows: compare only those that agree.")
    if len({run.machine for run in runs if run.machine}) > 1:
        notes.append("The runs come from different machines: their times do not compare.")
    return Comparison(tuple(rows), metric, best, tuple(notes))


def _like_finished(rows: list[Row]) -> list[Row]:
    """Unfinished runs under the label of finished ones of the same model: what they train is known from the config."""
    labels = {_model_key(row): row.label for row in rows if row.done}
    return [row if row.done else dataclasses.replace(row, label=labels.get(_model_key(row), row.label)) for row in rows]


def _model_key(row: Row) -> str:
    settings = settings_of(row.runs[0])
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
    return variants


def _by_method(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Settings of each run; in place of its losses the name of its method, with what it sets otherwise than others."""
    found = [(settings_of(run), dict_at(run.config, "distill").get("method")) for run in runs]
    own: list[dict[str, Any]] = []
    for settings, method in found:
        losses = {key: value for key, value in dict_at(settings, "distill").items() if key != "method"}
        usual = identity_of(DistillConfig.model_validate({"method": method})) if method in METHODS else {}
        own.append({key: value for key, value in losses.items() if method in METHODS and value != usual.get(key)})
    told = []
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


def _time_by_architecture(rows: list[Row]) -> list[Row]:
    """All timings of one architecture on one machine, for each of its rows.

    Weights do not change how long a model takes, so a difference between a student and its control is noise.
    """
    together: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        timings = together.setdefault(_architecture(row), {})
        for batch, stat in row.latency_ms.items():
            timings.setdefault(batch, []).extend(stat.values)
    shared = {
        key: {batch: Stat(tuple(values)) for batch, values in timings.items()} for key, timings in together.items()
    }
    return [
        dataclasses.replace(row, latency_ms={batch: shared[_architecture(row)][batch] for batch in row.latency_ms})
        for row in rows
    ]


def _architecture(row: Row) -> str:
    """What decides how long a model takes; a key of its own for a model whose summary does not say."""
    facts = dict_at(row.runs[0].summary or {}, "student")
    sizes = {name: value for name, value in facts.items() if name not in ("description", "megabytes")}
    return json.dumps([sizes if "architecture" in sizes else row.name, _bench(row.runs[0])], default=str)


def _teachers_by_facts(rows: Sequence[Row]) -> list[Row]:
    """Rows for teachers that no run of this set made, from what the students' summaries say about them."""
    found: dict[str, Row] = {}
    teachers = [row for row in rows if row.role == "teacher"]
    for row in rows:
        facts = dict_at((row.runs[0].summary or {}) if row.runs else {}, "teacher")
        model = str(facts.get("model") or "")
        if row.role == "teacher" or not model or any(_made(other, row, facts) for other in teachers):
            continue
        metrics = {str(name): number(value) for name, value in dict_at(facts, "metrics").items()}
        stats = {name: Stat((value,)) for name, value in metrics.items() if value is not None and name != "rows"}
        found.setdefault(
            str(facts.get("fingerprint") or model),
            Row(
                label=model_name(model),
                variant="",
                role="teacher",
                status="done",
                runs=(),
                metric=row.metric,
                quality=stats.get(row.metric),
                metrics=stats,
                eval_rows=row.eval_rows,
                parameters=integer(facts.get("parameters")),
                megabytes=number(facts.get("megabytes")),
                latency_ms={},
                steps=None,
                wall_seconds=None,
            ),
        )
    # A control knows its teacher by name alone; students of the same teacher know it better.
    known = {row.label for row in found.values() if row.parameters is not None}
    return [row for row in found.values() if row.parameters is not None or row.label not in known]


def _made(teacher: Row, student: Row, facts: Mapping[str, Any]) -> bool:
    """Whether the runs of row `teacher` made the teacher that `facts` of `student` describe."""
    if teacher.role != "teacher" or not teacher.runs:
        return False
    parts = str(facts.get("model") or "").replace("\\", "/").split("/")
    if any(run.folder.name in parts for run in teacher.runs):
        return True
    # Copied or renamed: the same experiment and evaluation, and a model of the same size.
    same = any(run.experiment == student.runs[0].experiment for run in teacher.runs)
    sizes = {teacher.parameters, integer(facts.get("parameters"))} - {None}
    return same and len(sizes) <= 1 and evaluation_key(teacher.runs[0]) == evaluation_key(student.runs[0])


Shapes = dict[str, list[tuple[int, Row]]]


def _by_shape(controls: Sequence[Row]) -> Shapes:
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


def control_of(row: Row, rows: Sequence[Row]) -> Row | None:
    """The control of a student: of the same shape and evaluation the one whose other settings agree best, if any.

    How well it is optimised is no such setting: learning rates of controls are searched as those of students are.
    """
    return _control_among(row, _by_shape([other for other in rows if other.role == "control" and other.done]))


def _control_among(row: Row, controls: Shapes) -> Row | None:
    if row.role != "student" or not row.done or row.quality is None:
        return None
    candidates = [
        (
            sum(not is_searched(key) for key in _differences(row, other)),
            -other.quality.mean,
            index,
            other,
        )
        for index, other in _with_shape_of(row, controls)
        if other.quality and other.metric == row.metric
        if _same_shape(row, other) and evaluation_key(other.runs[0]) == evaluation_key(row.runs[0])
    ]
    # Among equally close controls the strongest, so that the gain is not flattered.
    return min(candidates)[-1] if candidates else None


def _against_control(row: Row, controls: Shapes) -> Row:
    """`row` with its gain over its control."""
    control = _control_among(row, controls)
    if control is None:
        return row
    assert row.quality is not None
    assert control.quality is not None
    mine, theirs = _by_seed(row), _by_seed(control)
    paired = bool(mine) and set(mine) == set(theirs)
    sd: float | None = None
    wins: int | None = None
    if paired:
        gains = Stat(tuple(mine[seed] - theirs[seed] for seed in mine))
        mean, sd, wins = gains.mean, gains.sd, sum(gain > 0 for gain in gains.values)
    else:
        mean = row.quality.mean - control.quality.mean
        if row.quality.sd is not None and control.quality.sd is not None:
            sd = (row.quality.sd**2 + control.quality.sd**2) ** 0.5
    count = min(row.quality.n, control.quality.n)
    return dataclasses.replace(row, gain=Gain(mean, sd, count, paired, wins, _differences(row, control)))


def _by_seed(row: Row) -> dict[int, float]:
    """Quality by seed; empty unless every run has both."""
    found = {run.seed: run.best.value for run in row.runs if run.seed is not None and run.best is not None}
    return found if len(found) == len(row.runs) else {}


def _against_teacher(row: Row, all_teachers: Sequence[Row]) -> Row:
    """`row` with what it keeps of its teacher, and how much smaller and faster it is."""
    if row.role == "teacher" or not row.runs:
        return row
    facts = dict_at(row.runs[0].summary or {}, "teacher")
    teachers = [other for other in all_teachers if other.done]
    teacher = next((other for other in teachers if facts and _made(other, row, facts)), None)
    if teacher is None and facts:
        teacher = next(
            (other for other in teachers if not other.runs and other.label == model_name(str(facts.get("model")))),
            None,
        )
    if teacher is None and not facts and len(teachers) == 1 and _may_compare(teachers[0], row):
        teacher = teachers[0]
    reports = [dict_at(run.summary or {}, "teacher", "metrics").get(row.metric) for run in row.runs]
    measured = Stat.of(number(report) for report in reports)
    quality = measured.mean if measured else None
    if quality is None and teacher is not None and teacher.metric == row.metric and teacher.quality:
        quality = teacher.quality.mean if _may_compare(teacher, row) else None
    parameters = integer(facts.get("parameters")) or (teacher.parameters if teacher else None)
    return dataclasses.replace(
        row,
        teacher_quality=quality,
        kept=row.quality.mean / quality if row.quality and row.done and quality and quality > 0 else None,
        smaller=parameters / row.parameters if parameters and row.parameters else None,
        faster=(_faster(row, teacher) if teacher else {}) or _faster_than_facts(row, facts),
    )


def _faster(row: Row, teacher: Row) -> dict[str, float]:
    if not teacher.runs or not row.latency_ms or _bench(row.runs[0]) != _bench(teacher.runs[0]):
        return {}
    return {
        batch: teacher.latency_ms[batch].mean / stat.mean
        for batch, stat in row.latency_ms.items()
        if batch in teacher.latency_ms and stat.mean > 0
    }


def _faster_than_facts(row: Row, facts: Mapping[str, Any]) -> dict[str, float]:
    """As `_faster`, by what the students' own summaries say of the teacher, timed where they were trained."""
    times = {str(batch): number(value) for batch, value in dict_at(facts, "latency_ms").items()}
    return {
        batch: taken / stat.mean
        for batch, stat in row.latency_ms.items()
        if (taken := times.get(batch)) is not None and stat.mean > 0
    }


def _bench(run: RunRecord) -> tuple[Any, ...]:
    """What must agree for two latencies to compare."""
    summary = run.summary or {}
    return run.machine, summary.get("device"), dict_at(summary, "latency_ms").get("tokens")


def _may_compare(teacher: Row, row: Row) -> bool:
    return not teacher.runs or evaluation_key(teacher.runs[0]) == evaluation_key(row.runs[0])


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


def _order(row: Row, metric: str) -> tuple[Any, ...]:
    value = row.quality.mean if row.quality is not None and row.metric == metric else float("-inf")
    return row.role != "teacher", not row.done, -value, row.parameters or 0, row.name

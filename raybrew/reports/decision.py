"""What a reader wants first: the best student, what it keeps of its teacher, and how far that can be trusted."""

from __future__ import annotations

import dataclasses
import math

from raybrew.config.judge import LOSS
from raybrew.reports.cautions import sentences_of
from raybrew.reports.compare import Comparison
from raybrew.reports.numbers import (
    ABSENT,
    metric_scale,
    metric_title,
    show_bytes,
    show_count,
    show_factor,
    show_ms,
    show_share,
    show_value,
)
from raybrew.reports.rows import Row

__all__ = ["Decision", "Tile", "decide"]

NOT_MEASURED = "not measured"


@dataclasses.dataclass(frozen=True)
class Tile:
    """One number of the decision; `missing` tiles say what is not known and why."""

    label: str
    value: str
    note: str
    missing: bool = False


@dataclasses.dataclass(frozen=True)
class Decision:
    """Plain text only. `cautions` limit what the numbers say."""

    headline: str
    detail: str
    tiles: tuple[Tile, ...]
    cautions: tuple[str, ...]


def decide(comparison: Comparison) -> Decision:
    """The decision that the finished runs of `comparison` support."""
    best = comparison.best
    if best is None:
        return _without_best(comparison)
    if best.role == "teacher":
        students = any(row.done and row.role != "teacher" for row in comparison.rows)
        return Decision(
            f"The teacher {best.name} reaches {_quality(best, comparison)} {_metric(best)}.",
            "The students that have finished were not evaluated." if students else "No student has finished yet.",
            (_quality_tile(best, comparison), _size_tile(best), *_time_tiles(best)),
            _cautions(best, comparison),
        )
    tiles = (
        _quality_tile(best, comparison),
        _kept_tile(best, comparison),
        _size_tile(best),
        *_time_tiles(best),
        _gain_tile(best, comparison),
    )
    return Decision(_headline(best, comparison), _detail(best), tiles, _cautions(best, comparison))


def _headline(best: Row, comparison: Comparison) -> str:
    who = "Best student" if best.role == "student" else "Best control (trained without a teacher)"
    if best.kept is None:
        return f"{who}: {best.name}, {_quality(best, comparison)} {_metric(best)}."
    if best.kept > 1:
        return f"{who}: {best.name} beats its teacher, with {show_share(best.kept)} of its {_metric(best)}."
    return f"{who}: {best.name} keeps {show_share(best.kept)} of the teacher's {_metric(best)}."


def _detail(best: Row) -> str:
    parts = []
    if best.smaller is not None and not _is_one(best.smaller):
        parts.append(f"{show_factor(best.smaller)} smaller")
    for batch, where in (("batch_1", "one row at a time"), ("batch_32", "in batches of 32")):
        factor = best.faster.get(batch)
        if factor is not None and not _is_one(factor):
            faster = "" if any("faster" in part for part in parts) else " faster"
            parts.append(f"{show_factor(factor)}{faster} {where}")
    if not parts:
        return ""
    *first, last = parts
    return f"It is {', '.join(first)} and {last}." if first else f"It is {last}."


def _is_one(factor: float) -> bool:
    """Whether a factor is shown as 1.0x, which says nothing."""
    return show_factor(factor) == show_factor(1.0)


def _quality_tile(row: Row, comparison: Comparison) -> Tile:
    count = row.quality.n if row.quality else 0
    note = "one seed" if count == 1 else f"mean ± standard deviation of {count} seeds"
    if row.teacher_quality is not None:
        note += f"; teacher {show_value(row.metric, row.teacher_quality, rows=comparison.eval_rows)}"
    return Tile(metric_title(row.metric), _quality(row, comparison), note)


def _kept_tile(row: Row, comparison: Comparison) -> Tile:
    if row.kept is None:
        note = "the teacher was not evaluated on these rows"
        if row.teacher_quality is not None:
            teacher = show_value(row.metric, row.teacher_quality, rows=row.eval_rows)
            note = f"the teacher's {_metric(row)} is {teacher}: a share of it says nothing"
            return Tile("kept of the teacher", ABSENT, note, missing=True)
        return Tile("kept of the teacher", NOT_MEASURED, note, missing=True)
    return Tile("kept of the teacher", show_share(row.kept), f"{_metric(row)} of the student over the teacher's")


def _size_tile(row: Row) -> Tile:
    if row.parameters is None:
        return Tile("parameters", NOT_MEASURED, "the summary does not say", missing=True)
    size = f", {show_bytes(row.megabytes)}" if row.megabytes is not None else ""
    if row.smaller is None:
        return Tile("parameters", show_count(row.parameters), size.removeprefix(", "))
    teacher = show_count(row.smaller * row.parameters)
    return Tile("smaller", show_factor(row.smaller), f"{show_count(row.parameters)} of {teacher} parameters{size}")


def _time_tiles(row: Row) -> tuple[Tile, ...]:
    if not row.latency_ms:
        return (Tile("time per example", NOT_MEASURED, "latency was not measured", missing=True),)
    conditions = row.timings[0].conditions
    where = f" on {conditions.text}" if conditions.text else ""
    if "batch_1" in row.faster:
        teacher = row.teacher_ms.get("batch_1")
        times = f"{show_ms(row.latency_ms['batch_1'].mean)} ms" + (f" instead of {show_ms(teacher)}" if teacher else "")
        note = f"{times} per example, batch 1, timed in turn with the teacher{where}"
        return (Tile("faster", show_factor(row.faster["batch_1"]), note),)
    times = ", ".join(
        f"{show_ms(stat.mean)} ms at batch {name.removeprefix('batch_')}" for name, stat in row.latency_ms.items()
    )
    first = next(iter(row.latency_ms.values()))
    reason = "" if row.role == "teacher" else "; the teacher was not timed in the same round"
    return (Tile("per example", f"{show_ms(first.mean)} ms", f"{times}{where}{reason}"),)


def _gain_tile(row: Row, comparison: Comparison) -> Tile:
    if row.role == "control":
        return Tile("gain by distillation", NOT_MEASURED, "no distilled student has finished", missing=True)
    if row.gain is None:
        note = "no finished control: the same student with distill.kd_weight=0 and distill.hard_label_weight=1"
        return Tile("gain by distillation", NOT_MEASURED, note, missing=True)
    gain = row.gain
    value = show_value(row.metric, gain.mean, gain.sd, rows=comparison.eval_rows, signed=True)
    if gain.wins is not None and gain.n > 1:
        note = f"better than the same student without a teacher in {gain.wins} of {gain.n} seeds"
    elif gain.n > 1:
        note = f"over the same student without a teacher, {gain.n} seeds or more each"
    else:
        note = "over the same student without a teacher, one seed"
    return Tile("gain by distillation", value, note)


def _cautions(best: Row, comparison: Comparison) -> tuple[str, ...]:
    found = []
    gain = best.gain
    if best.quality is not None and best.quality.n == 1:
        found.append("One seed only: repeat with other values of train.seed before you rely on small differences.")
    if gain is not None and gain.mean <= 0:
        found.append("Distillation did not help here: the same student without a teacher is as good or better.")
    elif gain is not None and gain.sd is not None and gain.mean <= gain.sd:
        found.append("The gain by distillation is no larger than its spread over seeds.")
    if gain is not None and gain.differences:
        found.append(f"Student and control also differ in {', '.join(gain.differences)}.")
    if best.metric == LOSS:
        found.append(
            "Nothing trains the head of this student: the evaluation loss says how close its layers come to its "
            "teacher's, and metrics of the task say nothing yet."
        )
    rows, quality = best.eval_rows, best.quality.mean if best.quality else None
    if best.metric == "accuracy" and rows and quality is not None and 0 < quality < 1:
        error = metric_scale(best.metric) * math.sqrt(quality * (1 - quality) / rows)
        found.append(
            f"The evaluation has {rows} rows: by the choice of rows alone, accuracy is uncertain by about "
            f"± {error:.1f} points (standard error)."
        )
    unfinished = sum(not row.done for row in comparison.rows)
    if unfinished:
        what = "One run has not finished and is" if unfinished == 1 else f"{unfinished} runs have not finished and are"
        found.append(f"{what} not part of this decision.")
    return (*found, *sentences_of(best.runs), *comparison.notes)


def _without_best(comparison: Comparison) -> Decision:
    finished = [row for row in comparison.rows if row.done and row.runs]
    if any(row.quality is not None for row in finished):
        words = "The runs have finished; their evaluation losses differ in kind, so none is the best."
        return Decision(words, "", (_size_tile(finished[0]), *_time_tiles(finished[0])), comparison.notes)
    if finished:
        return Decision(
            "The runs have finished, but nothing was evaluated.",
            "Set data.eval to learn how good the students are.",
            (_size_tile(finished[0]), *_time_tiles(finished[0])),
            comparison.notes,
        )
    so_far = [row for row in comparison.rows if row.quality is not None and row.runs]
    if not so_far:
        return Decision("No run has finished yet.", "Nothing has been evaluated so far.", (), comparison.notes)
    row = max(so_far, key=lambda row: row.score)
    return Decision(
        "No run has finished yet.",
        f"Best so far: {row.name}, {_quality(row, comparison)} {_metric(row)}.",
        (),
        ("Values so far come from unfinished runs.", *comparison.notes),
    )


def _quality(row: Row, comparison: Comparison) -> str:
    if row.quality is None:
        return NOT_MEASURED
    return show_value(row.metric, row.quality.mean, row.quality.sd, rows=comparison.eval_rows)


def _metric(row: Row) -> str:
    return metric_title(row.metric).removesuffix(" %")

"""What a reader wants first: the best student, what it keeps of its teacher, and how far that can be trusted."""

from __future__ import annotations

import dataclasses

from raybrew.config.judge import LOSS
from raybrew.reports.choice import which
from raybrew.reports.comparison import Comparison
from raybrew.reports.labels import lost_labels
from raybrew.reports.numbers import (
    ABSENT,
    count_of,
    kept_share,
    metric_title,
    show_bytes,
    show_count,
    show_factor,
    show_ms,
    show_range,
    show_seconds,
    show_share,
    show_value,
)
from raybrew.reports.rows import Row
from raybrew.reports.statistics.optimism import Optimism, optimism_of
from raybrew.reports.words import (
    LABELS_ONLY,
    over_control,
    over_teacher,
    plain_metric,
    points,
    rows_text,
    serious_cautions,
    show_measured,
    untold,
)

__all__ = ["Answer", "Decision", "Tile", "decide"]

NOT_MEASURED = "not measured"
#: The best is compared with so many other configurations.
_MOST_RIVALS = 200


@dataclasses.dataclass(frozen=True)
class Tile:
    """One number of the decision; `missing` tiles say what is not known and why."""

    label: str
    value: str
    note: str
    missing: bool = False


@dataclasses.dataclass(frozen=True)
class Answer:
    """One of the four questions that a decision answers first: which, how sure, at what cost, compared with what."""

    question: str
    text: str


@dataclasses.dataclass(frozen=True)
class Decision:
    """Plain text only. `cautions` limit what the numbers say."""

    headline: str
    detail: str
    tiles: tuple[Tile, ...]
    cautions: tuple[str, ...]
    answers: tuple[Answer, ...] = ()


def decide(comparison: Comparison) -> Decision:
    """The decision that the finished runs of `comparison` support."""
    best = comparison.best
    if best is None:
        return _without_best(comparison)
    if best.role == "teacher":
        students = any(row.done and row.role != "teacher" for row in comparison.rows)
        return Decision(
            f"The teacher {best.name} reaches {_reached(best)}.",
            "The students that have finished were not evaluated." if students else "No student has finished yet.",
            (_quality_tile(best), _size_tile(best), *_time_tiles(best)),
            _cautions(best, comparison, None),
        )
    tiles = (_quality_tile(best), _kept_tile(best), _size_tile(best), *_time_tiles(best), _gain_tile(best))
    rivals = untold(best, comparison.candidates[:_MOST_RIVALS])
    measured = best.test is None and best.metric != LOSS
    optimism = optimism_of(best, comparison.candidates) if measured else None
    return Decision(
        _headline(best, bool(rivals)),
        _detail(best),
        tiles,
        _cautions(best, comparison, optimism),
        _answers(best, rivals, comparison),
    )


def _headline(best: Row, has_rivals: bool) -> str:
    word = "Chosen" if has_rivals else "Best"
    who = f"{word} student" if best.role == "student" else f"{word} control (trained without a teacher)"
    text = f"{who}: {best.name} reaches {_reached(best)}"
    if best.role == "control":
        return f"{text}."
    return f"{text}; {over_control(best) or 'without a control, what distillation adds is not known'}."


def _reached(row: Row) -> str:
    """`87.1 ± 1.2 accuracy on 4,000 test rows`."""
    return f"{show_measured(row)} {plain_metric(row.metric)} on {rows_text(row.split, row.leading_rows)}"


def _answers(best: Row, rivals: tuple[Row, ...], comparison: Comparison) -> tuple[Answer, ...]:
    return (
        Answer("Which", which(best, rivals, comparison)),
        Answer("How sure", _how_sure(best)),
        Answer("At what cost", _cost(best, comparison)),
        Answer("Compared with", _compared(best)),
    )


def _how_sure(best: Row) -> str:
    found = best.interval
    rows = rows_text(best.split, best.leading_rows)
    text = f"{show_measured(best)} {plain_metric(best.metric)} on {rows}"
    if found is not None and found.low is not None and found.high is not None:
        text = f"{show_range(best.metric, found.low, found.high, rows=found.rows)} (95 %), from "
        text += f"{count_of(found.seeds, 'seed')} and {rows}"
    if best.test is None:
        return f"{text}, used for choosing, so optimistic: expect less on new rows"
    text += ", held out, not used for choosing"
    if best.quality is None:
        return text
    return f"{text}; {show_measured(best, 'eval')} on data.eval, used for choosing{_teacher_on_both(best)}"


def _teacher_on_both(best: Row) -> str:
    """What the teacher reaches on data.eval and data.test: whether one of them is the easier set."""
    teacher = best.teacher
    if teacher is None or teacher.quality is None:
        return ""
    tested = (
        teacher.test.mean if teacher.test is not None else best.teacher_quality if best.teacher_on == "test" else None
    )
    if tested is None:
        return ""
    easy, hard = (show_value(best.metric, value, rows=best.leading_rows) for value in (teacher.quality.mean, tested))
    return f" (the teacher: {easy} there, {hard} on data.test)"


def _cost(best: Row, comparison: Comparison) -> str:
    parts = [f"{show_count(best.parameters)} parameters" if best.parameters is not None else ""]
    parts.append(show_bytes(best.megabytes) if best.megabytes is not None else "")
    parts.append(_detail(best).removeprefix("It is ").removesuffix("."))
    if best.wall_seconds is not None:
        steps = f" ({_training(best)})" if best.steps else ""
        parts.append(f"{show_seconds(best.wall_seconds.mean)} of training per seed{steps}")
    parts.append(comparison.cost)
    return "; ".join(part for part in parts if part) or "not measured"


def _compared(best: Row) -> str:
    control = over_control(best).replace(f" over {LABELS_ONLY}", "")
    same_start = best.gain is not None and not any(key.startswith("student.") for key in best.gain.differences)
    told = ["same start"] if same_start else []
    told += [_training(best.control)] if best.control is not None else []
    only = f"labels only ({', '.join(filter(None, told))})" if any(told) else "labels only"
    parts = [f"{only}: {control}" if control else "no control: distill.kd_weight=0 distill.hard_label_weight=1"]
    if best.role == "control":
        parts = []
    teacher = over_teacher(best)
    parts.append(f"teacher: {teacher}" if teacher else "the teacher was not evaluated on these rows")
    return "; ".join(parts)


def _training(row: Row) -> str:
    """`300 steps, 0.8 epochs`; empty if neither is known."""
    epochs = row.runs[0].facts.epochs if row.runs else None
    told = [count_of(row.steps, "step")] if row.steps else []
    return ", ".join([*told, *([f"{epochs:.3g} epoch{'' if epochs == 1 else 's'}"] if epochs else [])])


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


def _quality_tile(row: Row) -> Tile:
    found, rows = row.interval, rows_text(row.split, row.leading_rows)
    note = f"on {rows}" if row.split == "test" else f"chosen on these {rows}"
    if found is not None and found.half is not None:
        over = "" if found.basis == "seeds" else "rows and "
        note += f"; ±: 95 % interval over {over}{count_of(found.seeds, 'seed')}"
    if row.test is not None and row.quality is not None:
        note += f"; on data.eval (used for choosing) {show_measured(row, 'eval')}"
    title = metric_title(row.metric)
    return Tile(f"test {title}" if row.split == "test" else title, show_measured(row), note)


def _kept_tile(row: Row) -> Tile:
    if row.kept is None:
        note = "the teacher was not evaluated on these rows"
        if row.teacher_quality is not None:
            teacher = show_value(row.metric, row.teacher_quality, rows=row.leading_rows)
            note = f"the teacher's {plain_metric(row.metric)} is {teacher}: a share of it says nothing"
            return Tile("% of teacher", ABSENT, note, missing=True)
        return Tile("% of teacher", NOT_MEASURED, note, missing=True)
    note = over_teacher(row) or f"{plain_metric(row.metric)} of the student over the teacher's"
    control = row.control.on(row.teacher_on) if row.control is not None else None
    share = kept_share(control.mean, row.teacher_quality) if control is not None else None
    if share is not None:
        note += f"; labels only: {show_share(share)}"
    return Tile("% of teacher", show_share(row.kept), note)


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
    told = row.timings[0].where
    where = f" on {told}" if told else ""
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


def _gain_tile(row: Row) -> Tile:
    if row.role == "control":
        return Tile("vs labels only", NOT_MEASURED, "no distilled student has finished", missing=True)
    if row.gain is None or row.gain.interval is None:
        note = "no finished control: the same student with distill.kd_weight=0 and distill.hard_label_weight=1"
        return Tile("vs labels only", NOT_MEASURED, note, missing=True)
    found = row.gain.interval
    label = "gain by distillation" if found.shown and found.value > 0 else "vs labels only"
    note = over_control(row).split(": ", 1)[1]
    if row.gain.wins is not None and row.gain.n > 1:
        note += f"; higher in {row.gain.wins} of {count_of(row.gain.n, 'seed')}"
    value = show_value(row.metric, found.value, found.half, rows=found.rows, signed=True)
    return Tile(label, value, note)


def _cautions(best: Row, comparison: Comparison, optimism: Optimism | None) -> tuple[str, ...]:
    found = []
    if best.leading is not None and best.leading.n == 1 and best.role != "teacher":
        found.append("One seed only: intervals count the rows alone. Repeat with other values of train.seed.")
    gain = best.gain
    if gain is not None and gain.interval is not None and gain.interval.shown and gain.mean < 0:
        found.append("Distillation made it worse here: the same student trained on labels only is better.")
    if gain is not None and gain.differences:
        found.append(f"Student and control also differ in {', '.join(gain.differences)}.")
    if best.metric == LOSS:
        found.append(
            "Nothing trains the head of this student: the evaluation loss says how close its layers come to its "
            "teacher's, and metrics of the task say nothing yet."
        )
    if optimism is not None and best.quality is not None:
        found.append(_chosen_here(best, optimism))
    unfinished = sum(not row.done for row in comparison.rows)
    if unfinished:
        what = "One run has not finished and is" if unfinished == 1 else f"{unfinished} runs have not finished and are"
        found.append(f"{what} not part of this decision.")
    lost = lost_labels(best, best.control) if best.role == "student" and best.metric != LOSS else []
    return (*lost, *found, *serious_cautions(best.runs), *comparison.notes)


def _chosen_here(best: Row, optimism: Optimism) -> str:
    """That the value was chosen on its own rows, and by how much that flatters it."""
    parts = []
    for count, noun, value in (
        (optimism.num_configurations, "configuration", optimism.configurations),
        (optimism.num_checkpoints, "checkpoint", optimism.checkpoints),
    ):
        if count > 1:
            known = f"about {points(best.metric, value)}" if value is not None else "by an unknown amount"
            parts.append(f"choosing among {count_of(count, noun)} {known}")
    text = f"Chosen on these rows: {rows_text('eval', best.eval_rows)} chose what they judge"
    if parts:
        text += f", which flatters the value ({', '.join(parts)})"
    return f"{text}. Set data.test, whose rows choose nothing."


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
        f"Best so far: {row.name}, {show_measured(row)} {plain_metric(row.metric)}.",
        (),
        ("Values so far come from unfinished runs.", *comparison.notes),
    )

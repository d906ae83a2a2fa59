"""Values and differences in words. A word such as "gain" or "best" is used only where an interval excludes zero."""

from __future__ import annotations

from collections.abc import Iterable

from raybrew.records.cautions import cautions_of
from raybrew.records.runs import RunRecord
from raybrew.reports.numbers import ABSENT, PERCENT_METRICS, count_of, metric_title, show_range, show_value
from raybrew.reports.rows import Row
from raybrew.reports.statistics.evidence import Split
from raybrew.reports.statistics.intervals import Interval, difference

__all__ = [
    "LABELS_ONLY",
    "counted",
    "not_shown",
    "over_control",
    "over_teacher",
    "plain_metric",
    "points",
    "rows_text",
    "serious_cautions",
    "show_difference",
    "show_measured",
    "untold",
]

LABELS_ONLY = "the same student trained on labels only"
#: A gain may be small if the lower end of its interval is below this share of the upper end.
_SMALL = 0.1


def plain_metric(metric: str) -> str:
    """`accuracy`, `macro F1`: the name of a metric in a sentence."""
    return metric_title(metric).removesuffix(" %")


def rows_text(split: Split, rows: int | None) -> str:
    """`4,000 test rows`, `872 rows of data.eval`."""
    if split == "test":
        return count_of(rows, "test row") if rows is not None else "data.test"
    return f"{count_of(rows, 'row')} of data.eval" if rows is not None else "data.eval"


def counted(interval: Interval) -> str:
    """`872 rows, 3 seeds`: what an interval counts."""
    rows = "" if interval.rows is None else count_of(interval.rows, "row")
    return ", ".join(part for part in (rows, count_of(interval.seeds, "seed")) if part)


def show_measured(row: Row, split: Split | None = None) -> str:
    """`87.1 ± 1.2`: the value of a row with half of its interval, of a run that has not finished without."""
    split = split or row.split
    stat, found = row.on(split), row.intervals[split] if row.done else None
    if stat is None:
        return ABSENT
    rows = row.test_rows if split == "test" else row.eval_rows
    # The interval of a share ends at 0 and 1: the wider side is the honest one.
    half = None
    if found is not None and found.low is not None and found.high is not None:
        half = max(found.high - found.value, found.value - found.low)
    return show_value(row.metric, stat.mean, half, rows=rows)


def show_difference(metric: str, interval: Interval | None) -> str:
    """`+0.7 (−0.4 to +1.8)`; without the brackets where no interval is known."""
    if interval is None:
        return ABSENT
    text = show_value(metric, interval.value, rows=interval.rows, signed=True)
    if interval.low is None or interval.high is None:
        return text
    return f"{text} ({show_range(metric, interval.low, interval.high, rows=interval.rows, signed=True)})"


def not_shown(interval: Interval) -> str:
    """Why a difference is not called one."""
    if interval.basis == "unknown":
        return f"how far chance explains it is not known ({counted(interval)})"
    if interval.basis == "seeds":
        return f"an interval over {count_of(interval.seeds, 'seed')} alone, which says nothing about other rows"
    return f"no difference could be shown ({counted(interval)})"


def over_control(row: Row) -> str:
    """What a student gains over its control, as the end of a sentence; empty without one."""
    if row.gain is None or row.gain.interval is None:
        return ""
    found = row.gain.interval
    text = f"{show_difference(row.metric, found)} over {LABELS_ONLY}{_on(row, row.gain.on)}"
    if not found.shown:
        return f"{text}: {not_shown(found)}"
    if found.value < 0:
        return f"{text}: distillation made it worse"
    small = found.low is not None and found.high is not None and found.low < _SMALL * found.high
    return f"{text}: a gain{', perhaps a small one' if small else ''}"


def over_teacher(row: Row) -> str:
    """How a student stands to its teacher, as the end of a sentence; empty where that is not known."""
    found = row.over_teacher
    if found is None:
        return ""
    text = f"{show_difference(row.metric, found)}{_on(row, row.teacher_on)}"
    if not found.shown:
        return f"{text}: {not_shown(found)}"
    return f"{text}: {'beats' if found.value > 0 else 'falls short of'} its teacher"


def untold(best: Row, others: tuple[Row, ...]) -> tuple[Row, ...]:
    """Those of `others` that `best` is not shown to be better than."""
    rivals = [row for row in others if row is not best]
    found = []
    for row in rivals:
        split: Split = "test" if best.test is not None and row.test is not None else "eval"
        one, other = best.samples[split], row.samples[split]
        apart = difference(one, other, len(rivals)) if one is not None and other is not None else None
        if apart is None or not apart.shown or apart.value <= 0:
            found.append(row)
    return tuple(found)


def _on(row: Row, split: Split) -> str:
    """Names the rows of a difference where they are not those of the value beside it."""
    return "" if split == row.split else f", on {rows_text(split, row.test_rows if split == 'test' else row.eval_rows)}"


def serious_cautions(runs: Iterable[RunRecord]) -> list[str]:
    """The serious cautions of all these runs as sentences, each once."""
    texts = [each.text() for run in runs for each in cautions_of(run.summary) if each.serious]
    # Sentences begin with a dotted key, or with the name of a model.
    return list(dict.fromkeys(f"{text if text[4:5] == '.' else text[:1].upper() + text[1:]}." for text in texts))


def points(metric: str, value: float) -> str:
    """`1.3 points`, of metrics in per cent; `0.013` otherwise."""
    text = show_value(metric, value)
    return f"{text} point{'' if text == '1.0' else 's'}" if metric in PERCENT_METRICS else text

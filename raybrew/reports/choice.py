"""Which configuration was chosen, from how many, by what, and which of its seeds is shipped: in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from raybrew.config.judge import LOSS
from raybrew.reports.comparison import Comparison
from raybrew.reports.numbers import count_of, show_named, show_value
from raybrew.reports.rows import Row
from raybrew.reports.statistics.evidence import value_on
from raybrew.reports.words import rows_text

__all__ = ["which"]

#: Other configurations named in one sentence.
_NAMED = 3
#: Means that differ by less are equal.
_EQUAL = 1e-9


def which(best: Row, rivals: tuple[Row, ...], comparison: Comparison) -> str:
    """The chosen configuration, what it was chosen from, others that may be as good, and the shipped seed."""
    text = best.name
    if comparison.tried > 1 and best.role == "student":
        text += f", chosen from {comparison.tried:,} configurations on {rows_text('eval', best.eval_rows)}"
    if rivals:
        names = [row.variant if row.variant and row.label == best.label else row.name for row in rivals[:_NAMED]]
        names += [count_of(len(rivals) - _NAMED, "other")] if len(rivals) > _NAMED else []
        text += f"; {_why(best, comparison)}. Not shown to be better than {_and(names)}"
    shipped = _shipped(best, comparison)
    return f"{text}. {shipped}" if shipped else text


def _why(best: Row, comparison: Comparison) -> str:
    """What put `best` before others that may be as good."""
    mean = f"the {'lowest' if best.metric == LOSS else 'highest'} mean there"
    others = [row for row in comparison.candidates if row is not best]
    tied = [row for row in others if math.isclose(row.score, best.score, rel_tol=0, abs_tol=_EQUAL)]
    if not tied:
        return f"it has {mean}"
    alike = [row for row in tied if (row.parameters or 0) == (best.parameters or 0)]
    by = "was tried first" if alike else "has fewest parameters"
    return f"{len(tied) + 1} share {mean}, and this one {by}"


def _and(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _shipped(best: Row, comparison: Comparison) -> str:
    """Which seed the exported student is, and its own values: those of `best` are means over seeds."""
    run = comparison.shipped
    if run is None or best.leading is None or best.leading.n < 2:
        return ""
    test, judged = value_on(run, "test", best.metric), value_on(run, "eval", best.metric)
    values = [f"{show_named(best.metric, test, rows=best.test_rows)} on data.test" if test is not None else ""]
    values.append(f"{show_named(best.metric, judged, rows=best.eval_rows)} on data.eval" if judged is not None else "")
    mean = show_value(best.metric, best.leading.mean, rows=best.leading_rows)
    where = f"data.{best.split}"
    told = ", ".join(value for value in values if value)
    return f"Shipped: seed {run.seed}, {told}; the mean of {count_of(best.leading.n, 'seed')} on {where} is {mean}"

"""Cautions about a model: no better than guessing, labels in another order or taken by position, another scale."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from raybrew.data.cautions import Caution
from raybrew.data.model_cautions import (
    BetterOrder,
    OtherScale,
    RenamedOutputs,
    UnnamedOutputs,
    WeakAnswers,
    WeakCorrelation,
    WeakModel,
)
from raybrew.models.loading import ModelSource, load_config, model_labels
from raybrew.tasks.agreement import Agreement, AnswerScores, LabelCounts, NumberFit
from raybrew.tasks.base import Labels

__all__ = ["confirms_order", "model_cautions", "renamed_outputs", "unnamed_outputs", "whose"]

#: Another order is told of if chance alone would give one that fits so well this rarely.
_CHANCE = 1e-3
#: How much more often it must be right about the labels that it moves.
_CLEARLY = 1.5
#: With more labels the best order takes too long to find.
_MOST_LABELS = 2000
#: Correlation from which on numbers follow the labels, on whatever scale.
_FOLLOWS = 0.3
#: Another scale is told of if it costs this share of the labels' variance, and more than what no scale would mend.
_LOST = 0.25
_SIGMAS = 1.96


def model_cautions(
    who: str,
    source: ModelSource | None,
    agreement: Agreement | None,
    metrics: Mapping[str, float],
    labels: Labels,
    metric: str,
) -> list[Caution]:
    """What is doubtful about a model by its answers on evaluation rows, judged by `metric`.

    `who` is how sentences call it. Without a `source` (an average of models) its names are not looked at.
    """
    named = source is None or model_labels(load_config(source)) is not None
    found: list[Caution] = []
    if isinstance(agreement, LabelCounts):
        found += _label_cautions(who, agreement, labels, metric, named)
    elif isinstance(agreement, NumberFit):
        found += _number_cautions(who, agreement)
    elif isinstance(agreement, AnswerScores):
        found += _answer_cautions(who, agreement)
    elif "perplexity" in metrics and source is not None:
        vocabulary = float(load_config(source).vocab_size)
        if metrics["perplexity"] >= vocabulary:
            found.append(WeakAnswers(who, "perplexity", metrics["perplexity"], vocabulary))
    if source is not None:
        found += unnamed_outputs(who, source, labels, confirms_order(agreement))
    return found


def whose(task: str, member: str = "") -> str:
    """How sentences call a teacher of a task, by their labels."""
    name = f"the teacher {member}" if member else "the teacher"
    return f"{name} of task {task}" if task else name


def unnamed_outputs(who: str, source: ModelSource, labels: Labels, confirmed: bool = False) -> Iterator[Caution]:
    """That outputs without names are taken for the labels of the data, in their order."""
    if labels.named and len(labels) > 1 and model_labels(load_config(source)) is None:
        yield UnnamedOutputs(who, labels.names, confirmed)


def renamed_outputs(
    who: str, captured: Sequence[Sequence[str]], labels: Labels, confirmed: bool = False
) -> Iterator[Caution]:
    """That a store was captured while outputs had other names than now, for each of these."""
    for names in captured:
        if labels.names and tuple(names) != labels.names:
            yield RenamedOutputs(who, labels.names, tuple(names), confirmed)


def confirms_order(agreement: Agreement | None) -> bool:
    """Whether answers show that outputs mean the labels that they are taken for."""
    if not isinstance(agreement, LabelCounts) or not agreement.rows or better_order(agreement) is not None:
        return False
    if agreement.sets:
        _, low, _ = _set_score(agreement)
        return low > _trivial_score(agreement)
    _, low, _ = _interval(int(np.trace(agreement.matrix())), agreement.rows)
    return low > max(agreement.true) / agreement.rows


def better_order(counts: LabelCounts) -> tuple[int, ...] | None:
    """Label of each output in the order that fits best, if it is clearly better than the one in use.

    It must gain more than the best of all orders could by chance (McNemar's exact test, times the number of orders), be
    right clearly more often about the labels that move, and beat the answer that reads no text.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.special import gammaln
    from scipy.stats import binom

    size = len(counts.true)
    if not 1 < size <= _MOST_LABELS:
        return None
    matrix = counts.matrix()
    # Of equally good orders the one that moves the fewest labels.
    true, given = linear_sum_assignment(matrix * (size + 1) + np.eye(size, dtype=np.int64), maximize=True)
    order = np.empty(size, np.int64)
    order[given] = true
    moved = np.flatnonzero(order != np.arange(size))
    if not len(moved):
        return None
    gained, lost = int(matrix[order[moved], moved].sum()), int(matrix[moved, moved].sum())
    if gained < _CLEARLY * lost:
        return None
    if binom.logsf(gained - 1, gained + lost, 0.5) + gammaln(size + 1) > math.log(_CHANCE):
        return None
    hits = int(matrix[order, np.arange(size)].sum())
    if counts.sets:
        low, trivial = _set_score(counts, hits)[1], _trivial_score(counts)
    else:
        low, trivial = _interval(hits, counts.rows)[1], max(counts.true) / counts.rows
    return tuple(order.tolist()) if low > trivial else None


def _label_cautions(who: str, counts: LabelCounts, labels: Labels, metric: str, named: bool) -> Iterator[Caution]:
    if not counts.rows or len(counts.true) < 2:
        return
    matrix = counts.matrix()
    hits = int(np.trace(matrix))
    order = better_order(counts)
    name = "micro_f1" if counts.sets else "accuracy"
    if order is not None:
        after = int(matrix[list(order), np.arange(len(order))].sum())
        both = [_set_score(counts, number)[0] if counts.sets else number / counts.rows for number in (hits, after)]
        better = tuple(labels.names[index] for index in order)
        yield BetterOrder(who, labels.names, better, name, both[0], both[1], counts.rows, named, counts.unit)
    value, low, high = _set_score(counts) if counts.sets else _interval(hits, counts.rows)
    majority = _trivial_score(counts) if counts.sets else max(counts.true) / counts.rows
    chance = 1 / len(counts.true)
    label = None if counts.sets else labels.names[int(np.argmax(counts.true))]
    if not counts.sets and high < chance:
        yield WeakModel(who, name, value, low, high, "chance", chance, None, counts.rows, counts.unit)
    elif value <= majority and (metric == name or _uninformed(counts, matrix)):
        yield WeakModel(who, name, value, low, high, "majority", majority, label, counts.rows, counts.unit)


def _uninformed(counts: LabelCounts, matrix: npt.NDArray[np.int64]) -> bool:
    """Whether no more answers are right than if they had nothing to do with the labels, up to chance.

    Where another metric than accuracy counts, a good model may be right less often than the most frequent label.
    """
    expected = float(np.dot(counts.true, counts.given)) / counts.rows
    return float(np.trace(matrix)) <= expected + _SIGMAS * math.sqrt(expected)


def _interval(hits: int, rows: int) -> tuple[float, float, float]:
    """Share, and its 95 % interval by Wilson."""
    from scipy.stats import binomtest

    found = binomtest(hits, rows).proportion_ci(method="wilson")
    return hits / rows, float(found.low), float(found.high)


def _set_score(counts: LabelCounts, hits: int | None = None) -> tuple[float, float, float]:
    """Micro-F1 of label sets, and about its 95 % interval: that of a share of (true + given) / 2 labels."""
    hits = int(np.trace(counts.matrix())) if hits is None else hits
    labels = (sum(counts.true) + sum(counts.given)) / 2
    if not labels:
        return 0.0, 0.0, 0.0
    value = hits / labels
    error = _SIGMAS * math.sqrt(value * (1 - value) / labels)
    return value, value - error, value + error


def _trivial_score(counts: LabelCounts) -> float:
    """Micro-F1 of always giving the most frequent labels, of as many as are best."""
    frequent = np.sort(counts.true)[::-1].cumsum()
    given = counts.rows * np.arange(1, len(counts.true) + 1)
    return float((2 * frequent / (frequent[-1] + given)).max()) if frequent[-1] else 0.0


def _number_cautions(who: str, fit: NumberFit) -> Iterator[Caution]:
    if fit.true_sd == 0 or fit.rows < 4:
        return
    if fit.correlation is None:
        yield WeakCorrelation(who, None, 0.0, 0.0, fit.rows)
        return
    # Fisher's interval.
    centre = math.atanh(min(max(fit.correlation, -0.999999), 0.999999))
    low, high = (math.tanh(centre + sign * _SIGMAS / math.sqrt(fit.rows - 3)) for sign in (-1, 1))
    if low <= 0:
        yield WeakCorrelation(who, fit.correlation, low, high, fit.rows)
    fitted = fit.true_sd**2 * (1 - fit.correlation**2)
    lost = fit.mse - fitted
    if abs(fit.correlation) >= _FOLLOWS and lost > min(fit.true_sd**2 - fitted, max(_LOST * fit.true_sd**2, fitted)):
        slope = fit.correlation * fit.true_sd / fit.sd
        yield OtherScale(
            who,
            slope,
            fit.true_mean - slope * fit.mean,
            fit.mse,
            fitted,
            fit.true_mean,
            fit.true_sd,
            fit.mean,
            fit.sd,
            fit.rows,
        )


def _answer_cautions(who: str, scores: AnswerScores) -> Iterator[Caution]:
    if scores.guessed is None or scores.swapped is None:
        return
    if scores.swapped > 2 * max(scores.f1, scores.guessed):
        yield WeakAnswers(who, "f1", scores.f1, scores.guessed, scores.swapped)
    elif scores.f1 <= scores.guessed:
        yield WeakAnswers(who, "f1", scores.f1, scores.guessed)

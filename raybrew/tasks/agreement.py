"""How a model's answers agree with the labels of evaluation rows, in as few numbers as the checks of a model need.

Metrics say how good a model is. These numbers also say what it would be under another order of its labels, on another
scale, or if it guessed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from raybrew.tasks.base import Labels, Task, Units

__all__ = ["Agreement", "AnswerScores", "LabelCounts", "NumberFit", "agreement_from", "agreement_of"]

#: An answer score above this is no guess, so what guessing gives is not computed.
_SURELY_KNOWS = 0.2


@dataclasses.dataclass(frozen=True)
class LabelCounts:
    """Which label was given to rows, or words, of which label."""

    rows: int
    unit: str
    sets: bool
    """Whether a row has any number of labels; `cells` then counts each pair of a true and a given one."""
    true: tuple[int, ...]
    """How often each label is true."""
    given: tuple[int, ...]
    """How often each label is given."""
    cells: tuple[tuple[int, int, int], ...]
    """(true label, given label, count), where the count is not 0."""

    def matrix(self) -> npt.NDArray[np.int64]:
        """`cells` as (true labels, given labels)."""
        found = np.zeros((len(self.true), len(self.given)), np.int64)
        for true, given, count in self.cells:
            found[true, given] = count
        return found


@dataclasses.dataclass(frozen=True)
class NumberFit:
    """Predicted numbers beside true ones."""

    rows: int
    true_mean: float
    true_sd: float
    mean: float
    sd: float
    correlation: float | None
    """Pearson's; None where one side is constant."""
    mse: float


@dataclasses.dataclass(frozen=True)
class AnswerScores:
    """F1 of answers, and what other answers give; None where they were not needed."""

    f1: float
    guessed: float | None
    """By random starts and ends."""
    swapped: float | None
    """With start and end exchanged."""


Agreement = LabelCounts | NumberFit | AnswerScores


def agreement_of(task: Task, outputs: Any, units: Units, rows: Any, labels: Labels) -> Agreement | None:
    """Of outputs as `task.metrics` takes them; None for tasks without such numbers."""
    compute = _BY_KIND.get(task.kind)
    return None if compute is None else compute(task, outputs, units, rows, labels)


def agreement_from(plain: Mapping[str, Any] | None) -> Agreement | None:
    """What `dataclasses.asdict` made of an agreement, back from JSON."""
    if plain is None:
        return None
    for kind in (LabelCounts, NumberFit, AnswerScores):
        if {field.name for field in dataclasses.fields(kind)} == set(plain):
            return kind(**plain)
    raise ValueError(f"no agreement has the fields {', '.join(plain)}")


def _classes(task: Task, outputs: Any, units: Units, rows: Any, labels: Labels) -> LabelCounts:
    return _counts(np.asarray(units.values("label")), outputs.argmax(axis=-1), len(labels), "rows")


def _tags(task: Task, outputs: Any, units: Units, rows: Any, labels: Labels) -> LabelCounts:
    true = np.concatenate([np.asarray(row) for row in units.values("label")])
    given = np.concatenate([row.argmax(axis=-1) for row in outputs])
    return _counts(true, given, len(labels), "words")


def _counts(true: npt.NDArray[Any], given: npt.NDArray[Any], size: int, unit: str) -> LabelCounts:
    labelled = true >= 0
    true, given = true[labelled].astype(np.int64), given[labelled].astype(np.int64)
    places, counts = np.unique(true * size + given, return_counts=True)
    cells = zip((places // size).tolist(), (places % size).tolist(), counts.tolist(), strict=True)
    return LabelCounts(
        len(true),
        unit,
        False,
        tuple(np.bincount(true, minlength=size).tolist()),
        tuple(np.bincount(given, minlength=size).tolist()),
        tuple(cells),
    )


def _sets(task: Task, outputs: Any, units: Units, rows: Any, labels: Labels) -> LabelCounts:
    from scipy import sparse
    from scipy.special import expit

    true = np.zeros(outputs.shape, np.int64)
    for row, present in zip(true, units.values("label"), strict=True):
        row[present] = 1
    given = (expit(outputs) >= task.config.threshold).astype(np.int64)  # type: ignore[attr-defined]
    both = (sparse.csr_matrix(true).T @ sparse.csr_matrix(given)).tocoo()
    cells = sorted(zip(both.row.tolist(), both.col.tolist(), both.data.tolist(), strict=True))
    return LabelCounts(
        len(true), "rows", True, tuple(true.sum(axis=0).tolist()), tuple(given.sum(axis=0).tolist()), tuple(cells)
    )


def _numbers(task: Task, outputs: Any, units: Units, rows: Any, labels: Labels) -> NumberFit:
    true, given = np.asarray(units.values("label"), float), outputs[:, 0].astype(float)
    varied = len(true) > 1 and true.std() > 0 and given.std() > 0
    return NumberFit(
        len(true),
        float(true.mean()),
        float(true.std()),
        float(given.mean()),
        float(given.std()),
        float(np.corrcoef(true, given)[0, 1]) if varied else None,
        float(((true - given) ** 2).mean()),
    )


def _answers(task: Task, outputs: Any, units: Units, rows: Any, labels: Labels) -> AnswerScores:
    def f1(of: Any) -> float:
        return task.metrics(of, units, rows, labels)["f1"]

    value = f1(outputs)
    if value > _SURELY_KNOWS:
        return AnswerScores(value, None, None)
    rng = np.random.default_rng(0)
    guesses = [rng.standard_normal(row.shape).astype(np.float32) for row in outputs]
    return AnswerScores(value, f1(guesses), f1([row[:, ::-1] for row in outputs]))


_BY_KIND: Mapping[str, Callable[..., Agreement]] = MappingProxyType(
    {"classification": _classes, "multilabel": _sets, "regression": _numbers, "tagging": _tags, "qa": _answers}
)

"""Kinds of cautions about a model and the names of its outputs: `raybrew.pipeline.model_checks` finds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from raybrew.data.cautions import Caution, order_text

__all__ = [
    "BetterOrder",
    "OtherScale",
    "RenamedOutputs",
    "UnnamedOutputs",
    "WeakAnswers",
    "WeakCorrelation",
    "WeakModel",
]


@dataclasses.dataclass(frozen=True)
class UnnamedOutputs(Caution):
    """A model whose outputs have no names: they are taken for the labels of the data, in their order."""

    kind = "unnamed outputs"
    model: str
    names: Sequence[str]
    confirmed: bool
    """Whether its answers on evaluation rows agree with this order."""

    @property
    def serious(self) -> bool:
        return not self.confirmed

    def text(self) -> str:
        return (
            f"{self.model} does not name its outputs (LABEL_0, ...); they are taken by position: "
            f"{order_text(self.names)}; {_confirmed(self.confirmed)}"
        )


@dataclasses.dataclass(frozen=True)
class RenamedOutputs(Caution):
    """A store that was captured while the outputs had other names, or the same in another order."""

    kind = "renamed outputs"
    model: str
    names: Sequence[str]
    captured: Sequence[str]
    confirmed: bool

    @property
    def serious(self) -> bool:
        return not self.confirmed

    def text(self) -> str:
        return (
            f"{self.model} was captured with other labels: {order_text(self.captured, self.names)} then, "
            f"{order_text(self.names, self.captured)} now; stored outputs are used in the present order; "
            f"{_confirmed(self.confirmed)}"
        )


@dataclasses.dataclass(frozen=True)
class BetterOrder(Caution):
    """Another order of the labels fits a model's answers clearly better than the one in use."""

    kind = "better order"
    model: str
    names: Sequence[str]
    better: Sequence[str]
    metric: str
    value: float
    better_value: float
    of: int
    named: bool = True
    """Whether the model itself names its outputs."""
    unit: str = "rows"

    def text(self) -> str:
        fix = "id2label in its config.json and the labels of the rows" if self.named else "the order of task.labels"
        return (
            f"{self.model}: the order of its labels looks wrong: {order_text(self.names, self.better)} gives "
            f"{_metric(self.metric)} {100 * self.value:.1f} %, {order_text(self.better, self.names)} would give "
            f"{100 * self.better_value:.1f} % ({self.of:,} evaluation {self.unit}); check {fix}"
        )


@dataclasses.dataclass(frozen=True)
class WeakModel(Caution):
    """A model that is no better than one which does not read the text."""

    kind = "weak model"
    model: str
    metric: str
    value: float
    low: float
    high: float
    """95 % interval of `value`."""
    baseline: str
    """`chance`, or `majority`: always giving the answer `label` (None: the most frequent labels)."""
    baseline_value: float
    label: str | None
    of: int
    unit: str = "rows"

    def text(self) -> str:
        label = "the most frequent labels" if self.label is None else repr(self.label)
        rival = "chance" if self.baseline == "chance" else f"always answering {label}"
        below = "is below" if self.high < self.baseline_value else "is not above"
        return (
            f"{self.model}: {_metric(self.metric)} {100 * self.value:.1f} % (95 % interval {100 * self.low:.1f} to "
            f"{100 * self.high:.1f}, {self.of:,} evaluation {self.unit}) {below} {rival}, which gives "
            f"{100 * self.baseline_value:.1f} %"
        )


@dataclasses.dataclass(frozen=True)
class WeakCorrelation(Caution):
    """Numbers that do not follow the labels, or go against them."""

    kind = "weak correlation"
    model: str
    value: float | None
    """Pearson's correlation; None where one side is constant."""
    low: float
    high: float
    of: int

    def text(self) -> str:
        if self.value is None:
            return f"{self.model} gives the same number to all {self.of:,} evaluation rows"
        what = "falls as the labels rise: correlation" if self.high < 0 else "shows no correlation with the labels:"
        return (
            f"{self.model} {what} {self.value:.2f} (95 % interval {self.low:.2f} to {self.high:.2f}, "
            f"{self.of:,} evaluation rows)"
        )


@dataclasses.dataclass(frozen=True)
class OtherScale(Caution):
    """Numbers that follow the labels on another scale."""

    kind = "other scale"
    model: str
    slope: float
    intercept: float
    mse: float
    fitted_mse: float
    label_mean: float
    label_sd: float
    mean: float
    sd: float
    of: int
    rows: str = "evaluation"

    def text(self) -> str:
        return (
            f"{self.model} uses another scale than the labels: its numbers are {self.mean:.2f} ± {self.sd:.2f}, the "
            f"labels {self.label_mean:.2f} ± {self.label_sd:.2f} (mse {self.mse:.3g}); "
            f"{self.slope:.3g} x number {'-' if self.intercept < 0 else '+'} {abs(self.intercept):.3g} would fit them "
            f"with mse {self.fitted_mse:.3g} ({self.of:,} {self.rows} rows)"
        )


@dataclasses.dataclass(frozen=True)
class WeakAnswers(Caution):
    """Answers (question answering) or tokens (masked language models) no better than guesses."""

    kind = "weak answers"
    model: str
    metric: str
    value: float
    guessed: float
    """What guessing gives, on the same rows."""
    swapped: float | None = None
    """What exchanging start and end gives."""

    def text(self) -> str:
        if self.swapped is not None:
            return (
                f"{self.model}: start and end of its answers look exchanged: {_metric(self.metric)} "
                f"{100 * self.value:.1f} % as they are, {100 * self.swapped:.1f} % the other way round"
            )
        value, guessed = (
            (f"{self.value:,.0f}", f"{self.guessed:,.0f}")
            if self.metric == "perplexity"
            else (f"{100 * self.value:.1f} %", f"{100 * self.guessed:.1f} %")
        )
        return f"{self.model} is no better than guessing: {_metric(self.metric)} {value}, guessing gives {guessed}"


def _confirmed(confirmed: bool) -> str:
    if confirmed:
        return "its answers on evaluation rows agree with that"
    return "no evaluation confirms it"


def _metric(metric: str) -> str:
    return metric.replace("_", " ")

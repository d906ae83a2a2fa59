"""`data.augment`: new rows for the transfer set, made of those that are there."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

from pydantic import Field

from raybrew.config.base import MAX_SEED, Many, Section
from raybrew.config.kinds import task_spec
from raybrew.errors import Problem

__all__ = ["AUGMENT_OPTIONS", "AugmentConfig", "check_augment"]

#: `data.augment.kind` -> the options that it reads beside those that all kinds have.
AUGMENT_OPTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "masked_lm": ("p", "model", "top_k"),
        "masking": ("p", "mask"),
        "deleting": ("p",),
        "n_gram_sampling": ("probabilities", "lengths"),
        "short_disorder": ("probabilities",),
        "long_disorder": ("p", "span"),
    }
)
_OWN = tuple(dict.fromkeys(option for options in AUGMENT_OPTIONS.values() for option in options))
_DEFAULT_SHARES = {"masked_lm": 0.4}
_DEFAULT_PROBABILITIES = {"n_gram_sampling": (0.2, 0.2, 0.2, 0.2, 0.2), "short_disorder": (0.9, 0.1, 0.0, 0.0, 0.0)}


class AugmentConfig(Section):
    """Copies of rows with other words. They have no labels: the teacher's outputs are their targets.

    Example:
        >>> raybrew.Augment(kind="masking", copies=2)
        Augment(kind='masking', copies=2)
    """

    kind: Literal["masked_lm", "masking", "deleting", "n_gram_sampling", "short_disorder", "long_disorder"]
    """`masked_lm`: words replaced by what a masked language model guesses in their place (TinyBERT); or a token helper
    of TextBrewer."""
    copies: int = Field(default=1, ge=1, le=1000)
    """Copies of each row, of which those that equal it or an earlier one are left out. TinyBERT takes 20."""
    of: Literal["train", "unlabeled", "both"] = "train"
    """Which rows are copied."""
    sides: Literal["both", "text", "text_pair"] = "both"
    """Of pairs: which of the two texts changes."""
    seed: int = Field(default=0, ge=0, le=MAX_SEED)
    """Seed of all choices; with the row's content and the number of the copy it decides them."""
    p: float | None = Field(default=None, ge=0, le=1)
    """Probability that a word is changed (of `long_disorder`: that a span begins). Not set: 0.4 for `masked_lm`, else
    0.1."""
    model: str | None = None
    """Of `masked_lm`: folder or hub name of any masked language model."""
    top_k: int = Field(default=15, ge=1, le=1000)
    """Of `masked_lm`: a word is replaced by one of the so many best candidates."""
    mask: str = Field(default="[MASK]", min_length=1)
    """Of `masking`: what replaces a word; the teacher's mask token."""
    probabilities: Many[float] | None = None
    """Of `n_gram_sampling`: those of `lengths`. Of `short_disorder`: that three words abc stay, or become bac, cba,
    cab, bca."""
    lengths: Many[int] = (1, 2, 3, 4, 5)
    """Of `n_gram_sampling`: lengths in words of the span that is kept."""
    span: float = Field(default=20, gt=0, le=1e6)
    """Of `long_disorder`: words of the span whose halves change places; up to 1 it is its share of the text."""

    @property
    def share(self) -> float:
        """`p`, or its default for this kind."""
        return _DEFAULT_SHARES.get(self.kind, 0.1) if self.p is None else self.p

    @property
    def odds(self) -> tuple[float, ...]:
        """`probabilities`, or their default for this kind."""
        return _DEFAULT_PROBABILITIES.get(self.kind, ()) if self.probabilities is None else self.probabilities


def check_augment(task: Any, data: Any) -> list[Problem]:
    """What does not fit in `data.augment` for tasks of this kind."""
    augment = data.augment
    if augment is None:
        return []
    why = task_spec(task.kind).no_augment
    if why:
        return [Problem("data.augment", f"given for task.kind {task.kind!r}: {why}", "conflict")]
    read = AUGMENT_OPTIONS[augment.kind]
    problems = [
        Problem(f"data.augment.{name}", f"given for kind {augment.kind!r}, which reads {', '.join(read)}", "unused")
        for name in _OWN
        if name not in read and getattr(augment, name) != AugmentConfig.model_fields[name].default
    ]
    if augment.kind == "masked_lm" and augment.model is None:
        problems.append(
            Problem("data.augment.model", "required: a masked language model (folder or hub name)", "required")
        )
    wanted = {"n_gram_sampling": len(augment.lengths), "short_disorder": 5}.get(augment.kind)
    if wanted is not None and (
        len(augment.odds) != wanted or min(augment.odds, default=0) < 0 or abs(sum(augment.odds) - 1) > 1e-6
    ):
        allowed = f"allowed: {wanted} probabilities that sum to 1"
        problems.append(Problem("data.augment.probabilities", f"given {list(augment.odds)}; {allowed}"))
    if min(augment.lengths, default=0) < 1:
        problems.append(
            Problem("data.augment.lengths", f"given {list(augment.lengths)}; allowed: lengths of at least 1")
        )
    if augment.sides != "both" and data.columns.text_pair is None:
        problems.append(
            Problem("data.augment.sides", f"given {augment.sides!r}, but rows are no pairs of texts", "unused")
        )
    if augment.of != "train" and data.unlabeled is None:
        problems.append(
            Problem("data.augment.of", f"given {augment.of!r}, but data.unlabeled names no source", "required")
        )
    return problems

"""Tagging schemes: how B-, I-, E-, S- and O mark spans of words. Checks, conversion and the set of tags they imply."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

__all__ = ["Span", "all_tags", "bio_of_iob1", "broken_rule", "spans_of"]

_OUTSIDE = "O"
_PREFIXES = {"bio": "BI", "iob1": "BI", "bioes": "BIES"}


class Span(NamedTuple):
    """Words `start` to `end` (exclusive) of one type."""

    type: str
    start: int
    end: int


def broken_rule(tags: Sequence[str], scheme: str) -> str | None:
    """The first rule of `scheme` that `tags` break, with the word where they do; None if they keep all."""
    prefixes = _PREFIXES[scheme]
    previous = _OUTSIDE
    for place, tag in enumerate((*tags, _OUTSIDE)):
        at_end = place == len(tags)
        prefix, _, kind = tag.partition("-")
        if tag != _OUTSIDE and (prefix not in tuple(prefixes) or not kind):
            allowed = ", ".join(f"{letter}-TYPE" for letter in prefixes)
            return f"tag {tag!r} of word {place + 1} is none of {scheme.upper()} ({allowed}, O)"
        where = "the end" if at_end else f"word {place + 1} ({tag})"
        before, _, kind_before = previous.partition("-")
        if scheme == "bio" and prefix == "I" and (before not in ("B", "I") or kind_before != kind):
            return (
                f"BIO: {where} must follow B-{kind} or I-{kind}, not {previous if place else 'the start'}; "
                "if spans may begin with I-, set task.scheme=iob1"
            )
        if scheme == "bioes":
            inside = before in ("B", "I")
            if inside and (prefix not in ("I", "E") or kind != kind_before):
                return f"BIOES: {previous} must be followed by I-{kind_before} or E-{kind_before}, not by {where}"
            if not inside and prefix in ("I", "E"):
                return f"BIOES: {where} must follow B-{kind} or I-{kind}, not {previous if place else 'the start'}"
        previous = tag
    return None


def bio_of_iob1(tags: Sequence[str]) -> tuple[str, ...]:
    """IOB1 (B- only where a span touches one of its own type) as BIO."""
    result, previous = [], _OUTSIDE
    for tag in tags:
        prefix, _, kind = tag.partition("-")
        begins = prefix == "I" and previous.partition("-")[2] != kind
        result.append(f"B-{kind}" if begins else tag)
        previous = tag
    return tuple(result)


def all_tags(names: Iterable[str], scheme: str) -> tuple[str, ...]:
    """O, then every tag of every type in `names`, types in alphabetical order.

    Rows that happen to have no I-X must not make a model that cannot say it.
    """
    kinds = sorted({name.partition("-")[2] for name in names if name != _OUTSIDE})
    letters = _PREFIXES["bio" if scheme == "iob1" else scheme]
    return (_OUTSIDE, *(f"{letter}-{kind}" for kind in kinds for letter in letters))


def spans_of(tags: Sequence[str]) -> list[Span]:
    """Spans as seqeval reads them (and conlleval before it): also from tags of a model, which may break the rules."""
    from seqeval.metrics.sequence_labeling import get_entities

    return [Span(kind, start, end + 1) for kind, start, end in get_entities(list(tags))]

"""What a published method is to an experiment: a row of plain values. Imports nothing of raybrew."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["Figure", "Method"]


@dataclasses.dataclass(frozen=True)
class Figure:
    """One published result: the student, the task with its metric and part, and the value as printed."""

    student: str
    task: str
    value: str

    def __str__(self) -> str:
        return f"{self.student}, {self.task}: {self.value}"


@dataclasses.dataclass(frozen=True)
class Method:
    """One published method.

    `distill` are the keys of that section which it sets where a file does not. `starts` are keys of `student` that the
    paper chose: a method never sets them, so that methods are compared from one start. `differs` says in which way
    ours is not the paper's.
    """

    summary: str
    distill: Mapping[str, Any]
    paper: str = ""
    authors: str = ""
    arxiv: str = ""
    starts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    figures: tuple[Figure, ...] = ()
    differs: str = ""

    @property
    def source(self) -> str:
        """`Jiao et al., arXiv:1909.10351`, empty for what has no paper."""
        return ", ".join(part for part in (self.authors, self.arxiv and f"arXiv:{self.arxiv}") if part)

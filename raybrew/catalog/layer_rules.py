"""Rules that choose layers: those that a match compares, and those that a student starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

__all__ = ["LAYER_RULES", "OLD_INIT_RULES", "START_RULES", "LayerRule", "Pairs"]

#: (student layer, teacher layer) in order; 0 are the embeddings.
Pairs = list[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class LayerRule:
    """Which teacher layer belongs to which layer of a student, for any two depths."""

    summary: str
    pairs: Callable[[int, int], Pairs]  #: f(student layers, teacher layers)
    starts: bool = True  #: names a teacher layer for every layer of the student, so that it can start from them
    deeper: bool = False  #: holds for students that are deeper than their teacher as well


#: Name -> rule. A match takes all of them or a list of [student, teacher] pairs.
LAYER_RULES: Mapping[str, LayerRule] = MappingProxyType(
    {
        "even": LayerRule(
            "student layer i with teacher layer round(i * teacher depth / student depth), embeddings included "
            "(TinyBERT, DistilBERT)",
            lambda student, teacher: [(i, round(i * teacher / student)) for i in range(student + 1)],
        ),
        "first": LayerRule(
            "the student's layers with the teacher's first ones, in order",
            lambda student, teacher: [(i, i) for i in range(1, student + 1)],
        ),
        "last": LayerRule(
            "the student's layers with the teacher's last ones, in order",
            lambda student, teacher: [(i, teacher - student + i) for i in range(1, student + 1)],
        ),
        "last_inner": LayerRule(
            "as `last`, but without the last layer of each (PKD-last)",
            lambda student, teacher: [(i, teacher - student + i) for i in range(1, student)],
            starts=False,
        ),
        "skip": LayerRule(
            "student layer i with teacher layer i * (teacher depth // student depth), the last left out (PKD-skip)",
            lambda student, teacher: [(i, i * (teacher // student)) for i in range(1, student)],
            starts=False,
        ),
        "stride": LayerRule(
            "student layer i with teacher layer 1 + (i - 1) * (teacher depth // student depth): 1, 3, 5, ... for half "
            "of the layers",
            lambda student, teacher: [(i, 1 + (i - 1) * (teacher // student)) for i in range(1, student + 1)],
        ),
        "final": LayerRule(
            "only the last layer of each", lambda student, teacher: [(student, teacher)], starts=False, deeper=True
        ),
    }
)

#: Names that older files give for rules of `student.init_layers`. They mean what they meant there.
OLD_INIT_RULES: Mapping[str, str] = MappingProxyType({"skip": "stride"})

#: Rules that a student can start by.
START_RULES = tuple(name for name, rule in LAYER_RULES.items() if rule.starts)

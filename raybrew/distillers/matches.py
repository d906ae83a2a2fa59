"""Match rules: which student layer is compared with which teacher layer, for any two depths. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from raybrew.config.distill import MatchConfig
from raybrew.config.problems import Problem, raise_problems
from raybrew.signals import Signal

__all__ = ["LayerMatch", "pair_layers", "resolve_matches"]


@dataclasses.dataclass(frozen=True)
class LayerMatch:
    """One loss between one layer of the student and one of the teacher; 0 is the embedding output."""

    loss: str
    student: Signal
    teacher: Signal
    weight: float
    projection: str

    @property
    def name(self) -> str:
        """Name in logs and errors: `hidden_mse.1-2` compares student layer 1 with teacher layer 2."""
        return f"{self.loss}.{self.student.layer}-{self.teacher.layer}"


def pair_layers(rule: str | Sequence[Sequence[int]], student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """(student layer, teacher layer) pairs of a rule, or the given pairs. `raybrew list matches` explains the rules."""
    if not isinstance(rule, str):
        return [(int(pair[0]), int(pair[1])) for pair in rule]
    if rule == "even":
        return [(i, round(i * teacher_layers / student_layers)) for i in range(student_layers + 1)]
    if rule == "last":
        return [(i, teacher_layers - student_layers + i) for i in range(1, student_layers + 1)]
    if rule == "skip":
        return [(i, i * (teacher_layers // student_layers)) for i in range(1, student_layers)]
    if rule == "final":
        return [(student_layers, teacher_layers)]
    raise ValueError(f"unknown rule {rule!r}")


def resolve_matches(
    matches: Sequence[MatchConfig], student_layers: int, teacher_layers: int, kind: str = "hidden"
) -> tuple[LayerMatch, ...]:
    """All layer pairs of all matches; ConfigError names every pair that points outside a model."""
    problems: list[Problem] = []
    resolved: list[LayerMatch] = []
    for index, match in enumerate(matches):
        key = f"distill.matches.{index}.layers"
        if isinstance(match.layers, str) and student_layers > teacher_layers:
            problems.append(
                Problem(
                    key,
                    f"rule {match.layers!r} needs a student no deeper than its teacher; the student has "
                    f"{student_layers} layers, the teacher {teacher_layers}: list the pairs instead",
                )
            )
            continue
        pairs = pair_layers(match.layers, student_layers, teacher_layers)
        if not pairs:
            problems.append(
                Problem(key, f"rule {match.layers!r} pairs no layers of a student with {student_layers} layers")
            )
        for student, teacher in pairs:
            if student > student_layers:
                problems.append(Problem(key, f"student layer {student} does not exist; allowed: 0..{student_layers}"))
            elif teacher > teacher_layers:
                problems.append(Problem(key, f"teacher layer {teacher} does not exist; allowed: 0..{teacher_layers}"))
            elif match.weight > 0:
                resolved.append(
                    LayerMatch(match.loss, Signal(kind, student), Signal(kind, teacher), match.weight, match.projection)
                )
    raise_problems("distill.matches", problems)
    return tuple(resolved)

"""Match rules: which student layer is compared with which teacher layer, for any two depths. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from raybrew.config.distill import MatchConfig
from raybrew.config.match_names import match_set
from raybrew.config.problems import Problem, raise_problems
from raybrew.signals import Signal

__all__ = ["LayerMatch", "pair_layers", "resolve_matches"]


@dataclasses.dataclass(frozen=True)
class LayerMatch:
    """One loss between one layer of the student and one of the teacher; hidden 0 is the embedding output."""

    loss: str
    student: Signal
    teacher: Signal
    weight: float
    projection: str

    @property
    def name(self) -> str:
        """Name in logs and errors: `hidden_mse.1-2` compares student layer 1 with teacher layer 2, `b.` before it says whose."""
        name = f"{self.loss}.{self.student.layer}-{self.teacher.layer}"
        return name if self.teacher.teacher is None else f"{self.teacher.teacher}.{name}"


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
    matches: Sequence[MatchConfig], student_layers: int, teacher_depth: int | Mapping[str, int]
) -> tuple[LayerMatch, ...]:
    """All layer pairs of all matches; ConfigError names every pair that points outside a model or comes twice.

    `teacher_depth` is the number of the teacher's layers, or of each of several teachers' by name. Rules leave out the embeddings for losses on attention, whose layers begin with 1.
    """
    problems: list[Problem] = []
    resolved: dict[str, LayerMatch] = {}
    for index, match in enumerate(matches):
        key = f"distill.matches.{index}"
        # Which names there are was checked with the configuration.
        teacher_layers = teacher_depth if isinstance(teacher_depth, int) else teacher_depth[match.teacher or ""]
        problem = _unfit_rule(match, student_layers, teacher_layers)
        if problem is not None:
            problems.append(Problem(f"{key}.{problem[0]}", problem[1]))
            continue
        first = 1 if match.feature == "attention" else 0
        pairs = pair_layers(match.layers, student_layers, teacher_layers)
        if isinstance(match.layers, str):
            pairs = [pair for pair in pairs if min(pair) >= first]
        if not pairs:
            problems.append(
                Problem(
                    f"{key}.layers",
                    f"rule {match.layers!r} pairs no layers of a student with {student_layers} layers",
                )
            )
        for student, teacher in pairs:
            for side, layer, depth in (("student", student, student_layers), ("teacher", teacher, teacher_layers)):
                if not first <= layer <= depth:
                    problems.append(
                        Problem(f"{key}.layers", f"{side} layer {layer} does not exist; allowed: {first}..{depth}")
                    )
                    break
            else:
                found = LayerMatch(
                    match.loss,
                    Signal(match.feature, student),
                    Signal(match.feature, teacher, match.teacher),
                    match.weight,
                    match.projection,
                )
                if found.name in resolved:
                    problems.append(
                        Problem(f"{key}.layers", f"{found.name} is matched twice; keep one, with the weight of both")
                    )
                elif match.weight > 0:
                    resolved[found.name] = found
    raise_problems("distill.matches", problems)
    return tuple(resolved.values())


def _unfit_rule(match: MatchConfig, student_layers: int, teacher_layers: int) -> tuple[str, str] | None:
    """Key and words if a rule or name cannot be meant for these two depths."""
    named = match_set(match.preset) if match.preset is not None else None
    if named is not None and named.depth != student_layers:
        return "preset", (
            f"given {match.preset!r}, which is for students of {named.depth} layers, but the student has "
            f"{student_layers}; {{loss: {match.loss}, layers: even}} is for any depth"
        )
    if isinstance(match.layers, str) and student_layers > teacher_layers:
        return "layers", (
            f"rule {match.layers!r} needs a student no deeper than its teacher; the student has {student_layers} "
            f"layers, the teacher {teacher_layers}: list the pairs instead"
        )
    return None

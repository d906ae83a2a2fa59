"""Match rules: which student layer is compared with which teacher layer, for any two depths. Imports no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from raybrew.catalog.layer_rules import LAYER_RULES, Pairs
from raybrew.catalog.match_names import match_set
from raybrew.catalog.signals import KINDS
from raybrew.config.matches import MatchConfig
from raybrew.config.problems import raise_problems
from raybrew.errors import Problem
from raybrew.models.shapes import layer_pairs
from raybrew.signals import VECTOR_KINDS, Signal

__all__ = ["LayerMatch", "pair_layers", "resolve_matches"]


@dataclasses.dataclass(frozen=True)
class LayerMatch:
    """One loss between one layer of the student and one of the teacher; hidden 0 is the embedding output.

    `keys`: queries are related to the keys of the same layer, instead of vectors to themselves. `heads`: into how many
    relation heads `relation_kl` cuts both sides, None for the teacher's number.
    """

    loss: str
    student: Signal
    teacher: Signal
    weight: float
    projection: str
    keys: bool = False
    heads: int | None = None
    per: str = ""  #: what it counts where no table says so: of a function of the user's, and of modules

    @property
    def name(self) -> str:
        """Name in logs and errors: `hidden_mse.1-2` compares student layer 1 with teacher layer 2.

        `b.` before it says that it is of teacher b.
        """
        owner = "" if self.teacher.teacher is None else f"{self.teacher.teacher}."
        if self.student.module is not None:
            return f"{owner}{self.loss.rpartition(':')[2]}.{self.student.module}-{self.teacher.module}"
        if self.is_own:
            function = f"{owner}{self.loss.rpartition(':')[2]}_{self.student.kind}"
            return function if self.student.layer is None else f"{function}.{self.student.layer}-{self.teacher.layer}"
        if self.student.layer is None:
            return f"{owner}{self.loss}"
        relation = ""
        if self.student.kind in VECTOR_KINDS:
            relation = "_attention" if self.keys else f"_{self.student.kind}"
        return f"{owner}{self.loss}{relation}.{self.student.layer}-{self.teacher.layer}"

    @property
    def is_own(self) -> bool:
        """Whether the loss is a function of the user's, `package.module:function`."""
        return ":" in self.loss

    @property
    def student_signals(self) -> tuple[Signal, ...]:
        """What the student is asked for: one signal, or the queries and keys of a layer."""
        return (self.student, dataclasses.replace(self.student, kind="key")) if self.keys else (self.student,)

    @property
    def teacher_signals(self) -> tuple[Signal, ...]:
        """What the teacher is asked for, as for the student."""
        return (self.teacher, dataclasses.replace(self.teacher, kind="key")) if self.keys else (self.teacher,)


def pair_layers(
    rule: str | Sequence[Sequence[int]], student_layers: int, teacher_layers: int, key: str = "layers"
) -> Pairs:
    """(student layer, teacher layer) pairs of a rule, or the given pairs. `raybrew list matches` explains the rules."""
    if isinstance(rule, str):
        return layer_pairs(rule, student_layers, teacher_layers, key)
    return [(int(pair[0]), int(pair[1])) for pair in rule]


def resolve_matches(
    matches: Sequence[MatchConfig],
    student_layers: int,
    teacher_depth: int | Mapping[str, int],
    section: str = "distill",
) -> tuple[LayerMatch, ...]:
    """All layer pairs of all matches; ConfigError names every pair that points outside a model or comes twice.

    `teacher_depth` is the number of the teacher's layers, or of each of several teachers' by name; `section` is the
    dotted key of what has the matches. Rules leave out the
    embeddings for what belongs to attention, whose layers begin with 1.
    """
    problems: list[Problem] = []
    resolved: dict[str, LayerMatch] = {}
    for index, match in enumerate(matches):
        key = f"{section}.matches.{index}"
        # Which names there are was checked with the configuration.
        teacher_layers = teacher_depth if isinstance(teacher_depth, int) else teacher_depth[match.teacher or ""]
        if match.student_module is not None:
            student, teacher = (Signal("module", module=name) for name in (match.student_module, match.teacher_module))
            found = LayerMatch(match.loss, student, teacher, match.weight, match.projection, per=match.per or "")
            if found.name in resolved:
                problems.append(
                    Problem(key, f"{found.name} is matched twice; keep one, with both weights", "duplicate")
                )
            elif match.weight > 0:
                resolved[found.name] = found
            continue
        problem = _unfit_rule(match, student_layers, teacher_layers)
        if problem is not None:
            problems.append(Problem(f"{key}.{problem[0]}", problem[1], "unfit"))
            continue
        first = match.first_layer
        pairs: list[tuple[int | None, int | None]] = [(None, None)]
        if first is not None:
            given = pair_layers(match.layers, student_layers, teacher_layers, f"{key}.layers")
            if isinstance(match.layers, str):
                given = [pair for pair in given if min(pair) >= first]
            if not given:
                problems.append(
                    Problem(
                        f"{key}.layers",
                        f"rule {match.layers!r} pairs no layers of a student with {student_layers} layers",
                        "unfit",
                    )
                )
            beyond = _beyond(given, first, student_layers, teacher_layers)
            problems += [Problem(f"{key}.layers", words, "unfit") for words in beyond.values()]
            pairs = [pair for pair in given if pair not in beyond]
        for found in (found for pair in pairs for found in _matches_of(match, *pair)):
            if found.name in resolved:
                problems.append(
                    Problem(f"{key}.layers", f"{found.name} is matched twice; keep one, with both weights", "duplicate")
                )
            elif match.weight > 0:
                resolved[found.name] = found
    raise_problems(f"{section}.matches", problems)
    return tuple(resolved.values())


def _matches_of(match: MatchConfig, student: int | None, teacher: int | None) -> Iterator[LayerMatch]:
    """One match, or one for each relation, between two layers."""
    if match.compares != "qkv":
        yield LayerMatch(
            match.loss,
            Signal(match.compares, student),
            Signal(match.compares, teacher, match.teacher),
            match.weight,
            match.projection,
            per=(match.per or KINDS[match.compares].per) if match.is_own else "",
        )
        return
    for relation in match.relations:
        keys = relation == "attention"
        kind = "query" if keys else relation
        yield LayerMatch(
            match.loss,
            Signal(kind, student),
            Signal(kind, teacher, match.teacher),
            match.weight,
            match.projection,
            keys,
            match.relation_heads,
        )


def _beyond(
    pairs: Sequence[tuple[int, int]], first: int, student_layers: int, teacher_layers: int
) -> dict[tuple[int, int], str]:
    """Pairs that point outside a model, and how."""
    problems: dict[tuple[int, int], str] = {}
    for pair in pairs:
        for side, layer, depth in zip(("student", "teacher"), pair, (student_layers, teacher_layers), strict=True):
            if not first <= layer <= depth:
                problems.setdefault(pair, f"{side} layer {layer} does not exist; allowed: {first}..{depth}")
    return problems


def _unfit_rule(match: MatchConfig, student_layers: int, teacher_layers: int) -> tuple[str, str] | None:
    """Key and words if a rule or name cannot be meant for these two depths."""
    named = match_set(match.preset) if match.preset is not None else None
    if named is not None and named.depth != student_layers:
        return "preset", (
            f"given {match.preset!r}, which is for students of {named.depth} layers, but the student has "
            f"{student_layers}; {{loss: {match.loss}, layers: even}} is for any depth"
        )
    rule = LAYER_RULES.get(match.layers) if isinstance(match.layers, str) else None
    if rule is not None and not rule.deeper and student_layers > teacher_layers:
        return "layers", (
            f"rule {match.layers!r} needs a student no deeper than its teacher; the student has {student_layers} "
            f"layers, the teacher {teacher_layers}: list the pairs instead"
        )
    return None

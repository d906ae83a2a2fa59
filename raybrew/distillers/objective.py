"""The objective: every loss term of every way to train, with what each asks of teacher and student.

A term has a sum and a count; sums are divided by counts once a step, over all micro-batches and workers. Counts follow
from masks alone. In experiments the masks are those of the inputs, so that a step's denominators are known before its
first forward pass; where masks come out of an adaptor, so do the counts.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raybrew.catalog.losses import MATCH_LOSSES, LossEntry
from raybrew.catalog.projections import PROJECTIONS
from raybrew.config.distill import DistillConfig
from raybrew.config.outside import load_outside
from raybrew.distillers.emd import emd_terms
from raybrew.distillers.matches import LayerMatch
from raybrew.distillers.signal_terms import Batch, KDOnSignals, LabelsOnSignals, MatchOnSignals
from raybrew.errors import LossError
from raybrew.losses.own import OwnLoss
from raybrew.losses.term import LossTerm, Per, count_items
from raybrew.models.shapes import TeacherDims
from raybrew.signals import LOGITS, PAIR_KINDS, Signal, sorted_signals
from raybrew.tasks.heads import ClassHead, Head

__all__ = ["Batch", "Objective", "StageTerms", "TermSpec", "build_objective", "in_stages"]

#: What the count of a term is taken from: compared logits, labelled items, or rows, tokens, pairs of the inputs.
COUNT_KEYS = ("logits", "labels", "row", "token", "pair")


@dataclasses.dataclass(frozen=True)
class TermSpec:
    """One term: `compute(student, teacher, batch)` gives its LossTerm.

    In experiments `compute` takes signals, signals and a Batch, and its count is that of `count_key`. Elsewhere it
    takes what the adaptors made of the models' outputs, and `count_key` is None: the count is known when it returns.
    """

    name: str
    weight: float
    count_key: str | None
    compute: Callable[[Any, Any, Any], LossTerm]
    schedule: Callable[[float], float] | None = None  #: progress of training in [0, 1] -> factor on the weight
    temperature: Callable[[float], float] | None = None  #: progress -> temperature, of the KD loss


@dataclasses.dataclass(frozen=True)
class StageTerms:
    """What is learnt in one stage of training, and what its terms ask for."""

    terms: tuple[TermSpec, ...]
    student_request: frozenset[Signal]
    teacher_request: frozenset[Signal]
    projections: frozenset[str] = frozenset()  #: names of the modules that they train or move


class Objective(nn.Module):
    """Weighted loss terms, and the modules that some of them train or move: projections, weights of layers.

    In a training of several stages (`in_stages`) terms and requests are those of the stage that was last entered.
    """

    def __init__(
        self,
        terms: tuple[TermSpec, ...],
        student_request: frozenset[Signal],
        teacher_request: frozenset[Signal],
        projections: Mapping[str, nn.Module],
        head: Head | None = None,
    ) -> None:
        super().__init__()
        self.head = head or ClassHead()
        self.stages: tuple[StageTerms, ...] = (
            StageTerms(terms, student_request, teacher_request, frozenset(projections)),
        )
        self.stage = 0
        self.projections = nn.ModuleDict(projections)

    def enter(self, stage: int) -> None:
        """From now on, the terms of this stage, counted from 0."""
        self.stage = stage

    @property
    def terms(self) -> tuple[TermSpec, ...]:
        return self.stages[self.stage].terms

    @property
    def student_request(self) -> frozenset[Signal]:
        """What this stage asks of the student."""
        return self.stages[self.stage].student_request

    @property
    def teacher_request(self) -> frozenset[Signal]:
        """What this stage asks of the teacher."""
        return self.stages[self.stage].teacher_request

    @property
    def teacher_union(self) -> frozenset[Signal]:
        """What the teacher is asked for in all stages together."""
        return frozenset(sorted_signals(signal for stage in self.stages for signal in stage.teacher_request))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(term.name for term in self.terms)

    @property
    def uses_all_parameters(self) -> bool:
        """Whether every parameter of student and projections gets a gradient in every stage.

        All of the student's do if some term reads the logits.
        """
        everything = set(self.projections)
        return all(LOGITS in stage.student_request and stage.projections == everything for stage in self.stages)

    def counts(self, batch: Batch) -> Tensor:
        """Items of each of COUNT_KEYS in `batch`, float64 (5,)."""
        inputs = batch["attention_mask"] * batch["logits_mask"].unsqueeze(-1)
        values = [
            self.head.num_compared(batch),
            self.head.num_labelled(batch),
            *(count_items(per, inputs) for per in (Per.ROW, Per.TOKEN, Per.PAIR)),
        ]
        return torch.stack([value.to(torch.float64) for value in values])

    def denominators(self, counts: Tensor) -> list[float]:
        """The count of each term in a step with these summed `counts`."""
        by_key = dict(zip(COUNT_KEYS, counts.tolist(), strict=True))
        return [by_key[term.count_key] for term in self.terms if term.count_key is not None]

    @property
    def has_schedules(self) -> bool:
        """Whether some weight changes during training."""
        return any(term.schedule is not None for term in self.terms)

    def weights(self, progress: float) -> list[float]:
        """The weight of each term at this share of all steps."""
        return [term.weight * (term.schedule(progress) if term.schedule else 1.0) for term in self.terms]

    def start_step(self, progress: float) -> None:
        """Take the temperature that holds at this share of all steps, where one changes."""
        for term in self.terms:
            if term.temperature is not None:
                term.compute.set_temperature(term.temperature(progress))  # type: ignore[attr-defined]  # the KD term

    def forward(self, student: Any, teacher: Any, batch: Any) -> list[LossTerm]:
        """The terms over one micro-batch, in the order of `names`."""
        return [term.compute(student, teacher, batch) for term in self.terms]


def in_stages(stages: Sequence[Objective]) -> Objective:
    """One objective for a training of several stages, in the first of them. Each was built after the one before it."""
    projections = {name: module for stage in stages for name, module in stage.projections.items()}
    first, *_ = stages
    whole = Objective(first.terms, first.student_request, first.teacher_request, projections, first.head)
    whole.stages = tuple(stage.stages[0] for stage in stages)
    return whole


def build_objective(
    config: DistillConfig,
    matches: tuple[LayerMatch, ...] = (),
    student_dims: Mapping[Signal, int] | None = None,
    teacher_dims: Mapping[Signal, int] | None = None,
    *,
    seed: int = 0,
    teacher_heads: int | Mapping[str, int] | None = None,
    head: Head | None = None,
    dims: tuple[TeacherDims, TeacherDims] | None = None,
    earlier: Mapping[str, nn.Module] | None = None,
) -> Objective:
    """The objective of an experiment, or of one of its stages: KD on logits, labels, layer matches, `config.emd`.

    `head` is that of the task; by default one class per row.
    `student_dims` and `teacher_dims` give the width of each signal that `matches` names, and the number of heads of
    each attention signal; `teacher_heads` (of several teachers: by name) are the relation heads of
    matches that set none. LossError names a match in which these differ where the loss needs them equal and no
    projection helps, or that cannot be cut into its heads. `dims` of student and teacher are for `config.emd`.
    Projections start from `seed`, but those of a name among the modules of `earlier` stages go on from there.
    """
    earlier = earlier or {}
    generator = torch.Generator().manual_seed(seed)
    head = head or ClassHead()
    student_dims, teacher_dims = student_dims or {}, teacher_dims or {}
    terms: list[TermSpec] = []
    student: set[Signal] = set()
    teacher: set[Signal] = set()
    projections: dict[str, nn.Module] = {}
    if config.kd_weight > 0:
        terms.append(TermSpec("kd", config.kd_weight, "logits", KDOnSignals(config, head)))
        student.add(LOGITS)
        teacher.add(LOGITS)
    if config.hard_label_weight > 0:
        terms.append(TermSpec("label", config.hard_label_weight, "labels", LabelsOnSignals(head)))
        student.add(LOGITS)
    for match in matches:
        entry, sizes = _entry_of(match), (student_dims[match.student], teacher_dims[match.teacher])
        heads = teacher_heads.get(match.teacher.owner) if isinstance(teacher_heads, Mapping) else teacher_heads
        loss = _loss_of(match, entry, sizes, heads)
        projection = _projection_for(match, *sizes, entry, generator)
        key = match.name.replace(".", "_")
        if projection is not None:
            projection = projections[key] = _carried(key, projection, earlier)
        terms.append(
            TermSpec(match.name, match.weight, match.per or entry.per, MatchOnSignals(match, loss, projection))
        )
        student.update(match.student_signals)
        teacher.update(match.teacher_signals)
    if config.emd is not None and dims is not None:
        found, modules = emd_terms(config.emd, *dims, generator, earlier)
        for each in found:
            terms.append(TermSpec(each.name, each.weight, each.per, each.compute))
            student.update(each.student)
            teacher.update(each.teacher)
        projections |= modules
    requests = frozenset(sorted_signals(student)), frozenset(sorted_signals(teacher))
    return Objective(tuple(terms), *requests, projections, head)


def _loss_of(match: LayerMatch, entry: LossEntry, sizes: tuple[int, int], heads: int | None) -> Callable[..., LossTerm]:
    """The function of a match, which knows into how many heads it cuts what it is given."""
    if match.is_own:
        return OwnLoss(match.name, load_outside(match.loss, "distill.matches"), entry.per)
    if entry.needs == "qkv":
        return functools.partial(entry.load(), num_heads=_relation_heads(match, *sizes, heads))
    return entry.load()


def _carried(name: str, module: nn.Module, earlier: Mapping[str, nn.Module]) -> nn.Module:
    """The module of this name in an earlier stage, else `module`; LossError where they are of different make."""
    there = earlier.get(name, module)
    if str(there) != str(module):
        raise LossError(
            f"distill.stages: {name} has the projection {module} in one stage and {there} in an earlier one, but goes "
            "on from stage to stage; give both the same"
        )
    return there


def _entry_of(match: LayerMatch) -> LossEntry:
    """The table's row of a match, or one for a function of the user's, which takes any two widths."""
    if not match.is_own:
        return MATCH_LOSSES[match.loss]
    return LossEntry(match.loss, match.loss, match.per, match.student.kind, match.loss, same_width=False)


def _relation_heads(match: LayerMatch, student_dim: int, teacher_dim: int, teacher_heads: int | None) -> int:
    heads = match.heads or teacher_heads or 1
    if student_dim % heads or teacher_dim % heads:
        common = math.gcd(student_dim, teacher_dim)
        allowed = ", ".join(str(number) for number in range(1, common + 1) if common % number == 0)
        given = f"relation_heads={heads}" if match.heads else f"the teacher's {heads} heads"
        raise LossError(
            f"{match.name}: {given} do not divide the student's width {student_dim} and the teacher's {teacher_dim}; "
            f"set relation_heads to one of {allowed}"
        )
    return heads


def _projection_for(
    match: LayerMatch, student_dim: int, teacher_dim: int, entry: LossEntry, generator: torch.Generator
) -> nn.Module | None:
    if entry.needs == "qkv":
        return None
    if match.student.kind in PAIR_KINDS:
        if entry.same_width and student_dim != teacher_dim:
            raise LossError(
                f"{match.name}: the student has {student_dim} attention heads, the teacher {teacher_dim}, and "
                f"{match.loss} compares head by head; use attention_mse_sum, attention_ce_mean or relation_kl"
            )
        return None
    kind = match.projection
    if kind == "auto":
        kind = "linear" if entry.same_width and student_dim != teacher_dim else "none"
    if kind != "none":
        projection: nn.Module = PROJECTIONS[kind].load()(student_dim, teacher_dim, generator=generator)
        return projection
    if entry.same_width and student_dim != teacher_dim:
        raise LossError(
            f"{match.name}: the student's layer is {student_dim} wide, the teacher's {teacher_dim}, and {match.loss} "
            "needs equal widths; use projection: auto"
        )
    return None

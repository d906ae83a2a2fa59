"""The objective that a DistillationConfig describes, over what adaptors return.

Heads of logits are found by looking at one batch; all else stands in the configuration. What compares is the
objective's own: `KDTerm`, `MatchTerm` and `EMDLayers`, which experiments feed with signals.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from raybrew.distillers.emd import EMDLayers
from raybrew.distillers.objective import TermSpec
from raybrew.distillers.terms import KDTerm, MatchTerm
from raybrew.errors import ConfigError, LossError
from raybrew.losses.averaging import average_logits
from raybrew.losses.masking import Layers
from raybrew.losses.term import LossTerm
from raybrew.textbrewer.adaptors import Adapted, StudentInputs, Wanted
from raybrew.textbrewer.configs import CustomMatch, DistillationConfig, IntermediateMatch
from raybrew.textbrewer.presets import (
    as_tuple,
    custom_loss,
    kd_loss,
    match_loss,
    temperature_of,
    weight_schedule,
)

__all__ = ["EMDTerms", "Ensemble", "TermFactory", "label_spec"]

log = logging.getLogger(__name__)

Compute = Callable[[Adapted, Sequence[Adapted], StudentInputs], LossTerm]


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """How several teachers' logits become one."""

    weights: tuple[float, ...] | None = None
    average: Literal["logits", "probabilities"] = "logits"

    def __call__(self, logits: Sequence[Tensor], temperature: float) -> Tensor:
        if len(logits) == 1:
            return logits[0].detach()
        return average_logits(logits, self.weights, average=self.average, temperature=temperature)


@dataclasses.dataclass(frozen=True)
class EMDTerms:
    """All hidden layers of the student against all of the teacher; the embeddings, layer 0, apart."""

    layers: EMDLayers
    student: Sequence[tuple[str, int]]
    teacher: Sequence[tuple[str, int]]
    weight: float

    def embeddings(self, student: Adapted, teachers: Sequence[Adapted], inputs: StudentInputs) -> LossTerm:
        given, wanted = student.layers[self.student[0]], teachers[0].layers[self.teacher[0]]
        return self.layers.embeddings(given, wanted, student.inputs_mask)

    def distance(self, student: Adapted, teachers: Sequence[Adapted], inputs: StudentInputs) -> LossTerm:
        given = [student.layers[layer] for layer in self.student[1:]]
        wanted = [teachers[0].layers[layer] for layer in self.teacher[1:]]
        return self.layers.distance(given, wanted, student.inputs_mask)


class TermFactory:
    """The terms of one configuration. Names are looked up here: ConfigError if one is unknown."""

    def __init__(
        self,
        config: DistillationConfig,
        matches: Sequence[IntermediateMatch],
        projections: Sequence[nn.Module | None],
        custom: Sequence[CustomMatch],
        ensemble: Ensemble,
        needs_logits: bool,
        emd: EMDTerms | None = None,
    ) -> None:
        self.config = config
        self.matches = matches
        self.projections = projections
        self.custom = custom
        self.ensemble = ensemble
        self.needs_logits = needs_logits
        self.emd = emd
        self.losses = [match_loss(match.loss, f"intermediate_matches.{i}.loss") for i, match in enumerate(matches)]
        self.custom_losses = [custom_loss(match.loss, f"custom_matches.{i}.loss") for i, match in enumerate(custom)]
        self.kd_loss, self.kd_is_own, self.kd_options = kd_loss(
            config.kd_loss_type, config.scale_by_temperature_squared
        )
        self.rule, self.rule_is_own = temperature_of(config.temperature_scheduler)
        self.kd_schedule = weight_schedule("kd_loss_weight_scheduler", config.kd_loss_weight_scheduler)
        self.label_schedule = weight_schedule("hard_label_weight_scheduler", config.hard_label_weight_scheduler)
        if ensemble.average == "probabilities" and config.kd_loss_type == "mse":
            raise ConfigError("average='probabilities' leaves no logits for kd_loss_type='mse' to compare; use 'ce'")

    def wanted(self, side: str, teacher: int = 0) -> Wanted:
        """The layers that matches compare, of the student (`side` S) or of a teacher (T)."""
        found: dict[tuple[str, int], str] = {}
        if self.emd is not None:
            found |= dict.fromkeys(self.emd.student if side == "S" else self.emd.teacher, "emd")
        for match in self.matches:
            if side == "S" or match.teacher == teacher:
                for layer in as_tuple(match.layer_S if side == "S" else match.layer_T):
                    found.setdefault((match.feature, layer), match.name)
        return found

    def specs(self, task: str, student: Adapted, teachers: Sequence[Adapted]) -> list[tuple[TermSpec, str]]:
        """Each term with TextBrewer's name for it in TensorBoard, for what a first batch gave.

        LossError if there is nothing to train on, or a head lacks its counterpart.
        """
        config = self.config
        prefix = f"{task}." if task else ""
        found: list[tuple[TermSpec, str]] = []

        def add(name: str, tag: str, weight: float, compute: Compute, schedule: Any = None) -> None:
            taken = sum(spec.name == f"{prefix}{name}" or spec.name.startswith(f"{prefix}{name}#") for spec, _ in found)
            name = f"{prefix}{name}" + (f"#{taken + 1}" if taken else "")
            if weight == 0:
                compute = _without_gradient(compute)
                schedule = None
            tag = f"{task}/{tag}" if task else tag
            found.append((TermSpec(name, weight, None, compute, schedule), tag))

        for head in range(self._num_heads(student, teachers)):
            name = "kd" if len(student.logits) == 1 else f"kd.{head}"
            term = KDTerm(
                prefix + name, self.kd_loss, config.temperature, self.kd_options, self.rule, config.probability_shift
            )
            select = not (self.kd_is_own and self.rule_is_own)
            compute = _KDHead(head, term, self.ensemble, select)
            add(name, "unweighted_kd_loss", config.kd_loss_weight, compute, self.kd_schedule)
        for match, projection, (loss, same_width) in zip(self.matches, self.projections, self.losses, strict=True):
            sides = ("-".join(map(str, as_tuple(layer))) for layer in (match.layer_S, match.layer_T))
            tag = f"unweighted_{match.feature}_{match.loss}_{'_'.join(sides)}"
            term_of = MatchTerm(prefix + match.name, loss, projection)
            add(match.name, tag, match.weight, _LayerPair(match, term_of, same_width))
        for index, (custom, loss_of) in enumerate(zip(self.custom, self.custom_losses, strict=True)):
            term_of = MatchTerm(f"{prefix}custom.{index}", loss_of, custom.proj_func)
            add(f"custom.{index}", f"unweighted_custom_{index}", custom.weight, _TapPair(index, term_of))
        if self.emd is not None:
            add("emd", "unweighted_hidden_hidden_mse_emd", self.emd.weight, self.emd.distance)
            add("embeddings", "unweighted_embedding_hidden_mse", self.emd.weight, self.emd.embeddings)
        if student.losses:
            weight = config.hard_label_weight
            add("label", "unweighted_hard_label_loss", weight, _labels, self.label_schedule)
        if not any(spec.weight for spec, _ in found):
            raise LossError(
                f"{prefix}nothing to train on: no term has a weight; adaptors return logits for the KD loss, losses "
                "for hard_label_weight, layers for intermediate_matches"
            )
        return found

    def _num_heads(self, student: Adapted, teachers: Sequence[Adapted]) -> int:
        sides = {"adaptor_S": student} | {f"adaptor_T{i or ''}": teacher for i, teacher in enumerate(teachers)}
        counts = {name: len(side.logits) for name, side in sides.items()}
        if all(counts.values()) and len(set(counts.values())) == 1:
            return counts["adaptor_S"]
        words = ", ".join(f"{name} {count}" for name, count in counts.items())
        if self.needs_logits or all(counts.values()):
            raise LossError(f"kd: adaptors must return as many logits as each other; they returned: {words}")
        if any(counts.values()) and self.config.kd_loss_weight > 0:
            log.warning("no KD loss, because only some adaptors return logits: %s", words)
        return 0


def label_spec(model: Adapted) -> tuple[TermSpec, str]:
    """The one term of a BasicTrainer, the sum of the adaptor's losses; LossError if it returned none."""
    if not model.losses:
        raise LossError("adaptor: it returned no 'losses', so there is nothing to train on")
    return TermSpec("label", 1.0, None, _labels), "unweighted_hard_label_loss"


class _KDHead:
    """KD between one head of student logits and the same head of the teachers'."""

    def __init__(self, head: int, term: KDTerm, ensemble: Ensemble, select: bool) -> None:
        self.head = head
        self.term = term
        self.ensemble = ensemble
        self.select = select  #: functions of others know no mask: they are given the unmasked items alone

    def __call__(self, student: Adapted, teachers: Sequence[Adapted], inputs: StudentInputs) -> LossTerm:
        head, name = self.head, self.term.name
        if len(student.logits) <= head or any(len(teacher.logits) <= head for teacher in teachers):
            raise LossError(f"{name}: an adaptor returned fewer logits than in the first batch")
        given, mask = student.logits[head], student.mask_of(head)
        wanted, masks = [teacher.logits[head] for teacher in teachers], [teacher.mask_of(head) for teacher in teachers]
        for each in wanted:
            if each.dim() != given.dim() or each.shape[-1] != given.shape[-1]:
                raise LossError(
                    f"{name}: student logits {tuple(given.shape)} and teacher logits {tuple(each.shape)} differ in "
                    "classes; both models need the same classes"
                )
        labels = self._labels(student)
        one_mask = mask if mask is not None else next((m for m in masks if m is not None), None)
        if one_mask is not None and (
            self.select or not all(_same(given, one_mask, w, m) for w, m in zip(wanted, masks, strict=True))
        ):
            given, labels = _selected(given, mask, labels)
            wanted = [_selected(each, each_mask, None)[0] for each, each_mask in zip(wanted, masks, strict=True)]
            for each in wanted:
                if len(each) != len(given):
                    raise LossError(
                        f"{name}: logits_mask leaves {len(given)} positions to the student and {len(each)} to the "
                        "teacher; they are compared in order, so both need as many"
                    )
            one_mask = None
        return self.term(given, self.ensemble(wanted, self.term.temperature), one_mask, labels)

    def _labels(self, student: Adapted) -> Tensor | None:
        if not self.term.shift:
            return None
        if len(student.labels) != len(student.logits):
            raise LossError(
                f"{self.term.name}: probability_shift needs labels for each of the {len(student.logits)} logits, but "
                f"adaptor_S returned {len(student.labels)}"
            )
        return student.labels[self.head]


def _same(given: Tensor, mask: Tensor, wanted: Tensor, other: Tensor | None) -> bool:
    """Whether two sides mean the same positions, so that one mask serves both."""
    if given.shape != wanted.shape:
        return False
    return other is None or other is mask or bool(torch.equal(other != 0, mask != 0))


def _selected(logits: Tensor, mask: Tensor | None, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Unmasked items (items, classes) and their labels."""
    if mask is None:
        chosen = torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
    else:
        chosen = mask.to(logits.device) != 0
    if labels is not None and labels.shape == chosen.shape:
        labels = labels[chosen]
    return logits[chosen], labels


class _LayerPair:
    """A match between layers that the adaptors listed."""

    def __init__(self, match: IntermediateMatch, term: MatchTerm, same_width: bool) -> None:
        self.match = match
        self.term = term
        self.same_width = same_width

    def __call__(self, student: Adapted, teachers: Sequence[Adapted], inputs: StudentInputs) -> LossTerm:
        given = _pick(student, self.match.feature, self.match.layer_S)
        teacher = teachers[self.match.teacher]
        wanted = _pick(teacher, self.match.feature, self.match.layer_T)
        if self.match.proj is not None:
            self._check_projection(given, wanted)
        return self.term(given, wanted, student.inputs_mask, teacher.inputs_mask)

    def _check_projection(self, given: Layers, wanted: Layers) -> None:
        kind, student_dim, teacher_dim = (self.match.proj or ())[:3]
        for layer, other in zip(as_tuple(given), as_tuple(wanted), strict=True):
            if layer.shape[-1] != student_dim or (self.same_width and other.shape[-1] != teacher_dim):
                raise LossError(
                    f"{self.term.name}: proj {[kind, student_dim, teacher_dim]} does not fit student "
                    f"{tuple(layer.shape)} and teacher {tuple(other.shape)}; it is [kind, student dim, teacher dim]"
                )


class _TapPair:
    """A match between the outputs of two modules."""

    def __init__(self, index: int, term: MatchTerm) -> None:
        self.index = index
        self.term = term

    def __call__(self, student: Adapted, teachers: Sequence[Adapted], inputs: StudentInputs) -> LossTerm:
        given, wanted = student.taps[self.index], teachers[0].taps[self.index]
        try:
            return self.term(given, wanted, student.inputs_mask, teachers[0].inputs_mask)
        except RuntimeError as error:  # torch's word for shapes that do not fit
            shapes = f"student {tuple(given.shape)} and teacher {tuple(wanted.shape)}"
            raise LossError(f"{self.term.name}: {shapes}: {error}") from error


def _labels(student: Adapted, teachers: Sequence[Adapted], inputs: StudentInputs) -> LossTerm:
    """The adaptor's losses, means that they are, times the items they are means of.

    Those are the labels >= 0 where the adaptor returns labels (of unmasked positions, where it masks logits too), else
    the examples of the micro-batch.
    """
    if not student.losses:
        raise LossError("label: adaptor_S returned no losses, as it did in the first batch")
    value = torch.stack([loss.float().mean() for loss in student.losses]).sum()
    if student.labels:
        labelled = student.labels[0] >= 0
        mask = student.logits_masks[0] if student.logits_masks else None
        if mask is not None and mask.shape == labelled.shape:
            labelled = labelled & (mask != 0)
        count = labelled.sum().float()
        # A mean over no label is NaN in torch; nothing is to be learnt from it.
        return LossTerm(torch.where(count > 0, value, 0.0) * count, count)
    count = torch.full((), float(inputs.num_rows), device=value.device)
    return LossTerm(value * count, count)


def _without_gradient(compute: Compute) -> Compute:
    """A term that weighs nothing is only logged."""

    def logged(student: Adapted, teachers: Sequence[Adapted], inputs: StudentInputs) -> LossTerm:
        with torch.no_grad():
            term = compute(student, teachers, inputs)
        return LossTerm(term.sum.detach(), term.count)

    return logged


def _pick(side: Adapted, feature: str, layer: int | tuple[int, ...]) -> Layers:
    if isinstance(layer, tuple):
        return [side.layers[feature, each] for each in layer]
    return side.layers[feature, layer]

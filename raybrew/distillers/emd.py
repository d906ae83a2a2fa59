"""BERT-EMD (arXiv:2010.06133): all student layers against all teacher layers, by weights that training moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from raybrew.catalog.projections import PROJECTIONS
from raybrew.config.terms import EMDConfig
from raybrew.data.loader import Payload
from raybrew.errors import LossError
from raybrew.losses.attention import attention_mse
from raybrew.losses.emd import PairLoss, emd, layer_costs, transport, uniform_weights, updated_weights
from raybrew.losses.features import hidden_mse
from raybrew.losses.term import LossTerm, Per, count_items
from raybrew.models.shapes import TeacherDims
from raybrew.signals import Signal

__all__ = ["EMDLayers", "EMDTerm", "emd_terms"]


class EMDLayers(nn.Module):
    """Weights of the layers of both sides, float64, uniform at first; `distance` uses and moves them.

    `projections` map the student's width to the teacher's, one for the embeddings and each layer; none where widths are
    equal.
    """

    config: EMDConfig | None = None  #: what they were made for, in experiments

    def __init__(
        self,
        depths: tuple[int, int],
        projections: Sequence[nn.Module] = (),
        update: bool = True,
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        self.update = update
        self.temperature = temperature
        self.student_weights: Tensor
        self.teacher_weights: Tensor
        self.register_buffer("student_weights", torch.from_numpy(uniform_weights(depths[0])))
        self.register_buffer("teacher_weights", torch.from_numpy(uniform_weights(depths[1])))
        self.projections = nn.ModuleList(projections)

    def _project(self, index: int, layer: Tensor) -> Tensor:
        projected: Tensor = self.projections[index](layer) if len(self.projections) else layer
        return projected

    def embeddings(self, given: Tensor, wanted: Tensor, mask: Tensor | None) -> LossTerm:
        """The embedding outputs are matched apart, as they have no weight among the layers."""
        return hidden_mse(self._project(0, given), wanted, mask)

    def distance(
        self,
        given: Sequence[Tensor],
        wanted: Sequence[Tensor],
        mask: Tensor | None,
        loss: PairLoss = hidden_mse,
        of_all_ranks: Per | None = None,
    ) -> LossTerm:
        """Earth mover's distance between student and teacher layers at the present weights, which then move.

        With `of_all_ranks`, what `loss` counts, costs are means over the micro-batches of all ranks, which so have one
        flow and equal weights; all ranks must call it. An evaluation, in which each rank has batches of its own, takes
        the flow of its batch. The host waits for the device once.
        """
        given = [self._project(index, layer) for index, layer in enumerate(given, 1)]
        costs = layer_costs(given, wanted, mask, loss=loss)
        if of_all_ranks is not None and mask is not None and self.training and dist.is_initialized():
            costs = _mean_of_ranks(costs, count_items(of_all_ranks, mask))
        parts = (costs.double().flatten(), self.teacher_weights, self.student_weights)
        numbers = torch.cat(parts).cpu().numpy()
        flat, *weights = np.split(numbers, np.cumsum([part.numel() for part in parts[:-1]]))
        matrix = flat.reshape(costs.shape)
        if of_all_ranks is not None and not np.isfinite(matrix).all():
            # No flow to find; the loop tells of the step and its examples.
            term = loss(given[0], wanted[0], mask)
            return LossTerm(term.sum * float("nan"), term.count)
        flow = transport(matrix, *weights)
        term = emd(given, wanted, mask, flow=flow, loss=loss)
        # Only a step that trains moves the weights, not one that looks or counts.
        if self.update and torch.is_grad_enabled() and self.training:
            new = updated_weights(flow, matrix, *weights, temperature=self.temperature)
            self.teacher_weights.copy_(torch.from_numpy(new[0]), non_blocking=True)
            self.student_weights.copy_(torch.from_numpy(new[1]), non_blocking=True)
        return term


class EMDTerm(NamedTuple):
    """One term of `distill.emd`: its weight, what it counts, and `compute(student, teacher, batch)`."""

    name: str
    weight: float
    per: str
    compute: Callable[[Mapping[Signal, Tensor], Mapping[Signal, Tensor], Mapping[str, Tensor]], LossTerm]
    student: tuple[Signal, ...]
    teacher: tuple[Signal, ...]


def emd_terms(
    config: EMDConfig,
    student: TeacherDims,
    teacher: TeacherDims,
    generator: torch.Generator,
    earlier: Mapping[str, nn.Module] | None = None,
) -> tuple[list[EMDTerm], dict[str, nn.Module]]:
    """The terms of `config` for models of these sizes, and the modules that they train or move, by name.

    Modules that `earlier` stages of training have go on. LossError where widths differ without a projection, or heads
    differ, or a stage has other settings than an earlier one.
    """
    terms: list[EMDTerm] = []
    modules: dict[str, nn.Module] = {}
    depths = student.layers, teacher.layers
    if config.hidden > 0:
        layers = _carried("emd_hidden", earlier, config)
        if layers is None:
            layers = _layers(depths, _projections(config, student, teacher, generator), config)
        modules["emd_hidden"] = layers
        embeddings = (Signal("hidden", 0),)
        given, wanted = (_all_layers("hidden", depth) for depth in depths)
        terms.append(EMDTerm("emd.hidden", config.hidden, "token", _Distance(layers, given, wanted), given, wanted))
        compute = _Embeddings(layers, embeddings[0])
        terms.append(EMDTerm("emd.embeddings", config.hidden, "token", compute, embeddings, embeddings))
    if config.attention > 0:
        if student.heads != teacher.heads:
            raise LossError(
                f"distill.emd.attention: the student has {student.heads} attention heads, the teacher "
                f"{teacher.heads}, and scores are compared head by head; set it to 0"
            )
        layers = _carried("emd_attention", earlier, config) or _layers(depths, (), config)
        modules["emd_attention"] = layers
        given, wanted = (_all_layers("attention", depth) for depth in depths)
        distance = _Distance(layers, given, wanted, attention_mse, Per.PAIR)
        terms.append(EMDTerm("emd.attention", config.attention, "pair", distance, given, wanted))
    return terms, modules


def _layers(depths: tuple[int, int], projections: Sequence[nn.Module], config: EMDConfig) -> EMDLayers:
    layers = EMDLayers(depths, projections, config.update_weights, config.temperature)
    layers.config = config
    return layers


def _carried(name: str, earlier: Mapping[str, nn.Module] | None, config: EMDConfig) -> EMDLayers | None:
    """The weights of layers that an earlier stage has under this name."""
    layers = (earlier or {}).get(name)
    if not isinstance(layers, EMDLayers):
        return None
    for key in ("projection", "update_weights", "temperature"):
        if getattr(layers.config, key) != getattr(config, key):
            raise LossError(
                f"distill.stages: emd.{key} is {getattr(config, key)!r} in one stage and "
                f"{getattr(layers.config, key)!r} in an earlier one, but layer weights go on from stage to stage; give "
                "both the same"
            )
    return layers


def _all_layers(kind: str, depth: int) -> tuple[Signal, ...]:
    return tuple(Signal(kind, layer) for layer in range(1, depth + 1))


class _Distance:
    def __init__(
        self,
        layers: EMDLayers,
        student: tuple[Signal, ...],
        teacher: tuple[Signal, ...],
        loss: PairLoss = hidden_mse,
        per: Per = Per.TOKEN,
    ) -> None:
        self.layers = layers
        self.student = student
        self.teacher = teacher
        self.loss = loss
        self.per = per

    def __call__(
        self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Payload], batch: Mapping[str, Tensor]
    ) -> LossTerm:
        given = [student[signal] for signal in self.student]
        wanted = [teacher[signal].to_dense() for signal in self.teacher]
        return self.layers.distance(given, wanted, _tokens(batch), self.loss, self.per)


class _Embeddings:
    def __init__(self, layers: EMDLayers, signal: Signal) -> None:
        self.layers = layers
        self.signal = signal

    def __call__(
        self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Payload], batch: Mapping[str, Tensor]
    ) -> LossTerm:
        return self.layers.embeddings(student[self.signal], teacher[self.signal].to_dense(), _tokens(batch))


def _tokens(batch: Mapping[str, Tensor]) -> Tensor:
    return batch["attention_mask"] * batch["logits_mask"].unsqueeze(-1)


def _projections(
    config: EMDConfig, student: TeacherDims, teacher: TeacherDims, generator: torch.Generator
) -> list[nn.Module]:
    kind = config.projection
    if kind == "auto":
        kind = "none" if student.hidden == teacher.hidden else "linear"
    if kind != "none":
        build = PROJECTIONS[kind].load()
        return [build(student.hidden, teacher.hidden, generator=generator) for _ in range(student.layers + 1)]
    if student.hidden != teacher.hidden:
        raise LossError(
            f"distill.emd: the student's layers are {student.hidden} wide, the teacher's {teacher.hidden}; use "
            "projection: auto"
        )
    return []


def _mean_of_ranks(costs: Tensor, count: Tensor) -> Tensor:
    """`costs`, means over `count` items of this rank, as means over the items of all ranks."""
    count = count.double().reshape(1)
    sums = torch.cat([costs.double().flatten() * count, count])
    dist.all_reduce(sums)
    return (sums[:-1] / sums[-1].clamp_min(1.0)).reshape(costs.shape)

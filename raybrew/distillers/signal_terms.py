"""The terms of experiments: what `distillers.terms` compare, taken from signals of both models and the inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from raybrew.catalog.losses import KD_LOSSES, TEMPERATURES
from raybrew.config.distill import DistillConfig
from raybrew.config.outside import is_outside, load_outside
from raybrew.data.loader import Payload
from raybrew.distillers.matches import LayerMatch
from raybrew.distillers.terms import KDTerm, MatchTerm, temperature_rule
from raybrew.errors import LossError
from raybrew.losses.own import OwnLoss
from raybrew.losses.term import LossTerm
from raybrew.signals import LOGITS, PAIR_KINDS, Signal
from raybrew.tasks.heads import Head

__all__ = ["Batch", "KDOnSignals", "LabelsOnSignals", "MatchOnSignals"]

#: One micro-batch: `input_ids`, `attention_mask` and perhaps `token_type_ids` (batch, length); `logits_mask` (batch,),
#: 0 for rows that only pad a worker's share; `labels`, `items` and `item_mask` as the task's head takes them.
Batch = Mapping[str, Tensor]


class KDOnSignals:
    """The KD loss as a divergence: what is shown is 0 where both models agree, at any temperature.

    A cross entropy also has the teacher's entropy in it, which no student can change and which hides what is learnt.
    """

    def __init__(self, config: DistillConfig, head: Head) -> None:
        self.head = head
        options: dict[str, Any] = {"scale_by_temperature_squared": config.scale_by_temperature_squared}
        kind = head.kd_loss if config.kd_loss.kind == "auto" else config.kd_loss.kind
        schedule, rule = config.temperature_schedule, None
        if schedule is not None:
            given = {name: getattr(schedule, name) for name in TEMPERATURES[schedule.kind].options}
            rule = temperature_rule(
                schedule.kind, **{name: 1.0 if value is None else value for name, value in given.items()}
            )
        if is_outside(kind):
            loss: Callable[..., LossTerm] = OwnLoss("kd", load_outside(kind, "distill.kd_loss.kind"), "token")
        else:
            loss = KD_LOSSES[kind].load_divergence()
            options |= {name: getattr(config.kd_loss, name) for name in KD_LOSSES[kind].options}
        self.term = KDTerm("kd", loss, config.temperature, options, rule, config.probability_shift)

    def set_temperature(self, temperature: float) -> None:
        self.term.temperature = temperature

    def __call__(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Payload], batch: Batch) -> LossTerm:
        ours, theirs = student[LOGITS], teacher[LOGITS].to_dense()
        compared = self.head.compared(ours, theirs, batch)
        if compared.student.shape != compared.teacher.shape:
            raise LossError(
                f"kd: student logits {tuple(ours.shape)} and teacher logits {tuple(theirs.shape)} differ; both models "
                "need the same classes, and the same items of each row"
            )
        return self.term(*compared)


class LabelsOnSignals:
    def __init__(self, head: Head) -> None:
        self.head = head

    def __call__(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Payload], batch: Batch) -> LossTerm:
        return self.head.label_loss(student[LOGITS], batch)


class MatchOnSignals:
    def __init__(self, match: LayerMatch, loss: Callable[..., LossTerm], projection: nn.Module | None) -> None:
        self.match = match
        self.term = MatchTerm(match.name, loss, projection)

    def __call__(self, student: Mapping[Signal, Tensor], teacher: Mapping[Signal, Payload], batch: Batch) -> LossTerm:
        given = [student[signal] for signal in self.match.student_signals]
        wanted = [teacher[signal].to_dense() for signal in self.match.teacher_signals]
        mask = batch["logits_mask"]
        if self.match.student.layer is not None or (self.match.student.module is not None and given[0].dim() > 2):
            mask = batch["attention_mask"] * mask.unsqueeze(-1)
            # Attention is (batch, heads, length, length), all else (batch, length, dim).
            length = -1 if self.match.student.kind in PAIR_KINDS else 1
            for one, other in zip(given, wanted, strict=True):
                if one.shape[0] != other.shape[0] or one.shape[length] != other.shape[length]:
                    raise LossError(
                        f"{self.match.name}: student {tuple(one.shape)} and teacher {tuple(other.shape)} are not over "
                        "the same tokens"
                    )
        if len(given) == 1:
            return self.term(given[0], wanted[0], mask)
        return self.term(given, wanted, mask)

"""`distill`: what the student imitates, and how much each part weighs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from pydantic import Field, ModelWrapValidatorHandler, model_validator

from raybrew.catalog.initialisations import initialisation
from raybrew.catalog.losses import TEMPERATURES
from raybrew.catalog.methods import METHODS, Method, with_method
from raybrew.config.base import (
    MAX_COUNT,
    MAX_TEMPERATURE,
    MAX_WEIGHT,
    MIN_TEMPERATURE,
    NOT_IDENTITY,
    WHEN_SET,
    Many,
    Name,
    Section,
)
from raybrew.config.data import DataConfig
from raybrew.config.matches import MatchConfig, check_match
from raybrew.config.outside import is_outside, row_name, row_of
from raybrew.config.student import WITHOUT_LAYERS, StudentConfig
from raybrew.config.teacher import TeacherConfig
from raybrew.config.terms import EMDConfig, KDLossConfig, TemperatureScheduleConfig, TheseusConfig
from raybrew.config.train import TrainConfig
from raybrew.errors import ConfigError, Problem

__all__ = [
    "DistillConfig",
    "StageConfig",
    "check_distill",
    "check_student_layers",
    "check_unlabeled",
    "check_without_layers",
    "method_of",
    "with_matches",
]

#: Names of the catalogue, as types: what a value is checked against, and what its error lists.
if TYPE_CHECKING:
    MethodName: TypeAlias = str
else:
    MethodName = Literal[tuple(METHODS)] | row_name(Method)


def method_of(name: str) -> Method:
    """The method that `distill.method` names: a row of the catalogue, or one of the user's."""
    return row_of(METHODS, name, "distill.method", Method)


class StageConfig(Section):
    """One part of training after another. Losses that are not given here are those of `distill`.

    The learning rate warms up and falls in each stage anew, and the optimizer starts afresh.

    Example:
        >>> raybrew.Stage(share=0.7, kd_weight=0, matches=[raybrew.Match("L3_hidden_mse")])
        Stage(share=0.7, kd_weight=0.0, matches=(Match(loss='hidden_mse', preset='L3_hidden_mse'),))
    """

    name: Name | None = Field(default=None, json_schema_extra=NOT_IDENTITY)
    """What logs call it. Not set: its number."""
    share: float | None = Field(default=None, gt=0, le=1, json_schema_extra=WHEN_SET)
    """Share of the run's steps. The last stage takes what the others leave."""
    steps: int | None = Field(default=None, ge=1, le=MAX_COUNT, json_schema_extra=WHEN_SET)
    """Number of steps, in place of `share`."""
    learning_rate: float | None = Field(default=None, gt=0, le=MAX_WEIGHT, json_schema_extra=WHEN_SET)
    """In place of `train.learning_rate`."""
    temperature: float | None = Field(default=None, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE, json_schema_extra=WHEN_SET)
    """In place of `distill.temperature`; the next ones likewise."""
    kd_loss: KDLossConfig | None = Field(default=None, json_schema_extra=WHEN_SET)
    """Loss between logits."""
    kd_weight: float | None = Field(default=None, ge=0, le=MAX_WEIGHT, json_schema_extra=WHEN_SET)
    """Weight of the KD loss."""
    hard_label_weight: float | None = Field(default=None, ge=0, le=MAX_WEIGHT, json_schema_extra=WHEN_SET)
    """Weight of the loss against labels."""
    matches: Many[MatchConfig] | None = Field(default=None, json_schema_extra=WHEN_SET)
    """Losses between intermediate layers; [] for none."""
    emd: EMDConfig | None = Field(default=None, json_schema_extra=WHEN_SET)
    """All layers against all layers."""
    theseus: TheseusConfig | None = Field(default=None, json_schema_extra=WHEN_SET)
    """The student trains inside its teacher."""

    @property
    def losses(self) -> dict[str, Any]:
        """What it says in place of `distill`."""
        keys = ("temperature", "kd_loss", "kd_weight", "hard_label_weight", "matches", "emd", "theseus")
        return {key: value for key in keys if (value := getattr(self, key)) is not None}


class DistillConfig(Section):
    """Total = kd_weight * KD + hard_label_weight * label loss + sum over pairs of weight * match.

    The name of a method may stand for the section.

    Example:
        >>> raybrew.Distill(method="tinybert").parts[1].kd_weight
        1.0
    """

    short: ClassVar[str] = "method"
    method: MethodName | None = Field(default=None, json_schema_extra=NOT_IDENTITY)
    """A published method (`raybrew list methods`): it sets the keys below that are not given."""

    temperature: float = Field(default=4.0, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)
    """Temperature of both softmaxes in the KD loss."""
    temperature_schedule: TemperatureScheduleConfig | None = None
    """Temperatures around `temperature`, one per example; they depend on the other rows of the micro-batch."""
    kd_loss: KDLossConfig = KDLossConfig()
    """Loss between logits."""
    kd_weight: float = Field(default=1.0, ge=0, le=MAX_WEIGHT)
    """Weight of the KD loss."""
    hard_label_weight: float = Field(default=0.0, ge=0, le=MAX_WEIGHT)
    """Weight of the loss against labels; rows without a label do not count."""
    scale_by_temperature_squared: bool = True
    """Multiply the KD loss by T^2, so that its gradient does not shrink as T grows (arXiv 1503.02531, section
    2). Without it a sweep over temperatures changes the weight of this loss as well."""
    probability_shift: bool = False
    """Swap the teacher's largest logit with that of the true label, where the teacher errs (arXiv 1911.07471)."""
    matches: Many[MatchConfig] = ()
    """Losses between intermediate layers."""
    emd: EMDConfig | None = Field(default=None, json_schema_extra=WHEN_SET)
    """All layers against all layers; `{}` takes the defaults."""
    theseus: TheseusConfig | None = Field(default=None, json_schema_extra=WHEN_SET)
    """The student trains inside its teacher; `{}` takes the defaults. It has losses on logits and labels only."""
    stages: Many[StageConfig] = Field(default=(), json_schema_extra=WHEN_SET)
    """Parts of training with losses of their own, such as [{share: 0.7, kd_weight: 0, matches: [...]}, {}]."""

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """Only what is given: what the method says goes without saying."""
        return ((name, value) for name, value in super().__repr_args__() if name in self.model_fields_set)

    @property
    def parts(self) -> tuple[DistillConfig, ...]:
        """The losses of each stage; of all of training without stages."""
        if not self.stages:
            return (self,)
        alone = {"stages": (), "method": None}
        return tuple(self.model_copy(update=alone | stage.losses) for stage in self.stages)

    @property
    def keyed_parts(self) -> tuple[tuple[str, DistillConfig], ...]:
        """`parts`, each with the dotted key of its section."""
        if not self.stages:
            return (("distill", self),)
        return tuple((f"distill.stages.{index}", part) for index, part in enumerate(self.parts))

    @property
    def compares_layers(self) -> bool:
        """Whether anything but logits is compared with a teacher's, in any stage."""
        return any(any(match.weight for match in part.matches) or part.emd is not None for part in self.parts)

    @property
    def asks_teacher(self) -> bool:
        """Whether anything is compared with a teacher's outputs, in any stage."""
        return self.compares_layers or any(part.kd_weight > 0 for part in self.parts)

    @property
    def trains_head(self) -> bool:
        """Whether the last stage, which is judged, has a loss on the student's logits; else the task's head stays as it
        was and its metrics say nothing of what is learnt."""
        last = self.parts[-1]
        return last.kd_weight > 0 or last.hard_label_weight > 0

    @property
    def trains_in_teacher(self) -> bool:
        """Whether the student trains inside its teacher, in any stage."""
        return any(part.theseus is not None for part in self.parts)

    @model_validator(mode="wrap")
    @classmethod
    def _of_method(cls, value: Any, build: ModelWrapValidatorHandler[DistillConfig]) -> DistillConfig:
        """What the method says, under what is given; `model_fields_set` stays what is given."""
        value = cls.long_form(value)
        method = value.get("method") if isinstance(value, dict) else None
        if not isinstance(method, str) or not (method in METHODS or is_outside(method)):
            return build(value)
        try:
            row = method_of(method)
        except ConfigError:
            return build(value)  # which says what is wrong with the name
        made = build(with_method(row, value))
        object.__setattr__(made, "__pydantic_fields_set__", set(value))
        return made


def with_matches(
    distill: DistillConfig, change: Callable[[tuple[MatchConfig, ...]], tuple[MatchConfig, ...]]
) -> DistillConfig:
    """`distill` with the matches that `change` makes of its own and of those of each stage."""
    stages = tuple(
        stage if stage.matches is None else stage.model_copy(update={"matches": change(stage.matches)})
        for stage in distill.stages
    )
    return distill.model_copy(update={"matches": change(distill.matches), "stages": stages})


def check_distill(distill: DistillConfig, teacher: TeacherConfig) -> list[Problem]:
    problems = []
    for key, part in distill.keyed_parts:
        problems += _losses(key, part, teacher)
    if distill.asks_teacher and not teacher.given:
        problems.append(
            Problem("teacher.model", "required: distill.kd_weight, matches or emd ask for a teacher", "required")
        )
    schedule = distill.temperature_schedule
    if schedule is not None and schedule.gamma is not None and "gamma" not in TEMPERATURES[schedule.kind].options:
        takers = ", ".join(repr(name) for name, entry in TEMPERATURES.items() if "gamma" in entry.options)
        given = f"given {schedule.gamma:g} with kind {schedule.kind!r}; it is of {takers}"
        problems.append(Problem("distill.temperature_schedule.gamma", given, "unused"))
    # What several stages take from `distill` is told once.
    return list(dict.fromkeys(problems))


def _losses(key: str, losses: DistillConfig, teacher: TeacherConfig) -> list[Problem]:
    """Problems of what is learnt in one stage, whose section is `key`."""
    problems = []
    if losses.kd_weight == 0 and losses.hard_label_weight == 0 and not losses.compares_layers:
        problems.append(
            Problem(key, "kd_weight, hard_label_weight and all matches are 0: there is nothing to learn from", "empty")
        )
    for index, match in enumerate(losses.matches):
        problems += check_match(f"{key}.matches.{index}", match, teacher)
    if losses.emd is not None:
        if teacher.members:
            problems.append(Problem(f"{key}.emd", "given with teacher.members; it is for one teacher", "conflict"))
        if losses.emd.hidden == losses.emd.attention == 0:
            problems.append(
                Problem(f"{key}.emd", "hidden and attention are 0; set distill.emd=null to do without it", "empty")
            )
    return problems


def check_unlabeled(data: DataConfig, distill: DistillConfig) -> list[Problem]:
    problems = []
    if not distill.asks_teacher:
        problems += [
            Problem(
                f"data.{key}",
                "given, but the student learns from labels only (distill.kd_weight=0, no matches); "
                f"set data.{key}=null for a control",
                "unused",
            )
            for key in ("unlabeled", "augment")
            if getattr(data, key)
        ]
    if data.train is None and data.unlabeled is not None:
        problems += [
            Problem(
                f"{key}.hard_label_weight",
                f"given {part.hard_label_weight:g}, but there is no data.train with labels",
                "required",
            )
            for key, part in distill.keyed_parts
            if part.hard_label_weight > 0
        ]
    return problems


def check_student_layers(distill: DistillConfig, train: TrainConfig) -> list[Problem]:
    """What is not among a model's outputs is collected while a layer runs once, as it is written."""
    matches = [match for part in distill.parts for match in part.matches if match.weight > 0]
    inside = sorted({match.loss for match in matches if match.compares != "hidden"})
    if any(part.emd is not None and part.emd.attention > 0 for part in distill.parts):
        inside.append("emd.attention")
    if any(match.student_module is not None for match in matches):
        inside.append("student_module")
    if not inside:
        return []
    return [
        Problem(
            f"train.{key}",
            f"given with {', '.join(inside)} in distill.matches, which look inside layers; allowed: {key}=false, or "
            "matches on hidden states",
            "conflict",
        )
        for key in ("compile", "gradient_checkpointing")
        if getattr(train, key)
    ]


def check_without_layers(student: StudentConfig, distill: DistillConfig) -> list[Problem]:
    """What a recurrent student has none of."""
    if student.shape not in WITHOUT_LAYERS:
        return []
    problems = []
    cuts = initialisation(student.init).cuts
    if cuts or student.init_layers != "even":
        key = "init" if cuts else "init_layers"
        problems.append(
            Problem(
                f"student.{key}", f"given for {student.shape}, which has no layers of its teacher; remove it", "unused"
            )
        )
    for key, losses in distill.keyed_parts:
        problems += [
            Problem(
                f"{key}.matches.{index}",
                f"{match.loss} compares {match.compares}, but {student.shape} has no attention; allowed: losses of "
                "hidden states (layer 0 are its embeddings, 1 its outputs) and pooled ones",
                "conflict",
            )
            for index, match in enumerate(losses.matches)
            if match.weight > 0 and match.attends
        ]
        if losses.emd is not None and losses.emd.attention > 0:
            problems.append(
                Problem(f"{key}.emd.attention", f"given, but {student.shape} has no attention; set it to 0", "conflict")
            )
    return problems

"""`distill`: what the student imitates, and how much each part weighs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic import Field, ModelWrapValidatorHandler, model_validator

from raybrew.catalog.layer_rules import LAYER_RULES
from raybrew.catalog.losses import KD_LOSSES, MATCH_LOSSES, TEMPERATURES, names_of
from raybrew.catalog.match_names import MATCH_NAMES, match_set
from raybrew.catalog.methods import METHODS, Method, with_method
from raybrew.catalog.projections import PROJECTIONS
from raybrew.catalog.signals import KINDS
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
from raybrew.config.outside import FunctionName, is_outside, row_name, row_of
from raybrew.config.problems import near_match
from raybrew.errors import ConfigError
from raybrew.signals import LOGITS, VECTOR_KINDS

__all__ = [
    "DistillConfig",
    "EMDConfig",
    "KDLossConfig",
    "MatchConfig",
    "StageConfig",
    "TemperatureScheduleConfig",
    "TheseusConfig",
    "method_of",
]

#: Names of the catalogue, as types: what a value is checked against, and what its error lists.
if TYPE_CHECKING:
    KDLossName: TypeAlias = str
    MatchLossName: TypeAlias = str
    LayerRuleName: TypeAlias = str
    MethodName: TypeAlias = str
    ProjectionName: TypeAlias = str
    RelationName: TypeAlias = str
    FeatureName: TypeAlias = str
    TemperatureName: TypeAlias = str
else:
    KDLossName = Literal[("auto", *names_of(KD_LOSSES))]
    MatchLossName = Literal[names_of(MATCH_LOSSES)]
    LayerRuleName = Literal[tuple(LAYER_RULES)]
    RelationName = Literal[(*VECTOR_KINDS, "attention")]
    FeatureName = Literal[tuple(name for name in KINDS if name != LOGITS.kind)]
    ProjectionName = Literal[("auto", "none", *PROJECTIONS)]
    MethodName = Literal[tuple(METHODS)] | row_name(Method)
    TemperatureName = Literal[tuple(name for name in names_of(TEMPERATURES) if TEMPERATURES[name].options)]


def method_of(name: str) -> Method:
    """The method that `distill.method` names: a row of the catalogue, or one of the user's."""
    return row_of(METHODS, name, "distill.method", Method)


class KDLossConfig(Section):
    """The loss between student and teacher logits, and its options."""

    kind: KDLossName | FunctionName = "auto"
    """Which loss; `raybrew list losses` explains each. `auto`: ce, but bce for multilabel and mse for regression."""
    beta: float = Field(default=0.5, gt=0, lt=1)
    """Weight of the teacher in the mixture of `js`."""
    alpha: float = Field(default=0.1, gt=0, lt=1)
    """Skew of `skew_kl` and `skew_reverse_kl`: how much of the first distribution is mixed into the second."""


class TemperatureScheduleConfig(Section):
    """A temperature for each example, lower for those that are harder than the mean (arXiv 1911.07471)."""

    kind: TemperatureName
    """`flsw`: hard is where student and teacher logits point apart; `cwsm`: where the student is unsure."""
    beta: float = Field(default=1.0, gt=0, le=1000)
    """How far temperatures move from `distill.temperature`."""
    gamma: float | None = Field(default=None, gt=0, le=1000)
    """Exponent of the distance in `flsw`; not set: 1."""


class MatchConfig(Section):
    """One loss between intermediate layers, over all pairs of layers that `layers` names.

    TextBrewer's names, such as L3_hidden_mse, may stand for a whole match.
    """

    loss: MatchLossName | FunctionName
    """Which loss; `raybrew list losses` explains each."""
    layers: LayerRuleName | FunctionName | Many[Many[int]] = "even"
    """A rule (`raybrew list matches`) or [student layer, teacher layer] pairs, 0 being the embeddings."""
    weight: float = Field(default=1.0, ge=0, le=MAX_WEIGHT)
    """Weight of each pair."""
    teacher: str | None = None
    """Which of several teachers, by name; `rte` or `rte/b` of task rte among several. Not set: each task's only one."""
    projection: ProjectionName = "auto"
    """Trained map from the student's width to the teacher's; `auto`: linear where the loss needs equal widths."""
    relations: Many[RelationName] = VECTOR_KINDS
    """Of `relation_kl`: queries, keys, values with themselves (MiniLMv2); `attention` relates queries to keys."""
    relation_heads: int | None = Field(default=None, ge=1, le=4096)
    """Of `relation_kl`: heads that both widths are cut into. Not set: as many as the teacher has attention heads."""
    feature: FeatureName | None = Field(default=None, json_schema_extra=WHEN_SET)
    """Of a function of your own: what it compares. Not set: hidden."""
    per: Literal["row", "token", "pair"] | None = Field(default=None, json_schema_extra=WHEN_SET)
    """Of a function of your own: what its count counts. Not set: pairs of tokens of attention, rows of pooled, else
    tokens."""
    student_module: str | None = Field(default=None, min_length=1, json_schema_extra=WHEN_SET)
    """Compare the output of this module of the student, by its name (`bert.pooler`), instead of layers."""
    teacher_module: str | None = Field(default=None, min_length=1, json_schema_extra=WHEN_SET)
    """The module of the teacher that it is compared with; the teacher must run live."""
    preset: str | None = Field(default=None, json_schema_extra=NOT_IDENTITY)
    """TextBrewer's name, which gives `loss` and `layers`; the depth in it must be the student's."""

    @property
    def is_own(self) -> bool:
        """Whether the loss is a function of the user's, `package.module:function`."""
        return is_outside(self.loss)

    @property
    def compares(self) -> str:
        """What is compared, in the words of the table of losses."""
        if self.is_own:
            return self.feature or "hidden"
        return MATCH_LOSSES[self.loss].needs

    @property
    def first_layer(self) -> int | None:
        """Number of the first layer that has such a thing: 0 are the embeddings; None for what has no layers."""
        kind = KINDS.get(self.compares)
        return 1 if kind is None else kind.first_layer

    @property
    def attends(self) -> bool:
        """Whether what is compared belongs to attention."""
        return self.compares not in KINDS or KINDS[self.compares].attends

    @model_validator(mode="before")
    @classmethod
    def _of_name(cls, value: Any) -> Any:
        """A name alone as a match, and a match with `preset` with all that the name says."""
        if isinstance(value, str):
            value = {"preset": value}
        if not isinstance(value, dict) or not isinstance(value.get("preset"), str):
            return value
        name = value["preset"]
        found = match_set(name)
        if found is None:
            near = near_match(name, MATCH_NAMES)
            raise ValueError(f"a section of keys, or a name such as L3_hidden_mse (`raybrew list matches`){near}")
        said = {"loss": found.loss, "layers": "even"}
        for key, meant in said.items():
            if value.get(key, meant) != meant:
                raise ValueError(f"{key}: {meant}, or no {key}, beside preset: {name}")
        return value | said


class EMDConfig(Section):
    """All layers of the student against all of the teacher, by the earth mover's distance (BERT-EMD, arXiv 2010.06133).

    Layers that are cheap to match gain weight as training goes on, so that no layers need be paired.
    """

    hidden: float = Field(default=1.0, ge=0, le=MAX_WEIGHT)
    """Weight for hidden states, and for the embeddings, which are matched apart."""
    attention: float = Field(default=0.0, ge=0, le=MAX_WEIGHT)
    """Weight for attention scores; both models need as many heads."""
    projection: ProjectionName = "auto"
    """Trained map of each layer to the teacher's width; `auto`: linear where widths differ."""
    update_weights: bool = True
    """Move the weights of layers after each forward pass; they stay equal otherwise (as in TextBrewer's example)."""
    temperature: float | None = Field(default=None, ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)
    """New weights go through a softmax at this temperature; not set: proportional to inverse costs."""


class TheseusConfig(Section):
    """Layers of the student take the places of the teacher's by chance, more and more of them (arXiv 2002.02925).

    Each stands for as many teacher layers as there are for each. The teacher is frozen, without dropout; the student
    has its width, embeddings and head. Evaluated is the student alone.
    """

    start: float = Field(default=0.3, ge=0, le=1)
    """Probability of each layer to be replaced in the first step; it rises in a straight line. One always is."""
    full_at: float = Field(default=1.0, gt=0, le=1)
    """Share of the stage's steps after which all layers are replaced."""


class StageConfig(Section):
    """One part of training after another. Losses that are not given here are those of `distill`.

    The learning rate warms up and falls in each stage anew, and the optimizer starts afresh.
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
    """Total = kd_weight * KD + hard_label_weight * label loss + sum over pairs of weight * match."""

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

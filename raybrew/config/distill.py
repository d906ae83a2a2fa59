"""`distill`: what the student imitates, and how much each part weighs."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from raybrew.config.base import NOT_IDENTITY, WHEN_SET, FunctionName, Many, Section
from raybrew.config.match_names import MATCH_NAMES, match_set
from raybrew.config.problems import near_match

__all__ = ["LAYER_MAPS", "DistillConfig", "EMDConfig", "KDLossConfig", "MatchConfig", "TemperatureScheduleConfig"]

#: Rules that pair student layers with teacher layers; a list of [student, teacher] pairs does as well (0 = embeddings).
LAYER_MAPS = {
    "even": "student layer i with teacher layer i * teacher depth / student depth, embeddings included (TinyBERT)",
    "last": "the student's layers with the teacher's last ones, in order (PKD-last)",
    "skip": "student layer i with teacher layer i * (teacher depth // student depth), the last left out (PKD-skip)",
    "final": "only the last layer of each",
}


#: What a name of a loss begins with -> what it compares, first fit; all others compare hidden states.
_FEATURES: tuple[tuple[str, Literal["attention", "attention_probs", "qkv", "pooled"]], ...] = (
    ("attention_probs_", "attention_probs"),
    ("attention_", "attention"),
    ("relation_", "qkv"),
    ("pooled_", "pooled"),
)


class KDLossConfig(Section):
    """The loss between student and teacher logits, and its options."""

    kind: (
        Literal["auto", "ce", "mse", "bce", "kl", "reverse_kl", "js", "skew_kl", "skew_reverse_kl", "tv"] | FunctionName
    ) = "auto"
    """Which loss; `raybrew list losses` explains each. `auto`: ce, but bce for multilabel and mse for regression."""
    beta: float = Field(default=0.5, gt=0, lt=1)
    """Weight of the teacher in the mixture of `js`."""
    alpha: float = Field(default=0.1, gt=0, lt=1)
    """Skew of `skew_kl` and `skew_reverse_kl`: how much of the first distribution is mixed into the second."""


class TemperatureScheduleConfig(Section):
    """A temperature for each example, lower for those that are harder than the mean (arXiv 1911.07471)."""

    kind: Literal["flsw", "cwsm"]
    """`flsw`: hard is where student and teacher logits point apart; `cwsm`: where the student is unsure."""
    beta: float = Field(default=1.0, gt=0)
    """How far temperatures move from `distill.temperature`."""
    gamma: float | None = Field(default=None, gt=0)
    """Exponent of the distance in `flsw`; not set: 1."""


class MatchConfig(Section):
    """One loss between intermediate layers, over all pairs of layers that `layers` names.

    TextBrewer's names, such as L3_hidden_mse, may stand for a whole match.
    """

    loss: (
        Literal[
            "hidden_mse",
            "cos",
            "pkd",
            "gram",
            "mmd",
            "attention_mse",
            "attention_mse_sum",
            "attention_ce",
            "attention_ce_mean",
            "attention_probs_mse",
            "relation_kl",
            "pooled_mse",
            "pooled_cos",
        ]
        | FunctionName
    )
    """Which loss; `raybrew list losses` explains each."""
    layers: Literal["even", "last", "skip", "final"] | Many[Many[int]] = "even"
    """A rule (`raybrew list matches`) or [student layer, teacher layer] pairs, 0 being the embeddings."""
    weight: float = Field(default=1.0, ge=0)
    """Weight of each pair."""
    teacher: str | None = None
    """Which of several teachers, by name; `rte` or `rte/b` of task rte among several. Not set: each task's only one."""
    projection: Literal["auto", "none", "linear", "relu", "tanh"] = "auto"
    """Trained map from the student's width to the teacher's; `auto`: linear where the loss needs equal widths."""
    relations: Many[Literal["query", "key", "value", "attention"]] = ("query", "key", "value")
    """Of `relation_kl`: queries, keys, values with themselves (MiniLMv2); `attention` relates queries to keys."""
    relation_heads: int | None = Field(default=None, ge=1)
    """Of `relation_kl`: heads that both widths are cut into. Not set: as many as the teacher has attention heads."""
    feature: Literal["hidden", "attention", "attention_probs", "query", "key", "value", "pooled"] | None = Field(
        default=None, json_schema_extra=WHEN_SET
    )
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
        return ":" in self.loss

    @property
    def compares(self) -> Literal["hidden", "attention", "attention_probs", "qkv", "query", "key", "value", "pooled"]:
        """What is compared, in the words of the table of losses."""
        if self.is_own:
            return self.feature or "hidden"
        for start, feature in _FEATURES:
            if self.loss.startswith(start):
                return feature
        return "hidden"

    @property
    def first_layer(self) -> int | None:
        """Number of the first layer that has such a thing: 0 are the embeddings; None for what has no layers."""
        return {"hidden": 0, "pooled": None}.get(self.compares, 1)

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

    hidden: float = Field(default=1.0, ge=0)
    """Weight for hidden states, and for the embeddings, which are matched apart."""
    attention: float = Field(default=0.0, ge=0)
    """Weight for attention scores; both models need as many heads."""
    projection: Literal["auto", "none", "linear", "relu", "tanh"] = "auto"
    """Trained map of each layer to the teacher's width; `auto`: linear where widths differ."""
    update_weights: bool = True
    """Move the weights of layers after each forward pass; they stay equal otherwise (as in TextBrewer's example)."""
    temperature: float | None = Field(default=None, gt=0)
    """New weights go through a softmax at this temperature; not set: proportional to inverse costs."""


class DistillConfig(Section):
    """Total = kd_weight * KD + hard_label_weight * label loss + sum over pairs of weight * match."""

    temperature: float = Field(default=4.0, gt=0)
    """Temperature of both softmaxes in the KD loss."""
    temperature_schedule: TemperatureScheduleConfig | None = None
    """Temperatures around `temperature`, one per example; they depend on the other rows of the micro-batch."""
    kd_loss: KDLossConfig = KDLossConfig()
    """Loss between logits."""
    kd_weight: float = Field(default=1.0, ge=0)
    """Weight of the KD loss."""
    hard_label_weight: float = Field(default=0.0, ge=0)
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

    @property
    def compares_layers(self) -> bool:
        """Whether anything but logits is compared with a teacher's."""
        return any(match.weight for match in self.matches) or self.emd is not None

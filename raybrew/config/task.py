"""`task`: what is predicted, and by which metric a student is judged. One config per `task.kind`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, Union

from pydantic import (
    Discriminator,
    Field,
    ModelWrapValidatorHandler,
    SerializeAsAny,
    Tag,
    field_validator,
    model_validator,
)

from raybrew.catalog.losses import kd_losses_of
from raybrew.catalog.target import load_target
from raybrew.catalog.tasks import DEFAULT_KIND, TASKS, TaskSpec
from raybrew.config.base import MAX_WEIGHT, Many, Section
from raybrew.config.outside import is_outside, row_of
from raybrew.errors import ConfigError

__all__ = [
    "METRICS",
    "TASK_CONFIGS",
    "ClassificationConfig",
    "MaskedLMConfig",
    "MultilabelConfig",
    "OwnTaskConfig",
    "QAConfig",
    "RegressionConfig",
    "TaggingConfig",
    "TaskConfig",
    "kd_losses_for",
    "known_task",
    "task_config_of",
    "task_spec",
]


class _LabelledConfig(Section):
    """What all tasks have whose labels are names."""

    labels: Many[str] | None = None
    """Label names in the order of the model's outputs. Default: the teacher's, else those of the data, sorted."""

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if labels is not None and len(set(labels)) != len(labels):
            raise ValueError("label names must differ from one another")
        if labels is not None and len(labels) < 2:
            raise ValueError("at least two label names are needed")
        return labels


class ClassificationConfig(_LabelledConfig):
    """Single sentences or sentence pairs into one of two or more classes."""

    kind: Literal["classification"] = "classification"
    """Which task; `raybrew list tasks` shows all, each with settings of its own."""
    max_length: int = Field(default=128, ge=8, le=65536)
    """Longest encoded row in tokens; longer rows are truncated."""
    metric: Literal["accuracy", "macro_f1", "mcc"] = "accuracy"
    """Evaluation metric that chooses the best checkpoint."""


class TaggingConfig(_LabelledConfig):
    """Token classification: one tag for each word of a sentence, as in named-entity recognition."""

    kind: Literal["tagging"] = "tagging"
    """Which task."""
    scheme: Literal["bio", "bioes", "iob1", "none"] = "bio"
    """How tags mark spans; rows that break it are bad rows. `iob1` (files of CoNLL-2003) is turned into `bio`;
    `none`: tags are plain classes, as parts of speech."""
    max_length: int = Field(default=128, ge=8, le=65536)
    """Longest encoded row in tokens; longer sentences are cut between words, and no word is lost."""
    metric: Literal["f1", "precision", "recall", "accuracy", "macro_f1"] = "f1"
    """Evaluation metric that chooses the best checkpoint: of whole spans (by seqeval), or accuracy and macro_f1 of
    words."""


class MultilabelConfig(_LabelledConfig):
    """Multi-label classification: any number of labels for each sentence or pair."""

    kind: Literal["multilabel"] = "multilabel"
    """Which task."""
    separator: str = Field(default=",", min_length=1)
    """What stands between labels where they come as text; lists of labels need none."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """A label is predicted from this probability on."""
    max_length: int = Field(default=128, ge=8, le=65536)
    """Longest encoded row in tokens; longer rows are truncated."""
    metric: Literal["micro_f1", "macro_f1", "subset_accuracy"] = "micro_f1"
    """Evaluation metric that chooses the best checkpoint."""


class RegressionConfig(Section):
    """One number for each sentence or pair, as the similarity of STS-B."""

    kind: Literal["regression"] = "regression"
    """Which task."""
    max_length: int = Field(default=128, ge=8, le=65536)
    """Longest encoded row in tokens; longer rows are truncated."""
    metric: Literal["pearson", "spearman"] = "pearson"
    """Evaluation metric that chooses the best checkpoint."""


class QAConfig(Section):
    """Extractive question answering: the answer is a span of the context."""

    kind: Literal["qa"] = "qa"
    """Which task."""
    scoring: Literal["squad", "cmrc"] = "squad"
    """How answers are compared: as SQuAD's script does (English), or that of CMRC 2018 and DRCD (Chinese)."""
    max_length: int = Field(default=384, ge=32, le=65536)
    """Longest encoded window in tokens, question included; longer contexts are read through several windows."""
    stride: int = Field(default=128, ge=1, le=65536)
    """Tokens that two neighbouring windows share. An answer of more tokens may be cut by the border of a window, which
    then has no label; one that no window holds whole makes a bad row."""
    max_question: int = Field(default=64, ge=1, le=65536)
    """Longest question in tokens; the rest of longer ones is left out."""
    max_answer: int = Field(default=30, ge=1, le=65536)
    """Longest answer in tokens that is predicted."""
    no_answer: bool = False
    """Whether questions may have no answer in their context (SQuAD 2.0); otherwise such rows are bad."""
    no_answer_margin: float = Field(default=0.0, ge=-MAX_WEIGHT, le=MAX_WEIGHT)
    """With `no_answer`: how much the score of `none` must exceed that of the best span to be predicted."""
    n_best: int = Field(default=20, ge=1, le=1000)
    """Best starts and ends that are combined, and most answers that `raybrew predict` writes beside the empty one."""
    metric: Literal["f1", "exact_match"] = "f1"
    """Evaluation metric that chooses the best checkpoint."""


class MaskedLMConfig(Section):
    """Masked language modelling: hidden tokens of plain text are guessed, which is how encoders are pre-trained."""

    kind: Literal["masked_lm"] = "masked_lm"
    """Which task."""
    max_length: int = Field(default=128, ge=8, le=65536)
    """Longest encoded row in tokens; longer texts are cut between words, and no word is lost."""
    mask_rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens of each row that are to be guessed, one at least; special tokens never are."""
    masked: float = Field(default=0.8, ge=0, le=1)
    """Of these tokens, the share that the mask token replaces."""
    randomised: float = Field(default=0.1, ge=0, le=1)
    """Of these tokens, the share that a random token replaces; the rest stays as it is."""
    whole_words: bool = False
    """Mask all pieces of a word together, words being those of the tokenizer (in Chinese BERT's each character)."""
    top_k: int = Field(default=5, ge=1, le=100)
    """Tokens that `raybrew predict` writes for each mask."""
    metric: Literal["accuracy", "log_likelihood"] = "accuracy"
    """Evaluation metric that chooses the best checkpoint."""


class OwnTaskConfig(Section):
    """Base of the keys of a task of one's own, whose `kind` is `package.module:Name` of its TaskSpec."""

    kind: str
    """Which task."""
    max_length: int = Field(default=128, ge=8, le=65536)
    """Longest encoded row in tokens."""
    metric: str
    """Evaluation metric that chooses the best checkpoint; the larger, the better."""

    @model_validator(mode="wrap")
    @classmethod
    def _of_row(cls, value: Any, build: ModelWrapValidatorHandler[OwnTaskConfig]) -> OwnTaskConfig:
        """Keys as the class that the task's row names, wherever any task may stand."""
        if cls is not OwnTaskConfig or not isinstance(value, Mapping):
            return build(value)
        return _own_config(task_spec(value["kind"])).model_validate(value)


#: Tag of tasks of the user's among all tasks.
_OWN = "package.module:Name"

_CONFIGS: tuple[type[Section], ...] = (
    ClassificationConfig,
    MultilabelConfig,
    RegressionConfig,
    TaggingConfig,
    QAConfig,
    MaskedLMConfig,
)
#: `task.kind` -> its config.
TASK_CONFIGS: Mapping[str, type[Section]] = MappingProxyType(
    {config.model_fields["kind"].default: config for config in _CONFIGS}
)


def task_spec(kind: str) -> TaskSpec:
    """The row of a kind of task: one of the catalogue, or one of the user's. ConfigError names task.kind."""
    return row_of(TASKS, kind, "task.kind", TaskSpec)


def known_task(kind: str | None) -> TaskSpec | None:
    """The row of a kind that a file of a run names, the usual one for None; None for one that is not here."""
    try:
        return task_spec(kind or DEFAULT_KIND)
    except ConfigError:
        return None


def kd_losses_for(kind: str) -> tuple[str, ...]:
    """The `distill.kd_loss.kind` that a task's outputs can be compared by; the first is what `auto` stands for."""
    return kd_losses_of(task_spec(kind).outputs)


def _own_config(spec: TaskSpec) -> type[OwnTaskConfig]:
    config = load_target(spec.config)
    if not (isinstance(config, type) and issubclass(config, OwnTaskConfig)):
        message = f"task.kind: given {spec.kind!r}, whose config {spec.config} is no OwnTaskConfig"
        raise ConfigError(message, (message,))
    return config


#: Every metric that some task has, and what it is.
METRICS: Mapping[str, str] = MappingProxyType(
    {
        "accuracy": "share of rows (tagging: words, masked_lm: masked tokens) that are right",
        "macro_f1": "F1 of each class, averaged over classes",
        "mcc": "Matthews' correlation coefficient, fair to unbalanced classes",
        "micro_f1": "F1 over all labels of all rows",
        "subset_accuracy": "share of rows whose set of labels is right",
        "pearson": "Pearson's correlation",
        "spearman": "Spearman's rank correlation",
        "f1": "F1 of whole spans by seqeval; of words that an answer shares with a true one by SQuAD's or CMRC's rule",
        "exact_match": "share of answers that equal a true one, by SQuAD's or CMRC's rule",
        "precision": "share of the spans found that are right, by seqeval",
        "recall": "share of the true spans that are found, by seqeval",
        "log_likelihood": "mean log-probability of masked tokens; perplexity is exp of its negative",
    }
)


def _kind_of(value: Any) -> Any:
    kind = value.get("kind", DEFAULT_KIND) if isinstance(value, Mapping) else getattr(value, "kind", None)
    return _OWN if is_outside(kind) else kind


#: Any task, told apart by `kind`; without one it is classification.
if TYPE_CHECKING:
    TaskConfig: TypeAlias = (
        ClassificationConfig
        | MultilabelConfig
        | RegressionConfig
        | TaggingConfig
        | QAConfig
        | MaskedLMConfig
        | OwnTaskConfig
    )
else:
    _members = [Annotated[config, Tag(kind)] for kind, config in TASK_CONFIGS.items()]
    TaskConfig = Annotated[
        Union[(*_members, Annotated[SerializeAsAny[OwnTaskConfig], Tag(_OWN)])],
        Discriminator(_kind_of),
    ]


def task_config_of(value: Any) -> type[Section] | None:
    """The config that `value` of the section `task` is meant for; None if its `kind` is none that exists.

    ConfigError for a task of the user's that cannot be imported.
    """
    kind = value.get("kind", DEFAULT_KIND) if isinstance(value, Mapping) else getattr(value, "kind", None)
    if isinstance(kind, str) and is_outside(kind):
        return _own_config(task_spec(kind))
    return TASK_CONFIGS.get(kind) if isinstance(kind, str) else None

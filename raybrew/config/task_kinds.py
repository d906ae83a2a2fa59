"""The keys of each kind of task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, ModelWrapValidatorHandler, field_validator, model_validator

from raybrew.catalog.target import load_target
from raybrew.catalog.tasks import TaskSpec
from raybrew.config.base import MAX_WEIGHT, Many, Section
from raybrew.config.kinds import task_spec
from raybrew.errors import ConfigError

__all__ = [
    "ClassificationConfig",
    "MaskedLMConfig",
    "MultilabelConfig",
    "OwnTaskConfig",
    "QAConfig",
    "RegressionConfig",
    "TaggingConfig",
    "own_config",
]


class _KindConfig(Section):
    """What all tasks have: the kind alone may stand for the section."""

    short: ClassVar[str] = "kind"


class _LabelledConfig(_KindConfig):
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
    """Single sentences or sentence pairs into one of two or more classes.

    Example:
        >>> raybrew.Classification(metric="macro_f1", max_length=64)
        Classification(max_length=64, metric='macro_f1')
    """

    kind: Literal["classification"] = "classification"
    """Which task; `raybrew list tasks` shows all, each with settings of its own."""
    max_length: int = Field(default=128, ge=8, le=65536)
    """Longest encoded row in tokens; longer rows are truncated."""
    metric: Literal["accuracy", "macro_f1", "mcc"] = "accuracy"
    """Evaluation metric that chooses the best checkpoint."""


class TaggingConfig(_LabelledConfig):
    """Token classification: one tag for each word of a sentence, as in named-entity recognition.

    Example:
        >>> raybrew.Tagging(scheme="bioes")
        Tagging(scheme='bioes')
    """

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
    """Multi-label classification: any number of labels for each sentence or pair.

    Example:
        >>> raybrew.Multilabel(threshold=0.4)
        Multilabel(threshold=0.4)
    """

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


class RegressionConfig(_KindConfig):
    """One number for each sentence or pair, as the similarity of STS-B.

    Example:
        >>> raybrew.Regression(metric="spearman")
        Regression(metric='spearman')
    """

    kind: Literal["regression"] = "regression"
    """Which task."""
    max_length: int = Field(default=128, ge=8, le=65536)
    """Longest encoded row in tokens; longer rows are truncated."""
    metric: Literal["pearson", "spearman"] = "pearson"
    """Evaluation metric that chooses the best checkpoint."""


class QAConfig(_KindConfig):
    """Extractive question answering: the answer is a span of the context.

    Example:
        >>> raybrew.QA(no_answer=True)
        QA(no_answer=True)
    """

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


class MaskedLMConfig(_KindConfig):
    """Masked language modelling: hidden tokens of plain text are guessed, which is how encoders are pre-trained.

    Example:
        >>> raybrew.MaskedLM(whole_words=True)
        MaskedLM(whole_words=True)
    """

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
        return own_config(task_spec(value["kind"])).model_validate(value)


def own_config(spec: TaskSpec) -> type[OwnTaskConfig]:
    """The keys of a task of one's own."""
    config = load_target(spec.config)
    if not (isinstance(config, type) and issubclass(config, OwnTaskConfig)):
        raise ConfigError.of("task.kind", f"given {spec.kind!r}, whose config {spec.config} is no OwnTaskConfig")
    return config

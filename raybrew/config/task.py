"""`task`: what is predicted, and by which metric a student is judged. One config per `task.kind`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from raybrew.catalog.losses import kd_losses_of
from raybrew.catalog.tasks import TASKS
from raybrew.config.base import MAX_WEIGHT, Many, Section
from raybrew.config.data import DataConfig
from raybrew.config.distill import DistillConfig
from raybrew.config.store import StoreConfig
from raybrew.config.student import StudentConfig
from raybrew.config.teacher import TeacherConfig
from raybrew.errors import Problem

__all__ = [
    "METRICS",
    "TASK_CONFIGS",
    "TASK_KD_LOSSES",
    "WHY_LIVE",
    "ClassificationConfig",
    "MaskedLMConfig",
    "MultilabelConfig",
    "QAConfig",
    "RegressionConfig",
    "TaggingConfig",
    "TaskConfig",
    "check_kd_loss",
    "check_masked_lm",
    "check_masked_lm_student",
    "check_qa",
    "check_tagging",
    "task_config_of",
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


#: `task.kind` -> its config. One line per task.
TASK_CONFIGS: Mapping[str, type[Section]] = MappingProxyType(
    {
        "classification": ClassificationConfig,
        "multilabel": MultilabelConfig,
        "regression": RegressionConfig,
        "tagging": TaggingConfig,
        "qa": QAConfig,
        "masked_lm": MaskedLMConfig,
    }
)

#: `task.kind` -> the `distill.kd_loss.kind` that its outputs can be compared by; the first is what `auto` stands for.
TASK_KD_LOSSES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {kind: kd_losses_of(spec.outputs) for kind, spec in TASKS.items()}
)

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

_DEFAULT_KIND = "classification"


def _kind_of(value: Any) -> Any:
    if isinstance(value, str):
        return value
    return value.get("kind", _DEFAULT_KIND) if isinstance(value, Mapping) else getattr(value, "kind", None)


#: Any task, told apart by `kind`; without one it is classification.
TaskConfig = Annotated[
    Annotated[ClassificationConfig, Tag("classification")]
    | Annotated[MultilabelConfig, Tag("multilabel")]
    | Annotated[RegressionConfig, Tag("regression")]
    | Annotated[TaggingConfig, Tag("tagging")]
    | Annotated[QAConfig, Tag("qa")]
    | Annotated[MaskedLMConfig, Tag("masked_lm")],
    Discriminator(_kind_of),
]


def task_config_of(value: Any) -> type[Section] | None:
    """The config that `value` of the section `task` is meant for; None if its `kind` is none that exists."""
    kind = _kind_of(value)
    return TASK_CONFIGS.get(kind) if isinstance(kind, str) else None


#: Why no store holds what a teacher says of masked texts.
WHY_LIVE = "masks are new in every epoch, and a teacher's logits over its vocabulary are too large to keep"


def check_kd_loss(task: TaskConfig, distill: DistillConfig) -> list[Problem]:
    problems, allowed = [], TASK_KD_LOSSES[task.kind]
    for key, part in distill.keyed_parts:
        kind = part.kd_loss.kind
        shown = f"given {kind!r}; allowed for task.kind {task.kind!r}: auto, {', '.join(allowed)}"
        if part.kd_weight > 0 and ":" not in kind and kind not in ("auto", *allowed):
            problems.append(Problem(f"{key}.kd_loss.kind", shown))
    if distill.temperature_schedule is not None and task.kind not in ("classification", "tagging", "masked_lm"):
        problems.append(
            Problem(
                "distill.temperature_schedule",
                f"given for task.kind {task.kind!r}; it compares classes that exclude one another, of a fixed number "
                "(classification, tagging, masked_lm)",
                "conflict",
            )
        )
    if distill.probability_shift and task.kind in ("multilabel", "regression"):
        problems.append(
            Problem(
                "distill.probability_shift",
                f"given for task.kind {task.kind!r}, which has no single true class",
                "conflict",
            )
        )
    return problems


def check_qa(task: TaskConfig) -> list[Problem]:
    if not isinstance(task, QAConfig):
        return []
    # Three or four tokens around question and window, and a window moves on by at least half of its size.
    room = task.max_length - task.max_question - 4
    if 2 * task.stride > room:
        return [
            Problem(
                "task.stride",
                f"given {task.stride}; allowed: at most half of what max_length ({task.max_length}) leaves beside "
                f"max_question ({task.max_question}): {max(0, room // 2)}",
            )
        ]
    return []


def check_tagging(task: TaskConfig) -> list[Problem]:
    if isinstance(task, TaggingConfig) and task.scheme == "none" and task.metric in ("f1", "precision", "recall"):
        allowed = "accuracy, macro_f1, as task.scheme 'none' has no spans"
        return [Problem("task.metric", f"given {task.metric!r}; allowed: {allowed}")]
    return []


def check_masked_lm(task: TaskConfig, data: DataConfig, teacher: TeacherConfig, store: StoreConfig) -> list[Problem]:
    if not isinstance(task, MaskedLMConfig):
        return []
    problems = []
    if task.masked + task.randomised > 1 + 1e-9:
        problems.append(
            Problem(
                "task.randomised",
                f"given {task.randomised} beside masked {task.masked}; allowed: shares that add up to 1 at most",
            )
        )
    if data.unlabeled is not None:
        problems.append(
            Problem(
                "data.unlabeled",
                "given for task.kind 'masked_lm', whose rows need no labels; use data.train",
                "conflict",
            )
        )
    if teacher.members:
        problems.append(
            Problem("teacher.members", "given for task.kind 'masked_lm'; allowed: one teacher.model", "conflict")
        )
    if teacher.source == "store":
        problems.append(
            Problem(
                "teacher.source",
                f"given 'store' for task.kind 'masked_lm'; allowed: auto, live ({WHY_LIVE})",
                "conflict",
            )
        )
    if store.signals:
        problems.append(
            Problem(
                "store.signals",
                f"given {list(store.signals)} for task.kind 'masked_lm', which has no store: {WHY_LIVE}",
                "conflict",
            )
        )
    return problems


def check_masked_lm_student(task: TaskConfig, student: StudentConfig) -> list[Problem]:
    if not isinstance(task, MaskedLMConfig):
        return []
    problems = []
    if student.vocabulary is not None:
        why = "the student guesses among the tokens that its teacher knows"
        problems.append(Problem("student.vocabulary", f"given for task.kind 'masked_lm', where {why}", "conflict"))
    if student.shape == "BiGRU":
        problems.append(
            Problem("student.shape", "given 'BiGRU', which has no masked-LM head; allowed: transformers", "conflict")
        )
    return problems

"""`task`: what is predicted, and by which metric a student is judged. One config per `task.kind`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from raybrew.config.base import Many, Section

__all__ = ["TASK_COLUMNS", "TASK_CONFIGS", "ClassificationConfig", "TaggingConfig", "TaskConfig", "task_config_of"]


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


#: `task.kind` -> its config. One line per task.
TASK_CONFIGS: Mapping[str, type[Section]] = MappingProxyType(
    {"classification": ClassificationConfig, "tagging": TaggingConfig}
)

#: `task.kind` -> the keys of `data.columns` that it reads.
TASK_COLUMNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"classification": ("text", "text_pair", "label"), "tagging": ("tokens", "tags")}
)

#: Every metric that some task has, and what it is.
METRICS: Mapping[str, str] = MappingProxyType(
    {
        "accuracy": "share of rows (tagging: words) that are right",
        "macro_f1": "F1 of each class, averaged over classes",
        "mcc": "Matthews' correlation coefficient, fair to unbalanced classes",
        "f1": "F1 of whole spans, micro average, by seqeval",
        "precision": "share of the spans found that are right, by seqeval",
        "recall": "share of the true spans that are found, by seqeval",
    }
)

_DEFAULT_KIND = "classification"


def _kind_of(value: Any) -> Any:
    return value.get("kind", _DEFAULT_KIND) if isinstance(value, Mapping) else getattr(value, "kind", None)


#: Any task, told apart by `kind`; without one it is classification.
TaskConfig = Annotated[
    Annotated[ClassificationConfig, Tag("classification")] | Annotated[TaggingConfig, Tag("tagging")],
    Discriminator(_kind_of),
]


def task_config_of(value: Any) -> type[Section] | None:
    """The config that `value` of the section `task` is meant for; None if its `kind` is none that exists."""
    kind = _kind_of(value)
    return TASK_CONFIGS.get(kind) if isinstance(kind, str) else None

"""`task`: what is predicted, and by which metric a student is judged."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from raybrew.config.base import Many, Section

__all__ = ["ClassificationConfig", "TaskConfig"]


class ClassificationConfig(Section):
    """Single sentences or sentence pairs into one of two or more classes."""

    kind: Literal["classification"] = "classification"
    """Which task; `raybrew list tasks` shows all."""
    labels: Many[str] | None = None
    """Label names in the order of the model's outputs. Default: the teacher's, else those of the data, sorted."""
    max_length: int = Field(default=128, ge=8, le=65536)
    """Longest encoded row in tokens; longer rows are truncated."""
    metric: Literal["accuracy", "macro_f1", "mcc"] = "accuracy"
    """Evaluation metric that chooses the best checkpoint."""

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if labels is not None and len(set(labels)) != len(labels):
            raise ValueError("label names must differ from one another")
        if labels is not None and len(labels) < 2:
            raise ValueError("at least two label names are needed")
        return labels


#: Becomes a union discriminated by `kind` as tasks are added.
TaskConfig = ClassificationConfig

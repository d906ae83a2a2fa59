"""`teacher`: the model that is imitated."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raybrew.config.base import NOT_IDENTITY, Section
from raybrew.config.train import FinetuneConfig

__all__ = ["TeacherConfig"]


class TeacherConfig(Section):
    """A Hugging Face model folder or hub name, fine-tuned already or by `raybrew finetune`."""

    model: str | None = None
    """Folder or hub name of the teacher (of its starting point when `teacher.finetune` is set)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool = False
    """Allow the model's own Python code to run. Only for code you have read."""
    finetune: FinetuneConfig | None = None
    """How `raybrew finetune` trains the teacher on labels. Not set: `teacher.model` is used as it is."""
    source: Literal["auto", "store", "live"] = "auto"
    """Where a student's targets come from: `store` (captured once), `live` (teacher runs in every step);
    `auto` uses the store and captures what it lacks, but runs the teacher live where attention is matched."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the teacher's forward pass; `auto`: bf16 on GPUs that have it, else fp32."""
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", json_schema_extra=NOT_IDENTITY)
    """Where teacher actors run; fixed by `train.device` for a live teacher."""

"""The sections of an experiment by the names that they have in `raybrew`.

A section drops its `Config` but where the shorter name means a result: a student that predicts, a store, a sweep.
"""

from __future__ import annotations

from raybrew.config.augment import AugmentConfig as Augment
from raybrew.config.data import Columns
from raybrew.config.data import DataConfig as Data
from raybrew.config.distill import DistillConfig as Distill
from raybrew.config.distill import StageConfig as Stage
from raybrew.config.matches import MatchConfig as Match
from raybrew.config.multi_task import MultiTaskConfig as MultiTask
from raybrew.config.store import StoreConfig
from raybrew.config.student import ShapeConfig as Shape
from raybrew.config.student import StudentConfig
from raybrew.config.sweep import SweepConfig
from raybrew.config.task_kinds import ClassificationConfig as Classification
from raybrew.config.task_kinds import MaskedLMConfig as MaskedLM
from raybrew.config.task_kinds import MultilabelConfig as Multilabel
from raybrew.config.task_kinds import QAConfig as QA  # noqa: N814 (short for question answering)
from raybrew.config.task_kinds import RegressionConfig as Regression
from raybrew.config.task_kinds import TaggingConfig as Tagging
from raybrew.config.teacher import TeacherConfig as Teacher
from raybrew.config.teacher import TeacherMember
from raybrew.config.terms import KDLossConfig as KDLoss
from raybrew.config.tracking import TrackingConfig as Tracking
from raybrew.config.train import FinetuneConfig as Finetune
from raybrew.config.train import TrainConfig as Train

__all__ = [
    "QA",
    "Augment",
    "Classification",
    "Columns",
    "Data",
    "Distill",
    "Finetune",
    "KDLoss",
    "MaskedLM",
    "Match",
    "MultiTask",
    "Multilabel",
    "Regression",
    "Shape",
    "Stage",
    "StoreConfig",
    "StudentConfig",
    "SweepConfig",
    "Tagging",
    "Teacher",
    "TeacherMember",
    "Tracking",
    "Train",
]

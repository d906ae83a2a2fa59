"""Experiment files: frozen, closed models per section, and their loading. Imports neither torch nor ray."""

from __future__ import annotations

from raybrew.config.data import Columns, DataConfig
from raybrew.config.distill import DistillConfig
from raybrew.config.experiment import Experiment
from raybrew.config.loading import build_experiment, load_experiment
from raybrew.config.matches import MatchConfig
from raybrew.config.multi_task import MultiTaskConfig, TaskPart
from raybrew.config.store import StoreConfig
from raybrew.config.student import ShapeConfig, StudentConfig
from raybrew.config.sweep import SweepConfig
from raybrew.config.task import TASK_CONFIGS, TaskConfig
from raybrew.config.task_kinds import (
    ClassificationConfig,
    MaskedLMConfig,
    MultilabelConfig,
    QAConfig,
    RegressionConfig,
    TaggingConfig,
)
from raybrew.config.teacher import TeacherConfig, TeacherMember
from raybrew.config.terms import KDLossConfig
from raybrew.config.tracking import MlflowConfig, TrackingConfig, WandbConfig
from raybrew.config.train import FinetuneConfig, TrainConfig

__all__ = [
    "TASK_CONFIGS",
    "ClassificationConfig",
    "Columns",
    "DataConfig",
    "DistillConfig",
    "Experiment",
    "FinetuneConfig",
    "KDLossConfig",
    "MaskedLMConfig",
    "MatchConfig",
    "MlflowConfig",
    "MultiTaskConfig",
    "MultilabelConfig",
    "QAConfig",
    "RegressionConfig",
    "ShapeConfig",
    "StoreConfig",
    "StudentConfig",
    "SweepConfig",
    "TaggingConfig",
    "TaskConfig",
    "TaskPart",
    "TeacherConfig",
    "TeacherMember",
    "TrackingConfig",
    "TrainConfig",
    "WandbConfig",
    "build_experiment",
    "load_experiment",
]

"""Distillation of transformers on Ray: run the teacher once, train any number of students from what it said.

The names below load on first use, so that `import raybrew` imports neither torch nor ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from raybrew.textbrewer.old_names import add_modules
from raybrew.version import __version__

if TYPE_CHECKING:
    from raybrew.config import Experiment
    from raybrew.config.loading import build_experiment, load_experiment
    from raybrew.diagnosis.findings import Diagnosis, Finding
    from raybrew.diagnosis.run import doctor
    from raybrew.jobs.handle import JobHandle
    from raybrew.jobs.submit import submit
    from raybrew.pipeline.reporter import LineReporter, QuietReporter
    from raybrew.runs.result import Run, RunResult
    from raybrew.serving import Student, load_student
    from raybrew.store.reader import Store
    from raybrew.sweeps.result import Sweep, SweepResult
    from raybrew.sweeps.run import sweep
    from raybrew.textbrewer.configs import FEATURES, DistillationConfig, TrainingConfig
    from raybrew.textbrewer.distillers import (
        BasicDistiller,
        BasicTrainer,
        Distillers,
        GeneralDistiller,
        MultiTaskDistiller,
        MultiTeacherDistiller,
    )
    from raybrew.textbrewer.emd import EMDDistiller
    from raybrew.textbrewer.presets import (
        ADAPTOR_KEYS,
        KD_LOSS_MAP,
        MATCH_LOSS_MAP,
        PROJ_MAP,
        TEMPERATURE_SCHEDULER,
        WEIGHT_SCHEDULER,
        register_new,
    )
    from raybrew.textbrewer.taps import CustomMatch
    from raybrew.verbs.capture import capture, capture_all
    from raybrew.verbs.distill import distill
    from raybrew.verbs.evaluate import evaluate, evaluate_all
    from raybrew.verbs.export import Export, export
    from raybrew.verbs.finetune import finetune, finetune_all
    from raybrew.verbs.inspect import Inspected, inspect
    from raybrew.verbs.plan import Plan, plan
    from raybrew.verbs.predict import predict
    from raybrew.verbs.report import report
    from raybrew.verbs.store import PruneRules, list_stores, plan_prune, prune_stores, verify_live, verify_stores

_WHERE = {
    "ADAPTOR_KEYS": "raybrew.textbrewer.presets",
    "BasicDistiller": "raybrew.textbrewer.distillers",
    "BasicTrainer": "raybrew.textbrewer.distillers",
    "CustomMatch": "raybrew.textbrewer.taps",
    "Diagnosis": "raybrew.diagnosis.findings",
    "DistillationConfig": "raybrew.textbrewer.configs",
    "Distillers": "raybrew.textbrewer.distillers",
    "FEATURES": "raybrew.textbrewer.configs",
    "GeneralDistiller": "raybrew.textbrewer.distillers",
    "KD_LOSS_MAP": "raybrew.textbrewer.presets",
    "MATCH_LOSS_MAP": "raybrew.textbrewer.presets",
    "MultiTaskDistiller": "raybrew.textbrewer.distillers",
    "MultiTeacherDistiller": "raybrew.textbrewer.distillers",
    "PROJ_MAP": "raybrew.textbrewer.presets",
    "TEMPERATURE_SCHEDULER": "raybrew.textbrewer.presets",
    "TrainingConfig": "raybrew.textbrewer.configs",
    "WEIGHT_SCHEDULER": "raybrew.textbrewer.presets",
    "register_new": "raybrew.textbrewer.presets",
    "EMDDistiller": "raybrew.textbrewer.emd",
    "Experiment": "raybrew.config.loading",
    "Export": "raybrew.verbs.export",
    "Finding": "raybrew.diagnosis.findings",
    "JobHandle": "raybrew.jobs.handle",
    "LineReporter": "raybrew.pipeline.reporter",
    "QuietReporter": "raybrew.pipeline.reporter",
    "Run": "raybrew.runs.result",
    "RunResult": "raybrew.runs.result",
    "Store": "raybrew.store.reader",
    "Student": "raybrew.serving",
    "Sweep": "raybrew.sweeps.result",
    "SweepResult": "raybrew.sweeps.result",
    "sweep": "raybrew.sweeps.run",
    "PruneRules": "raybrew.verbs.store",
    "list_stores": "raybrew.verbs.store",
    "Inspected": "raybrew.verbs.inspect",
    "inspect": "raybrew.verbs.inspect",
    "Plan": "raybrew.verbs.plan",
    "plan": "raybrew.verbs.plan",
    "plan_prune": "raybrew.verbs.store",
    "prune_stores": "raybrew.verbs.store",
    "verify_live": "raybrew.verbs.store",
    "verify_stores": "raybrew.verbs.store",
    "build_experiment": "raybrew.config.loading",
    "capture": "raybrew.verbs.capture",
    "capture_all": "raybrew.verbs.capture",
    "distill": "raybrew.verbs.distill",
    "doctor": "raybrew.diagnosis.run",
    "evaluate": "raybrew.verbs.evaluate",
    "evaluate_all": "raybrew.verbs.evaluate",
    "export": "raybrew.verbs.export",
    "finetune": "raybrew.verbs.finetune",
    "finetune_all": "raybrew.verbs.finetune",
    "load_experiment": "raybrew.config.loading",
    "load_student": "raybrew.serving",
    "predict": "raybrew.verbs.predict",
    "report": "raybrew.verbs.report",
    "submit": "raybrew.jobs.submit",
}

__all__ = [
    "ADAPTOR_KEYS",
    "FEATURES",
    "KD_LOSS_MAP",
    "MATCH_LOSS_MAP",
    "PROJ_MAP",
    "TEMPERATURE_SCHEDULER",
    "WEIGHT_SCHEDULER",
    "BasicDistiller",
    "BasicTrainer",
    "CustomMatch",
    "Diagnosis",
    "DistillationConfig",
    "Distillers",
    "EMDDistiller",
    "Experiment",
    "Export",
    "Finding",
    "GeneralDistiller",
    "Inspected",
    "JobHandle",
    "LineReporter",
    "MultiTaskDistiller",
    "MultiTeacherDistiller",
    "Plan",
    "PruneRules",
    "QuietReporter",
    "Run",
    "RunResult",
    "Store",
    "Student",
    "Sweep",
    "SweepResult",
    "TrainingConfig",
    "__version__",
    "build_experiment",
    "capture",
    "capture_all",
    "distill",
    "doctor",
    "evaluate",
    "evaluate_all",
    "export",
    "finetune",
    "finetune_all",
    "inspect",
    "list_stores",
    "load_experiment",
    "load_student",
    "plan",
    "plan_prune",
    "predict",
    "prune_stores",
    "register_new",
    "report",
    "submit",
    "sweep",
    "verify_live",
    "verify_stores",
]

globals().update(add_modules(__name__))


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'raybrew' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

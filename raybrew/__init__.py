"""Distillation of transformers on Ray: run the teacher once, train any number of students from what it said.

The names below load on first use, so that `import raybrew` imports neither torch nor ray.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from raybrew.version import __version__

if TYPE_CHECKING:
    from raybrew.config import Experiment
    from raybrew.config.loading import build_experiment, load_experiment
    from raybrew.store.reader import Store
    from raybrew.verbs.capture import capture
    from raybrew.verbs.distill import distill
    from raybrew.verbs.evaluate import evaluate
    from raybrew.verbs.finetune import finetune
    from raybrew.verbs.predict import predict
    from raybrew.verbs.report import report
    from raybrew.verbs.reporter import LineReporter, QuietReporter
    from raybrew.verbs.result import RunResult

_WHERE = {
    "Experiment": "raybrew.config",
    "LineReporter": "raybrew.verbs.reporter",
    "QuietReporter": "raybrew.verbs.reporter",
    "RunResult": "raybrew.verbs.result",
    "Store": "raybrew.store.reader",
    "build_experiment": "raybrew.config.loading",
    "capture": "raybrew.verbs.capture",
    "distill": "raybrew.verbs.distill",
    "evaluate": "raybrew.verbs.evaluate",
    "finetune": "raybrew.verbs.finetune",
    "load_experiment": "raybrew.config.loading",
    "predict": "raybrew.verbs.predict",
    "report": "raybrew.verbs.report",
}

__all__ = [
    "Experiment",
    "LineReporter",
    "QuietReporter",
    "RunResult",
    "Store",
    "__version__",
    "build_experiment",
    "capture",
    "distill",
    "evaluate",
    "finetune",
    "load_experiment",
    "predict",
    "report",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'raybrew' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

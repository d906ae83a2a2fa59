"""Where metrics are mirrored to: the keys of `tracking`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["TRACKERS", "TrackerSpec"]


@dataclasses.dataclass(frozen=True)
class TrackerSpec:
    """One tracker. One of your own is such a row, named as `package.module:Name` in `tracking.others`."""

    title: str  #: for people
    summary: str
    target: str  #: module:function, f(section, *, experiment, job_type) -> `raybrew.tracking.base.Tracker`
    section: str = "raybrew.config.base:Section"  #: of those in `tracking.others`, the class of their keys
    summaries: bool = False  #: is a SummaryTracker: has a run for each sweep too, and takes what follows training
    group: str = ""  #: key of its section that puts runs beside one another; a sweep fills it
    check: str = ""  #: module:function, f(section) -> `raybrew.tracking.reach.Reach` items, for `raybrew doctor`
    install: str = ""  #: what pip is to install for it


#: Key of `tracking` -> tracker.
TRACKERS: Mapping[str, TrackerSpec] = MappingProxyType(
    {
        "tensorboard": TrackerSpec(
            "TensorBoard", "event files in the run folder", "raybrew.tracking.tensorboard:tensorboard_tracker"
        ),
        "wandb": TrackerSpec(
            "W&B",
            "Weights & Biases: a run for each training and each sweep, online or offline",
            "raybrew.tracking.wandb:WandbTracker",
            summaries=True,
            group="group",
            check="raybrew.tracking.wandb:check",
        ),
        "mlflow": TrackerSpec(
            "MLflow",
            "MLflow: a run for each training and each sweep, on a server or in a local store",
            "raybrew.tracking.mlflow:MlflowTracker",
            summaries=True,
            group="group",
            check="raybrew.tracking.mlflow:check",
            install="raybrew[mlflow]",
        ),
    }
)

"""`tracking`: mirrors of metrics.jsonl. The file itself is always written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from pydantic import Field, SerializeAsAny, ValidationError, field_validator

from raybrew.catalog.target import load_target
from raybrew.catalog.trackers import TRACKERS, TrackerSpec
from raybrew.config.base import Many, Section
from raybrew.config.outside import load_outside, row_name
from raybrew.config.problems import UnusableError, problems_of
from raybrew.errors import ConfigError

__all__ = ["AskedTracker", "MlflowConfig", "TrackingConfig", "WandbConfig"]

if TYPE_CHECKING:
    TrackerName: TypeAlias = str
else:
    TrackerName = row_name(TrackerSpec)


class AskedTracker(NamedTuple):
    """A tracker that an experiment asks for."""

    name: str
    spec: TrackerSpec
    section: Any  #: its keys; True where it has none


class WandbConfig(Section):
    """Weights & Biases; keys come from the environment or netrc, never from here."""

    mode: Literal["auto", "online", "offline"] = "auto"
    """`auto`: online when a key is found, otherwise offline with a line that says how to sync."""
    project: str = "raybrew"
    """W&B project."""
    entity: str | None = None
    """W&B team or user."""
    group: str | None = None
    """W&B group. Default: the experiment's name."""
    tags: Many[str] = ()
    """W&B tags."""


class MlflowConfig(Section):
    """MLflow (`pip install raybrew[mlflow]`); user names, passwords and tokens come from the environment."""

    uri: str | None = None
    """Tracking server, or a store such as sqlite:///mlflow.db. Not set: as MLFLOW_TRACKING_URI and MLflow say."""
    experiment: str | None = None
    """MLflow experiment. Default: the experiment's name."""
    group: str | None = None
    """Tag `raybrew.group` of the runs. Default: the experiment's name."""
    tags: dict[str, str] = Field(default_factory=dict)
    """Further tags of the runs."""


class TrackingConfig(Section):
    """Where metrics are mirrored to; a tracker that fails never stops training.

    Example:
        >>> raybrew.Tracking()
        Tracking()
    """

    tensorboard: bool = False
    """Write TensorBoard event files into the run folder."""
    wandb: WandbConfig | None = None
    """Mirror to Weights & Biases; `{}` is enough."""
    mlflow: MlflowConfig | None = None
    """Mirror to MLflow; `{}` is enough."""
    others: dict[TrackerName, SerializeAsAny[Section]] = Field(default_factory=dict)
    """Trackers of your own: `package.module:Name` of a TrackerSpec, with its keys."""

    @field_validator("others", mode="before")
    @classmethod
    def _sections(cls, value: Any) -> Any:
        """The keys of each tracker of the user's in the class that its row names."""
        if not isinstance(value, Mapping):
            return value
        found = dict(value)
        for name, given in value.items():
            try:
                section = load_target(load_outside(str(name), "tracking.others", TrackerSpec).section)
            except ConfigError:
                found[name] = {}  # the check of the name says why; what its keys mean is not known
                continue
            try:
                found[name] = section.model_validate({} if given is None else given)
            except ValidationError as error:
                raise UnusableError("; ".join(map(str, problems_of(error, str(name), section)))) from error
        return found

    @property
    def asked(self) -> tuple[AskedTracker, ...]:
        """The trackers that are asked for."""
        named = [
            AskedTracker(name, spec, getattr(self, name)) for name, spec in TRACKERS.items() if getattr(self, name)
        ]
        for name, section in self.others.items():
            named.append(AskedTracker(name, load_outside(name, "tracking.others", TrackerSpec), section))
        return tuple(named)

    def grouped(self, group: str) -> TrackingConfig:
        """With `group` in the sections of trackers that put runs into groups and have none given."""
        update = {
            one.name: one.section.model_copy(update={one.spec.group: group})
            for one in self.asked
            if one.spec.group and getattr(one.section, one.spec.group) is None
        }
        others = {name: update.pop(name, section) for name, section in self.others.items()}
        return self.model_copy(update={**update, "others": others})

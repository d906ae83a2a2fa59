"""`Experiment`: one file that describes finetune, capture, distill and their runs."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol

from pydantic import Discriminator, Field, Tag

from raybrew.catalog.forms import DENSE
from raybrew.config.base import Section, identity_of
from raybrew.config.data import DataConfig
from raybrew.config.distill import DistillConfig
from raybrew.config.judge import LOSS
from raybrew.config.multi_task import MultiTaskConfig
from raybrew.config.store import StoreConfig
from raybrew.config.student import StudentConfig
from raybrew.config.sweep import SweepConfig
from raybrew.config.task import ClassificationConfig, TaskConfig
from raybrew.config.teacher import TeacherConfig
from raybrew.config.tracking import TrackingConfig
from raybrew.config.train import TrainConfig

__all__ = ["VERB_SECTIONS", "Experiment"]

#: Sections that decide what each verb computes; a run's identity is made of these.
VERB_SECTIONS = {
    "finetune": ("task", "data", "teacher"),
    "distill": ("task", "data", "teacher", "student", "distill", "train"),
}


def _number_of_tasks(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return "several" if kind == "multi" else "one"


#: The `task` section: one task, or several.
AnyTaskConfig = Annotated[
    Annotated[TaskConfig, Tag("one")] | Annotated[MultiTaskConfig, Tag("several")], Discriminator(_number_of_tasks)
]


class FromYaml(Protocol):
    """How `Experiment.from_yaml` is called."""

    def __call__(self, path: str | Path, overrides: Sequence[str] = (), check_files: bool = True) -> Experiment: ...


class Experiment(Section):
    """A resolved experiment. `raybrew.config.loading.load_experiment` reads one from YAML and overrides."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    """Name of the experiment; a folder of this name holds its runs."""
    task: AnyTaskConfig = ClassificationConfig()
    data: DataConfig = DataConfig()
    teacher: TeacherConfig = TeacherConfig()
    student: StudentConfig = StudentConfig()
    distill: DistillConfig = DistillConfig()
    train: TrainConfig = TrainConfig()
    store: StoreConfig = StoreConfig()
    tracking: TrackingConfig = TrackingConfig()
    sweep: SweepConfig | None = None
    """What `raybrew sweep` tries. Not set: there is nothing to sweep."""

    from_yaml: ClassVar[FromYaml]
    """The experiment in a file, as `raybrew.load_experiment`; `raybrew.config.loading` puts it here."""

    @property
    def judge(self) -> str:
        """What chooses among a student's checkpoints: `task.metric`, or LOSS where nothing trains the head."""
        return self.task.metric if self.distill.trains_head else LOSS

    def _repr_html_(self) -> str:
        """What is not a default, as YAML, for notebooks."""
        import yaml

        given = self.model_dump(mode="json", exclude_defaults=True)
        return f"<pre>{html.escape(yaml.safe_dump(given, sort_keys=False, allow_unicode=True))}</pre>"

    def plain(self) -> dict[str, Any]:
        """All values as plain JSON types."""
        result: dict[str, Any] = self.model_dump(mode="json")
        return result

    def written(self) -> dict[str, Any]:
        """As `plain`, but of `distill` only what is given: what a method sets is left to another method's values."""
        return self.plain() | {"distill": self.distill.model_dump(mode="json", exclude_unset=True)}

    def identity(self, verb: str) -> dict[str, Any]:
        """The values that decide what `verb` computes (not where, by how many workers, or how it is tracked)."""
        result: dict[str, Any] = {"verb": verb}
        for section in VERB_SECTIONS[verb]:
            result[section] = identity_of(getattr(self, section))
        if verb == "finetune":
            # A teacher learns from labels alone: changing the transfer set must not train it again.
            result["data"] = {
                key: value for key, value in result["data"].items() if not key.startswith(("unlabeled", "augment"))
            }
            result["teacher"] = {key: result["teacher"][key] for key in ("model", "revision", "finetune")}
        else:
            result["store"] = {"element_type": self.store.element_type}
            forms = {kind: form for kind, form in self.store.forms.items() if form != DENSE}
            result["store"] |= {"forms": forms} if forms else {}
        return result

    def run_id(self, verb: str) -> str:
        """`<verb>-<hash>`: equal configurations share a run, and so resume it."""
        text = json.dumps(self.identity(verb), sort_keys=True, ensure_ascii=False)
        return f"{verb}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def sweep_id(self) -> str:
        """`sweep-<hash>` of all that decides what is tried; budgets and sizes may change."""
        assert self.sweep is not None
        identity: dict[str, Any] = {"base": self.identity("distill"), "sweep": identity_of(self.sweep)}
        text = json.dumps(identity, sort_keys=True, ensure_ascii=False, default=str)
        return f"sweep-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

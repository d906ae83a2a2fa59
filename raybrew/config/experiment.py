"""`Experiment`: one file, or one call in Python, that describes finetune, capture, distill and their runs."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

import yaml
from pydantic import Discriminator, Field, Tag

from raybrew.catalog.forms import DENSE
from raybrew.config.base import Section, identity_of
from raybrew.config.data import DataConfig
from raybrew.config.distill import DistillConfig
from raybrew.config.judge import LOSS
from raybrew.config.kinds import is_multi
from raybrew.config.multi_task import MultiTaskConfig
from raybrew.config.store import StoreConfig
from raybrew.config.student import StudentConfig
from raybrew.config.sweep import SweepConfig
from raybrew.config.task import TaskConfig
from raybrew.config.task_kinds import ClassificationConfig
from raybrew.config.teacher import TeacherConfig
from raybrew.config.tracking import TrackingConfig
from raybrew.config.train import TrainConfig

__all__ = ["VERB_SECTIONS", "Experiment"]

#: Sections that decide what each verb computes; a run's identity is made of these.
VERB_SECTIONS = {
    "finetune": ("task", "data", "teacher"),
    "distill": ("task", "data", "teacher", "student", "distill", "train"),
}


if TYPE_CHECKING:
    AnySection = Section | Mapping[str, Any]


def _number_of_tasks(value: Any) -> str:
    return "several" if is_multi(value) else "one"


#: The `task` section: one task, or several.
AnyTaskConfig = Annotated[
    Annotated[TaskConfig, Tag("one")] | Annotated[MultiTaskConfig, Tag("several")], Discriminator(_number_of_tasks)
]


class FromYaml(Protocol):
    """How `Experiment.from_yaml` is called."""

    def __call__(self, path: str | Path, overrides: Sequence[str] = (), check_files: bool = True) -> Experiment: ...


class Experiment(Section):
    """A resolved experiment: what an experiment file says, and `from_yaml` reads.

    A section is given as one of the classes below `raybrew`, as a mapping, or in its short form: the model of a teacher
    (or a list of them), the shape or model of a student, the method of `distill`, the kind of a task. Rows may be a
    `datasets.Dataset`, a pandas or Arrow table or a list of dicts; they are written to a file in `data.cache` at once.

    Args:
        name: Name of the experiment; its runs lie in `<store.storage_path>/<name>/`.
        task: What is predicted; classification unless given.
        data: Rows to train on, to choose by and to score on.
        teacher: The model that is imitated, or several.
        student: A shape built after the teacher, or a model.
        distill: What the student imitates.
        train: How it is trained.
        store: Where runs and teacher outputs lie.
        tracking: Trackers beside the run folder.
        sweep: What `raybrew.sweep` tries.

    Raises:
        ConfigError: A key or value is wrong. Lists all problems at once, in the words of `raybrew validate`.
        DataError: Rows from Python that make no table.
        EnvironmentProblem: Rows cannot be written to `data.cache`.

    Example:
        >>> rows = [{"text": "a fine film", "label": "good"}, {"text": "a dull one", "label": "bad"}] * 20
        >>> experiment = raybrew.Experiment(
        ...     name="reviews", data=raybrew.Data(train=rows, eval=rows), teacher="owner/model", student="T3",
        ...     distill=raybrew.Distill(method="tinybert"), train=raybrew.Train(epochs=3))
        >>> experiment.student
        StudentConfig(shape='T3')
        >>> raybrew.Experiment.from_yaml(experiment.to_yaml("reviews.yaml")) == experiment
        True
    """

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            name: str,
            task: AnySection | str = ...,
            data: AnySection = ...,
            teacher: AnySection | str | Sequence[AnySection | str] = ...,
            student: AnySection | str = ...,
            distill: AnySection | str = ...,
            train: AnySection = ...,
            store: AnySection = ...,
            tracking: AnySection = ...,
            sweep: AnySection | None = ...,
        ) -> None: ...

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

    @classmethod
    def long_form(cls, value: Any) -> Any:
        """As of any section; a task may be its kind."""
        value = super().long_form(value)
        if isinstance(value, dict) and isinstance(value.get("task"), str | Mapping):
            task = value["task"]
            section = MultiTaskConfig if _number_of_tasks(task) == "several" else ClassificationConfig
            value["task"] = section.long_form(task)
        return value

    def to_yaml(self, path: str | Path | None = None) -> str:
        """Write the resolved experiment, which `from_yaml` reads back to an equal one.

        Args:
            path: Where to write it. Not given: nowhere.

        Returns:
            The path as text, or the YAML itself without one.

        Example:
            >>> raybrew.Experiment(name="x", teacher="owner/model", student="T3").to_yaml().splitlines()[0]
            'name: x'
        """
        # A default would be a value that is given, which methods of a sweep's space contradict.
        varies = self.sweep is not None and not {"distill", "distill.method"}.isdisjoint(self.sweep.space)
        text = yaml.safe_dump(self.written() if varies else self.plain(), sort_keys=False, allow_unicode=True)
        if path is None:
            return text
        Path(path).write_text(text, encoding="utf-8")
        return str(path)

    @property
    def cache_folder(self) -> Path:
        """Where encoded rows are kept, and rows that were given in Python."""
        return Path(self.data.cache or Path(self.store.storage_path) / ".cache")

    @property
    def judge(self) -> str:
        """What chooses among a student's checkpoints: `task.metric`, or LOSS where nothing trains the head."""
        return self.task.metric if self.distill.trains_head else LOSS

    def _repr_html_(self) -> str:
        """What is not a default, as YAML, for notebooks."""
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

"""What a training run is made from besides its configuration: rows and teachers, for each task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raybrew.config.views import DEFAULT
from raybrew.data.encoded import EncodedRows, open_encoded
from raybrew.models.loading import ModelSource
from raybrew.store.reader import Store
from raybrew.tasks.base import Labels

__all__ = ["Inputs", "TeacherInput", "fingerprints_of"]


@dataclasses.dataclass(frozen=True)
class TeacherInput:
    """A teacher of a task. With a `store` it answers from there, else it runs live."""

    source: ModelSource
    name: str = DEFAULT  #: among several
    label: str = ""  #: the same in messages and signals: empty for an only one
    weight: float = 1.0
    precision: str = "auto"
    store: str | None = None
    fingerprint: str | None = None
    weights: str | None = None
    """Of a live teacher in a folder: a hash of its weights, which must not change while the run is continued."""
    aligned: str | None = None
    """Folder of the training rows in this teacher's tokens, where items depend on them and the student's differ."""
    aligned_evaluation: str | None = None
    """The same of the evaluation rows."""
    opened: Store | None = dataclasses.field(default=None, repr=False, compare=False)
    """The open store, in the process that prepares the run: as long as it is open nobody removes the store."""

    def plain(self) -> dict[str, Any]:
        """As plain JSON values."""
        values = dataclasses.asdict(dataclasses.replace(self, opened=None))
        return {name: value for name, value in values.items() if name != "opened"}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> TeacherInput:
        """What `plain` gave."""
        return cls(**{**values, "source": ModelSource(**values["source"])})


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Rows and teachers of one task."""

    labels: Labels
    training: EncodedRows
    evaluation: EncodedRows | None
    num_labelled: int
    num_unlabeled: int
    teachers: tuple[TeacherInput, ...] = ()
    task: str = DEFAULT  #: name among several
    label: str = ""  #: the same in messages, folders and metrics: empty for an only one
    weight: float = 1.0
    num_augmented: int = 0  #: of the unlabelled rows
    fitted: EncodedRows | None = None
    """The evaluation rows in units that fit the teachers' tokenizers too; None where these are no others."""
    all_teachers: tuple[ModelSource, ...] = ()
    """Also those without a part in training: the student is timed beside them."""

    @property
    def compared(self) -> EncodedRows | None:
        """The evaluation rows on which losses are computed."""
        return self.evaluation if self.fitted is None else self.fitted

    def plain(self) -> dict[str, Any]:
        """As plain JSON values, for a process elsewhere."""
        return {
            "task": self.task,
            "label": self.label,
            "weight": self.weight,
            "labels": list(self.labels.names),
            "training_rows": str(self.training.folder),
            "evaluation_rows": str(self.evaluation.folder) if self.evaluation is not None else None,
            "fitted_rows": str(self.fitted.folder) if self.fitted is not None else None,
            "num_labelled": self.num_labelled,
            "num_unlabeled": self.num_unlabeled,
            "num_augmented": self.num_augmented,
            "teachers": [teacher.plain() for teacher in self.teachers],
            "all_teachers": [dataclasses.asdict(source) for source in self.all_teachers],
        }

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Inputs:
        """What `plain` gave, its rows opened."""
        evaluation, fitted = values["evaluation_rows"], values["fitted_rows"]
        return cls(
            Labels(tuple(values["labels"])),
            open_encoded(Path(values["training_rows"])),
            open_encoded(Path(evaluation)) if evaluation is not None else None,
            values["num_labelled"],
            values["num_unlabeled"],
            tuple(TeacherInput.from_plain(teacher) for teacher in values["teachers"]),
            values["task"],
            values["label"],
            values["weight"],
            values["num_augmented"],
            open_encoded(Path(fitted)) if fitted is not None else None,
            tuple(ModelSource(**source) for source in values["all_teachers"]),
        )

    def fingerprints(self) -> dict[str, Any]:
        """What must not change between a run and its continuation."""
        found = {teacher.label: teacher.fingerprint or teacher.weights for teacher in self.teachers}
        one = found.pop("", None)
        return {
            "training_rows": self.training.key,
            "evaluation_rows": self.evaluation.key if self.evaluation is not None else None,
            "teacher": found or one,
        }


def fingerprints_of(inputs: Sequence[Inputs]) -> dict[str, Any]:
    """The fingerprints of one task, or of each of several by name."""
    if len(inputs) == 1:
        return inputs[0].fingerprints()
    return {part.task: part.fingerprints() for part in inputs}

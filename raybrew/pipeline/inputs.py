"""What a training run is made from besides its configuration: rows and teachers, for each task."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from raybrew.config.views import DEFAULT
from raybrew.data.encoded import EncodedRows
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

    def __getstate__(self) -> dict[str, Any]:
        """For other processes, which open the store by themselves."""
        return {**self.__dict__, "opened": None}


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

"""What a training reads that lies in files: every node of a cluster must find the same there before workers start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raybrew.config import Experiment
from raybrew.models.loading import ModelSource
from raybrew.nodes import Folder, Place
from raybrew.storage.open import open_storage
from raybrew.verbs.inputs import Inputs

__all__ = ["needed_files"]


def needed_files(
    experiment: Experiment, inputs: Sequence[Inputs], source: ModelSource | None, vocabulary: Path | None
) -> dict[str, Place]:
    """Places by key and location: encoded rows, stores, and models that are folders here.

    Names of the hub are none: each node loads those from there.
    """
    rows = [each for part in inputs for each in (part.training, part.evaluation, part.fitted) if each is not None]
    teachers = [teacher for part in inputs for teacher in part.teachers]
    aligned = [path for each in teachers for path in (each.aligned, each.aligned_evaluation) if path is not None]
    found: dict[str, Place] = {}
    for folder in [*(each.folder for each in rows), *map(Path, aligned)]:
        found[f"data.cache ({folder})"] = Folder(folder)
    for store in {each.store for each in teachers if each.store is not None}:
        found[f"store.path ({store})"] = open_storage(store, experiment.store.cache)
    # Of a teacher with a store nothing else is read, unless the student is made after it.
    live = [each.source for each in teachers if each.store is None or experiment.distill.trains_in_teacher]
    models = [each.model for each in [*live, *([] if source is None else [source])]]
    if experiment.student.model is not None:
        models.append(experiment.student.model)
    for folder in [Path(model).absolute() for model in models if Path(model).is_dir()]:
        found[f"model ({folder})"] = Folder(folder)
    if vocabulary is not None:
        found[f"student.vocabulary ({vocabulary})"] = Folder(vocabulary)
    return found

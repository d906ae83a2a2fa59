"""What a training reads that lies in files: every node of a cluster must find the same there before workers start."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from raybrew.data.arrow import ShardInfo
from raybrew.nodes import Folder, Needed
from raybrew.runs.program import RunSpec
from raybrew.storage.open import is_remote, open_storage
from raybrew.storage.protocol import Storage
from raybrew.storage.staging import room_problem

__all__ = ["StoreFiles", "needed_files"]


@dataclasses.dataclass(frozen=True)
class StoreFiles:
    """A store: its manifest must be the same everywhere, and of a remote one there must be room for copies."""

    storage: Storage
    files: Mapping[str, ShardInfo]

    def read(self, name: str) -> bytes:
        return self.storage.read(name)

    def lacking(self) -> str | None:
        return room_problem(self.storage.path, self.files) if is_remote(self.storage.location) else None


def needed_files(spec: RunSpec) -> dict[str, Needed]:
    """Places by key and location: encoded rows, stores, and models that are folders here.

    Names of the hub are none: each node loads those from there.
    """
    experiment, inputs, source, vocabulary = spec.resolved.experiment, spec.inputs, spec.source, spec.vocabulary
    rows = [each for part in inputs for each in (part.training, part.evaluation, part.fitted) if each is not None]
    teachers = [teacher for part in inputs for teacher in part.teachers]
    aligned = [path for each in teachers for path in (each.aligned, each.aligned_evaluation) if path is not None]
    found: dict[str, Needed] = {}
    for folder in [*(each.folder for each in rows), *map(Path, aligned)]:
        found[f"data.cache ({folder})"] = Folder(folder)
    read: dict[str, dict[str, ShardInfo]] = {}
    for each in teachers:
        if each.store is not None:
            read.setdefault(each.store, {}).update({} if each.opened is None else each.opened.files_read())
    for store, files in read.items():
        found[f"store.path ({store})"] = StoreFiles(open_storage(store, experiment.store.cache), files)
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

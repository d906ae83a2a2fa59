"""store: what lies in teacher stores, whether it is whole and still what the teacher says, and removing it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from raybrew.config import Experiment
from raybrew.config.loading import load_experiment
from raybrew.errors import StoreError
from raybrew.storage.open import is_remote, stores_at, stores_root
from raybrew.store.listing import StoreEntry, entry_of
from raybrew.store.manifest import read_manifest
from raybrew.store.prune import PruneRules, Removal, plan_prune, prune_stores
from raybrew.store.reader import Store

if TYPE_CHECKING:
    from raybrew.pipeline.resolve import ResolvedTask, ResolvedTeacher
    from raybrew.store.live import LiveCheck

__all__ = [
    "PruneRules",
    "Removal",
    "StoreCheck",
    "list_stores",
    "plan_prune",
    "prune_stores",
    "root_of",
    "verify_live",
    "verify_stores",
]


@dataclasses.dataclass(frozen=True)
class StoreCheck:
    """What `verify_stores` found of one store: nothing where it is whole."""

    location: str
    problems: tuple[str, ...]


def root_of(target: str) -> tuple[str, str | None]:
    """The place that a person means, and its cache: a folder or URL as it is, an experiment file's folder of stores."""
    if not target.endswith((".yaml", ".yml")):
        return target, None
    experiment = load_experiment(target, check_files=False)
    return stores_root(experiment.store), experiment.store.cache


def list_stores(target: str = "runs/store") -> tuple[StoreEntry, ...]:
    """The store at a path or URL, or all stores in a folder, or those of an experiment file; with what is wrong.

    StoreError if there is no such folder.
    """
    root, cache = root_of(target)
    if not is_remote(root) and not Path(root).is_dir():
        raise StoreError(f"{root}: no such folder; `raybrew capture` makes stores")
    return tuple(entry_of(storage) for storage in stores_at(root, cache))


def verify_stores(target: str = "runs/store") -> tuple[StoreCheck, ...]:
    """Reads all bytes of the stores at `target` and compares them with the hashes of their manifests.

    A store that cannot be opened has that as its problem. StoreError if there is no store.
    """
    root, cache = root_of(target)
    checks = []
    for storage in stores_at(root, cache):
        try:
            problems = Store(storage, read_manifest(storage), None).verify()
        except StoreError as error:
            problems = (str(error),)
        checks.append(StoreCheck(storage.location, problems))
    if not checks:
        raise StoreError(f"{root}: no teacher store here; `raybrew capture` makes one")
    return tuple(checks)


def verify_live(
    experiment: Experiment,
    rows: int = 64,
    *,
    task: str | None = None,
    teacher: str | None = None,
    teacher_run: str | None = None,
) -> dict[str, tuple[LiveCheck, ...]]:
    """Computes that many rows of the experiment's store again with its teacher, and compares each signal.

    By name of task and teacher as `capture_all` gives them ("" where there is one of each); `task` and `teacher` choose
    one of several. StoreError if there is no store of just this teacher: a changed one has another fingerprint.
    """
    from raybrew.pipeline.resolve import label_of, resolve

    if rows < 1:
        raise StoreError(f"--live {rows}: allowed are 1 row or more")
    found: dict[str, tuple[LiveCheck, ...]] = {}
    for each in resolve(experiment, teacher_run=teacher_run).chosen(task):
        for one in each.chosen(teacher):
            if one.config.source != "live" or len(each.teachers) == 1:
                found[label_of(each.label, one.label)] = _compare_one(each, one, rows)
    return found


def _compare_one(task: ResolvedTask, teacher: ResolvedTeacher, rows: int) -> tuple[LiveCheck, ...]:
    """`verify_live` of one teacher."""
    from torch import nn

    from raybrew.models.devices import pick_device
    from raybrew.store.compute import Teacher
    from raybrew.store.find import find_any, identify
    from raybrew.store.forms.base import Forms
    from raybrew.store.live import compare_live

    settings, config = teacher.config, task.store
    known, model, tokenizer = identify(
        task.task, teacher.source, (), settings.device, settings.precision, config.launcher, task.models
    )
    store = find_any(known, teacher.source, task.store_root, config.cache)
    device = pick_device(settings.device, "teacher.device")
    module: nn.Module = model
    forms = Forms("float32")
    asked = Teacher(module.to(device).eval(), tokenizer, task.task, device, known.precision, forms, config.batch_tokens)
    return compare_live(store, asked, rows)

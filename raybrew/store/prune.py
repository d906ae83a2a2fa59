"""Removing what stores need no more: leftovers of dead captures, signals, element types, whole stores.

`plan_prune` only looks; `prune_stores` removes what it found, one store after the other, each held as a capture holds
it. So nothing is taken from under a running capture, and whatever is interrupted leaves a store that readers can use: a
signal leaves the commit marks first, then the manifest, then the disk; a store loses its manifest first.
"""

from __future__ import annotations

import dataclasses
import datetime
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from raybrew.errors import FULL, StoreError, StoreUnreachable
from raybrew.signals import Signal, parse_signal
from raybrew.storage.local import LocalFolder
from raybrew.storage.open import is_remote, storage_errors, stores_at
from raybrew.storage.protocol import PENDING, Storage
from raybrew.store.forms.base import StoredAs
from raybrew.store.forms.dense import ELEMENT_TYPES
from raybrew.store.layout import commit_shard, committed_shards
from raybrew.store.manifest import finished_manifest, is_foreign, last_used, publish, refuse_foreign
from raybrew.store.pending import locked_store, orphans_of

__all__ = ["PruneRules", "Removal", "plan_prune", "prune_stores"]


@dataclasses.dataclass(frozen=True)
class PruneRules:
    """What to remove. Nothing given: only files that no manifest and no commit mark knows.

    `signals` are names such as `hidden.08`, `element_types` such as `float32`; with both, only signals of these types.
    `stores` are fingerprints or their beginnings; `unused_days` takes whole stores that nothing has used for so long
    (those that do not know are left alone).
    """

    signals: tuple[str, ...] = ()
    element_types: tuple[str, ...] = ()
    stores: tuple[str, ...] = ()
    unused_days: float | None = None

    def __post_init__(self) -> None:
        for name in self.signals:
            try:
                parse_signal(name)
            except ValueError as error:
                raise StoreError(f"--signal {name}: {error}") from None
        for name in self.element_types:
            if name not in ELEMENT_TYPES:
                raise StoreError(f"--element-type {name}: no element type; allowed: {', '.join(ELEMENT_TYPES)}")
        for name in self.stores:
            if len(name) < 4 or not set(name) <= set("0123456789abcdef"):
                raise StoreError(f"--store {name}: no fingerprint, nor the first four or more digits of one")
        if self.unused_days is not None and self.unused_days < 0:
            raise StoreError(f"--unused-days {self.unused_days:g}: must not be negative")

    def takes(self, signal: Signal, element_type: str) -> bool:
        """Whether a signal kept like this is to go."""
        if not self.signals and not self.element_types:
            return False
        wanted = {parse_signal(name) for name in self.signals}
        return (not wanted or signal in wanted) and (not self.element_types or element_type in self.element_types)


@dataclasses.dataclass(frozen=True)
class Removal:
    """Something to remove from one store: `what` says it to a person; `held` says who is using it, so that it stays."""

    storage: Storage
    what: str
    files: tuple[str, ...]
    bytes: int
    folders: tuple[str, ...] = ()  #: folders of signals
    whole: bool = False
    held: str | None = None


def plan_prune(root: str | Path, rules: PruneRules, cache: str | None = None) -> tuple[Removal, ...]:
    """What `rules` would remove from the store at `root`, or from those below that folder or URL. Changes nothing.

    StoreError if a fingerprint, signal or element type of the rules fits no store.
    """
    if not is_remote(root) and not Path(root).is_dir():
        raise StoreError(f"{root}: no such folder; `raybrew capture` makes stores")
    removals: list[Removal] = []
    named: set[str] = set()
    for storage in stores_at(root, cache):
        found = [prefix for prefix in rules.stores if Path(storage.location).name.startswith(prefix)]
        named.update(found)
        removals += _of_store(storage, rules, bool(found))
    unknown = [prefix for prefix in rules.stores if prefix not in named]
    if unknown:
        raise StoreError(f"{root}: no store {', '.join(unknown)} here; `raybrew store ls {root}` shows all")
    if (rules.signals or rules.element_types) and not any(removal.folders or removal.whole for removal in removals):
        wanted = ", ".join((*rules.signals, *rules.element_types))
        raise StoreError(f"{root}: no store holds {wanted}; `raybrew store ls {root}` shows all")
    return tuple(removals)


def prune_stores(removals: Iterable[Removal]) -> int:
    """Remove what was planned, and what is held by nobody; gives the bytes removed.

    What a store holds is looked at again once it is held: shards that have come since stay.
    """
    removed = 0
    for removal in removals:
        if removal.held is not None:
            continue
        with storage_errors(removal.storage, "store prune"), locked_store(removal.storage, writes=False):
            if removal.storage.is_read():
                continue
            if removal.whole:
                _remove_store(removal.storage)
            elif removal.folders:
                _remove_signals(removal.storage, removal.folders)
            else:
                known = set(orphans_of(removal.storage, committed_shards(removal.storage)))
                removal.storage.delete([name for name in removal.files if name in known or _is_pending(name)])
        removed += removal.bytes
    return removed


def _of_store(storage: Storage, rules: PruneRules, named: bool) -> list[Removal]:
    if is_foreign(storage):
        return []  # another program's folder, whatever lies in it
    sizes, holder = storage.files(), storage.holder()
    held = f"{holder} is capturing" if holder is not None else "a run is reading it" if storage.is_read() else None
    why = None
    if named:
        why = "the whole store"
    elif rules.unused_days is not None:
        used = last_used(storage)
        days = None if used is None else (datetime.datetime.now(datetime.timezone.utc) - used).total_seconds() / 86400
        if days is not None and days >= rules.unused_days:
            why = f"the whole store, not used for {days:.0f} days"
    if why is not None:
        return [Removal(storage, why, tuple(sizes), sum(sizes.values()), whole=True, held=held)]
    try:
        refuse_foreign(storage)
    except StoreUnreachable:
        raise
    except StoreError:
        return []  # of another version: what its files are is not known here
    removals = []
    shards = committed_shards(storage)
    for folder in sorted({folder for shard in shards for folder in shard.files}):
        kept = StoredAs.parse(folder)
        if kept is not None and rules.takes(kept.signal, kept.element_type):
            files = tuple(name for name in sizes if name.startswith(f"{folder}/"))
            count = sum(sizes[name] for name in files)
            what = f"{kept.signal} as {kept.described}"
            removals.append(Removal(storage, what, files, count, folders=(folder,), held=held))
    # What is pending is gone as soon as the store is held by another.
    orphans = {*orphans_of(storage, shards), *(name for name in sizes if _is_pending(name))}
    if orphans and held is None:
        files = tuple(sorted(orphans))
        what = f"{len(files)} file{'s' if len(files) > 1 else ''} that a capture left behind"
        removals.append(Removal(storage, what, files, sum(sizes.get(name, 0) for name in files)))
    return removals


def _is_pending(name: str) -> bool:
    return name.startswith((f"{PENDING}/", ".dead-"))


def _remove_signals(storage: Storage, folders: Collection[str]) -> None:
    manifest = finished_manifest(storage)  # None: never finished, there are only marks
    before, shards = committed_shards(storage), []
    for shard in before:
        files = {folder: info for folder, info in shard.files.items() if folder not in folders}
        aside = {folder: rows for folder, rows in shard.set_aside.items() if folder not in folders}
        shards.append(dataclasses.replace(shard, files=files, set_aside=aside))
    gone = [name for name in storage.files() if name.rpartition("/")[0] in folders]

    def note() -> None:
        for old, new in zip(before, shards, strict=True):
            if len(new.files) < len(old.files):
                commit_shard(storage, new)
        if manifest is not None:
            publish(storage, manifest["parts"], manifest["teacher"], shards, manifest.get("labels", ()))

    try:
        note()
    except OSError as error:
        if error.errno not in FULL:
            raise
        storage.delete(gone)  # makes the room to note that it is gone
        note()
    storage.delete(gone)
    _remove_empty(storage, folders)


def _remove_store(storage: Storage) -> None:
    storage.delete(["manifest.json"])
    names = list(storage.files())
    storage.delete([name for name in names if name.startswith("shards/")])
    storage.delete([name for name in names if not name.startswith((f"{PENDING}/", ".lock", ".lease", ".capture"))])
    if isinstance(storage, LocalFolder):
        shutil.rmtree(storage.path, ignore_errors=True)


def _remove_empty(storage: Storage, folders: Collection[str]) -> None:
    if isinstance(storage, LocalFolder):
        for folder in folders:
            path = storage.path / folder
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()

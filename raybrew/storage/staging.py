"""Copies of remote shards on this node: made once, verified, shared by all processes, mapped into memory.

    <cache>/<fingerprint>/signals/hidden.08/data-00003-<xxh3>.arrow

A copy is named by the hash of its content and appears by a rename after that hash was checked; one that has changed
since is copied again. Nothing is removed: the folder may be deleted while no run uses it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock

from raybrew.data.arrow import ShardInfo, hash_file
from raybrew.data.hashes import known_hashes
from raybrew.errors import DataError, StoreError, StoreNotWritable
from raybrew.files import replacing

__all__ = ["cache_root", "room_problem", "stage", "staged_name"]

_DOWNLOADS = 4


def cache_root(cache: str | None) -> Path:
    """Folder of all copies on this node: `cache`, or `raybrew/stores` in the user's cache folder."""
    if cache is not None:
        return Path(cache).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "raybrew" / "stores"


def staged_name(shard: ShardInfo) -> str:
    """File name of the copy of a shard: data-00003-<xxh3>.arrow."""
    stem, _, ending = shard.file.rpartition(".")
    return f"{stem}-{shard.xxh3}.{ending}"


def stage(
    folder: Path, shards: Mapping[str, ShardInfo], download: Callable[[str, Path], None], source: str
) -> tuple[str, ...]:
    """Names of the copies in `folder`, those that lack there made by `download(name, path)`.

    `shards` maps remote names to what was committed; `source` names their origin in messages. One process of a node
    copies while the others wait for it. DataError names a shard whose bytes are not those that were committed,
    StoreError says when the disk has no room.
    """
    if _lacking(folder, shards):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(folder / ".lock"):
                lacking = _lacking(folder, shards)
                _remove_unfinished(folder)
                if (problem := _room_problem(folder, lacking)) is not None:
                    raise StoreError(f"{source}: {problem}")
                with ThreadPoolExecutor(_DOWNLOADS, "stage") as pool:
                    for done in [pool.submit(_copy, folder, name, lacking[name], download) for name in lacking]:
                        done.result()
        except (DataError, StoreError):
            raise
        except OSError as error:
            raise StoreNotWritable(
                f"{source}: cannot be copied into {folder} ({error.strerror or error}); set store.cache to a folder "
                "of this machine with room"
            ) from error
    return tuple(staged_name(shard) for shard in shards.values())


def _lacking(folder: Path, shards: Mapping[str, ShardInfo]) -> dict[str, ShardInfo]:
    copies = {name: staged_name(shard) for name, shard in shards.items()}
    sized = [copies[name] for name, shard in shards.items() if _size(folder / copies[name]) == shard.bytes]
    found = known_hashes(folder, sized)
    return {name: shard for name, shard in shards.items() if found.get(copies[name]) != shard.xxh3}


def _copy(folder: Path, name: str, shard: ShardInfo, download: Callable[[str, Path], None]) -> None:
    with replacing(folder / staged_name(shard)) as new:
        try:
            download(name, new)
        except FileNotFoundError:
            raise DataError(f"{name} is missing") from None
        if _size(new) != shard.bytes or hash_file(new) != shard.xxh3:
            raise DataError(f"{name} holds other bytes than were written")


def _remove_unfinished(folder: Path) -> None:
    # With the lock in hand nobody else is writing: these are of processes that died.
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def room_problem(root: Path, files: Mapping[str, ShardInfo]) -> str | None:
    """Why copies of `files`, by their names in a store, do not fit below `root` on this node; None if they do.

    What has been copied already takes no room.
    """
    folders = {name: root / name.rpartition("/")[0] for name in files}
    return _room_problem(root, {name: shard for name, shard in files.items() if _lacking(folders[name], {name: shard})})


def _room_problem(folder: Path, lacking: Mapping[str, ShardInfo]) -> str | None:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    needed, free = sum(shard.bytes for shard in lacking.values()), shutil.disk_usage(there).free
    if needed <= free:
        return None
    return (
        f"{needed / 2**20:.0f} MiB are to be copied into {folder}, where {free / 2**20:.0f} MiB are free; make room, "
        "or set store.cache to a folder on a larger disk"
    )


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None

"""The manifest of a store, written last and read first, and the date of its last use."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import xxhash

from raybrew.catalog.forms import DENSE
from raybrew.data.arrow import folder_state
from raybrew.errors import StoreError, StoreUnreachable
from raybrew.files import json_bytes
from raybrew.storage.protocol import Storage
from raybrew.store.forms.base import StoredAs
from raybrew.store.forms.columns import dim_of
from raybrew.store.index import INDEX, IdIndex, index_file, raw_manifest, write_index
from raybrew.store.layout import EXAMPLES, Shard, committed_shards, open_shards
from raybrew.version import __version__

__all__ = [
    "FORMAT_VERSION",
    "USED",
    "captured_labels",
    "fingerprint_of_parts",
    "finished_manifest",
    "is_foreign",
    "last_used",
    "mark_used",
    "publish",
    "read_manifest",
    "refuse_foreign",
]

FORMAT_VERSION = 2
_KIND = "raybrew teacher store"

#: File of the date of the last use, for `raybrew store ls` and `prune`.
USED = ".used"

#: A date this fresh is not written anew: a sweep opens a store hundreds of times.
_FRESH = datetime.timedelta(hours=1)


def publish(
    storage: Storage, parts: Mapping[str, Any], teacher: str, shards: Sequence[Shard], labels: Sequence[Any] = ()
) -> None:
    """Write the state files of all folders and then the manifest, which makes `shards` visible to readers.

    `labels`: the names of the outputs at each capture that added to the store, equal ones once.
    """
    from raybrew.data.rows import rows_fingerprint

    folders = sorted({folder for shard in shards for folder in shard.files})
    signals: dict[str, Any] = {}
    for folder in folders:
        members = [shard for shard in shards if folder in shard.files]
        text = "".join(shard.files[folder].xxh3 for shard in members)
        fingerprint = xxhash.xxh3_128_hexdigest(f"{folder}:{text}".encode())
        for name, value in folder_state([shard.file for shard in members], fingerprint).items():
            storage.write(f"{folder}/{name}", json_bytes(value))
        stored = StoredAs.parse(folder)
        if stored is not None:
            signals[folder] = {
                "signal": stored.signal.name,
                "element_type": stored.element_type,
                "dim": dim_of(storage.schema_of(f"{folder}/{members[0].file}")),
                "rows": sum(shard.rows for shard in members),
            } | ({"form": stored.form} if stored.form != DENSE else {})
    examples = open_shards(storage, EXAMPLES, shards)
    index = write_index(storage, IdIndex.of(examples.flat("id").read()))
    manifest = {
        "kind": _KIND,
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint_of_parts(parts),
        "parts": dict(parts),
        "teacher": teacher,
        "labels": [list(names) for names in labels],
        "rows": sum(shard.rows for shard in shards),
        "rows_fingerprint": rows_fingerprint(examples.table()),
        "index": {"bytes": index.bytes, "xxh3": index.xxh3},
        "signals": signals,
        "raybrew": __version__,
        "shards": [shard.plain() for shard in shards],
    }
    manifest["xxh3"] = _hash_of(manifest)
    storage.write("manifest.json", json_bytes(manifest))
    storage.delete([name for name in storage.files(INDEX) if name != f"{INDEX}/{index.file}"])


def read_manifest(storage: Storage) -> dict[str, Any]:
    """The manifest of a store, checked for form and version; `shards` parsed. StoreError otherwise."""
    path = f"{storage.location}/manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(storage.read("manifest.json"))
    except FileNotFoundError:
        if not storage.exists():
            raise StoreError(f"{storage.location}: no teacher store here; `raybrew capture` makes one") from None
        count = len(committed_shards(storage))
        raise StoreError(
            f"{storage.location}: the capture was not finished ({count} shards are committed); "
            "the same command continues it"
        ) from None
    except StoreError:
        raise
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: damaged, no readable JSON ({error}); capture again to rewrite it") from error
    _check_kind(path, manifest)
    changed = manifest.get("xxh3", "") not in ("", _hash_of(manifest))  # older stores have none
    try:
        found = str(manifest["fingerprint"])
        if found != fingerprint_of_parts(manifest["parts"]):
            raise StoreError(f"{path}: damaged, the fingerprint {found} is not that of its own parts")
        manifest["shards"] = [Shard.parse(value) for value in manifest["shards"]]
        for folder, entry in manifest["signals"].items():
            if StoredAs.parse(folder) is None:
                raise ValueError(f"{folder!r} is no folder of a signal")
            int(entry["dim"])
        index_file(manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{path}: damaged ({type(error).__name__}: {error}); capture again to rewrite it") from error
    if changed:
        raise StoreError(f"{path}: damaged, its own hash is another one; capture again to rewrite it")
    return manifest


def finished_manifest(storage: Storage) -> dict[str, Any] | None:
    """As `read_manifest`; None where there is no store, or it is unfinished, damaged or of another version."""
    try:
        return read_manifest(storage)
    except StoreUnreachable:
        raise
    except StoreError:
        return None


def is_foreign(storage: Storage) -> bool:
    """Whether a manifest lies there that is readable, but not that of a teacher store."""
    manifest = raw_manifest(storage)
    return manifest is not None and (not isinstance(manifest, dict) or manifest.get("kind") != _KIND)


def refuse_foreign(storage: Storage) -> None:
    """StoreError if another program's manifest lies there, or that of another version: neither is ours to change."""
    manifest = raw_manifest(storage)
    if manifest is not None:  # a damaged one is written anew by a capture, from its commit marks
        _check_kind(f"{storage.location}/manifest.json", manifest)


def captured_labels(storage: Storage) -> tuple[tuple[str, ...], ...]:
    """Names of the outputs at the captures that filled a store; none where it does not tell, being older or damaged."""
    try:
        return tuple(tuple(map(str, names)) for names in raw_manifest(storage)["labels"])
    except (KeyError, TypeError):
        return ()


def _check_kind(path: str, manifest: Any) -> None:
    if not isinstance(manifest, dict) or manifest.get("kind") != _KIND:
        raise StoreError(f"{path}: not the manifest of a raybrew teacher store")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        newer = isinstance(version, int) and version > FORMAT_VERSION
        fix = "install that one" if newer else "capture again, and remove this store with `raybrew store prune`"
        raise StoreError(
            f"{path}: format version {version}, written by raybrew {manifest.get('raybrew')}; "
            f"this is raybrew {__version__}, which reads version {FORMAT_VERSION}; {fix}"
        )


def fingerprint_of_parts(parts: Mapping[str, Any]) -> str:
    """Name of a store: xxh3_128 over the canonical JSON of its parts and the format version."""
    text = json.dumps({"format_version": FORMAT_VERSION, **parts}, sort_keys=True, ensure_ascii=False)
    return xxhash.xxh3_128_hexdigest(text.encode())


def _hash_of(manifest: Mapping[str, Any]) -> str:
    """xxh3_128 of a manifest without its own hash."""
    content = {name: value for name, value in manifest.items() if name != "xxh3"}
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True, ensure_ascii=False).encode())


def mark_used(storage: Storage) -> None:
    """Note that the store is used now. A store that cannot be written stays as it is: reading needs no right to."""
    now = datetime.datetime.now(datetime.timezone.utc)
    before = last_used(storage)
    if before is not None and datetime.timedelta(0) <= now - before < _FRESH:
        return
    with contextlib.suppress(OSError):
        storage.write(USED, json_bytes({"used": now.isoformat(timespec="seconds")}))


def last_used(storage: Storage) -> datetime.datetime | None:
    """When the store was last used, to about an hour; None if that is not known."""
    try:
        return datetime.datetime.fromisoformat(json.loads(storage.read(USED))["used"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None

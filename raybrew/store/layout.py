"""Where a store keeps what: folder names, element types, sidecars of shards (their commit marks) and the manifest.

    <root>/<fingerprint>/
      manifest.json                     written last; what readers go by
      shards/00000.json                 commit mark of a shard: rows, sizes and hashes; what a restarted capture goes by
      examples/data-00000.arrow         id, input_ids, token_type_ids where the tokenizer gives them
      signals/logits/data-00000.arrow   always float32
      signals/hidden.08/...             float16; other types have folders of their own: hidden.08.bfloat16, .float32
      pending/<token>/                  rows that a running capture still has to compute

All folders have the same rows in the same order. A signal may lack shards whose rows it was never asked for.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from raybrew.data.arrow import ArrowFolder, ShardInfo, folder_state, item_shape, json_bytes, shard_name
from raybrew.errors import StoreError
from raybrew.signals import LOGITS, Signal, parse_signal
from raybrew.store.storage import Storage
from raybrew.version import __version__

__all__ = [
    "ELEMENT_TYPES",
    "EXAMPLES",
    "FORMAT_VERSION",
    "IdIndex",
    "Shard",
    "commit_shard",
    "committed_shard",
    "committed_shards",
    "element_type_of",
    "fingerprint_of_parts",
    "open_shards",
    "problems_of",
    "publish",
    "read_manifest",
    "signal_folder",
    "signal_of",
]

FORMAT_VERSION = 1
EXAMPLES = "examples"
_KIND = "raybrew teacher store"

#: Element type -> Arrow type. bfloat16 is kept as its bits.
ELEMENT_TYPES: Mapping[str, pa.DataType] = {
    "float32": pa.float32(),
    "float16": pa.float16(),
    "bfloat16": pa.uint16(),
}
_BARE_TYPE = "float16"
_MARK = re.compile(r"shards/(\d+)\.json")
_SIGNAL_FOLDER = re.compile(r"signals/([a-z]+(?:\.\d{2,3})?)(?:\.(float32|bfloat16))?")


def element_type_of(signal: Signal, wanted: str) -> str:
    """How `signal` is kept in a store of type `wanted`: logits are few and always float32."""
    return "float32" if signal == LOGITS else wanted


def signal_folder(signal: Signal, element_type: str) -> str:
    """Folder of `signal` in a store of `element_type`: signals/logits, signals/hidden.08, signals/hidden.08.float32."""
    bare = signal == LOGITS or element_type == _BARE_TYPE
    return f"signals/{signal.name}" if bare else f"signals/{signal.name}.{element_type}"


def signal_of(folder: str) -> tuple[Signal, str] | None:
    """Signal and element type of a folder name; None if it is not the folder of a signal."""
    found = _SIGNAL_FOLDER.fullmatch(folder)
    if found is None:
        return None
    try:
        signal = parse_signal(found[1])
    except ValueError:
        return None
    element_type = found[2] or element_type_of(signal, _BARE_TYPE)
    return (signal, element_type) if signal_folder(signal, element_type) == folder else None


@dataclasses.dataclass(frozen=True)
class Shard:
    """A committed shard: for each folder that has it, size and hash of its file."""

    index: int
    rows: int
    tokens: int
    first_id: str
    last_id: str
    files: Mapping[str, ShardInfo]

    @property
    def file(self) -> str:
        """Name of its file, the same in every folder."""
        return shard_name(self.index)

    def plain(self) -> dict[str, Any]:
        """As JSON, with folders in one order."""
        files = {folder: {"bytes": info.bytes, "xxh3": info.xxh3} for folder, info in sorted(self.files.items())}
        return {
            "index": self.index,
            "rows": self.rows,
            "tokens": self.tokens,
            "first_id": self.first_id,
            "last_id": self.last_id,
            "files": files,
        }

    @classmethod
    def parse(cls, value: Any) -> Shard:
        """From JSON; KeyError, TypeError or ValueError where it is not what `plain` writes."""
        index, rows = int(value["index"]), int(value["rows"])
        files = {}
        for folder, entry in value["files"].items():
            if folder != EXAMPLES and signal_of(folder) is None:
                raise ValueError(f"{folder!r} is no folder of a store")
            files[folder] = ShardInfo(shard_name(index), rows, int(entry["bytes"]), str(entry["xxh3"]))
        return cls(index, rows, int(value["tokens"]), str(value["first_id"]), str(value["last_id"]), files)


class IdIndex:
    """Finds rows by their 16-byte example ids: sorted ids and their positions, 24 bytes a row."""

    def __init__(self, ids: npt.NDArray[np.uint8]) -> None:
        keys = _as_keys(ids)
        self._order = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def find(self, ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Position of each of `ids` (n, 16) uint8; -1 for an unknown one."""
        keys = _as_keys(ids)
        if not len(self._keys):
            return np.full(len(keys), -1, np.int64)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[places] == keys, self._order[places], -1)


def _as_keys(ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.bytes_]:
    # Byte strings of one size sort and compare as memory does; numpy's void type sorts far slower.
    return np.ascontiguousarray(ids).view("S16").reshape(-1)


def commit_shard(storage: Storage, shard: Shard) -> None:
    """Write the commit mark of `shard`, whose files must be in place."""
    storage.write(_mark(shard.index), json_bytes(shard.plain()))


def committed_shards(storage: Storage, hashes: bool = False) -> list[Shard]:
    """Shards with a commit mark, by number, without those files that are missing or not of the size they should be.

    With `hashes` all bytes are read, and files that hold other ones are left out too. So what was damaged is computed
    again. A shard without its examples is not committed at all.
    """
    sizes = storage.files()
    marks = {int(found[1]): name for name in sizes if (found := _MARK.fullmatch(name)) is not None}
    contents = storage.read_many(list(marks.values()))
    parsed = [_parsed(number, contents[marks[number]]) for number in sorted(marks) if marks[number] in contents]
    whole = [kept for shard in parsed if shard is not None and (kept := _whole(shard, sizes)) is not None]
    return whole if not hashes else [kept for shard in whole if (kept := _unharmed(storage, shard)) is not None]


def committed_shard(storage: Storage, index: int) -> Shard | None:
    """Shard `index` as `committed_shards` gives it; None if it is not committed."""
    name = _mark(index)
    content = storage.read_many([name]).get(name)
    shard = None if content is None else _parsed(index, content)
    return None if shard is None else _whole(shard, storage.sizes([f"{folder}/{shard.file}" for folder in shard.files]))


def open_shards(storage: Storage, folder: str, shards: Iterable[Shard]) -> ArrowFolder:
    """Shards of `folder` as one table of memory maps, staged where they are remote; DataError names a bad file."""
    path, names = storage.staged(folder, [shard.files[folder] for shard in shards])
    return ArrowFolder.open(path, names)


def problems_of(storage: Storage, shards: Iterable[Shard], hashes: bool) -> tuple[str, ...]:
    """One line for each file that is missing, of another size or, with `hashes`, of other bytes than was committed."""
    problems, sizes = [], storage.files()
    for shard in shards:
        for folder, info in shard.files.items():
            name = f"{folder}/{shard.file}"
            size = sizes.get(name)
            if size is None:
                problems.append(f"{name} is missing")
            elif size != info.bytes:
                problems.append(f"{name} has {size} bytes instead of {info.bytes}")
            elif hashes and storage.hash_of(name) != info.xxh3:
                problems.append(f"{name} holds other bytes than were written")
    return tuple(problems)


def publish(storage: Storage, parts: Mapping[str, Any], teacher: str, shards: Sequence[Shard]) -> None:
    """Write the state files of all folders and then the manifest, which makes `shards` visible to readers."""
    from raybrew.data.rows import rows_fingerprint

    folders = sorted({folder for shard in shards for folder in shard.files})
    signals: dict[str, Any] = {}
    for folder in folders:
        members = [shard for shard in shards if folder in shard.files]
        text = "".join(shard.files[folder].xxh3 for shard in members)
        fingerprint = xxhash.xxh3_128_hexdigest(f"{folder}:{text}".encode())
        for name, value in folder_state([shard.file for shard in members], fingerprint).items():
            storage.write(f"{folder}/{name}", json_bytes(value))
        found = signal_of(folder)
        if found is not None:
            signal, element_type = found
            kind = storage.schema_of(f"{folder}/{members[0].file}").field(signal.kind).type
            signals[folder] = {
                "signal": signal.name,
                "element_type": element_type,
                "dim": item_shape(kind)[0],
                "rows": sum(shard.rows for shard in members),
            }
    manifest = {
        "kind": _KIND,
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint_of_parts(parts),
        "parts": dict(parts),
        "teacher": teacher,
        "rows": sum(shard.rows for shard in shards),
        "rows_fingerprint": rows_fingerprint(open_shards(storage, EXAMPLES, shards).table()),
        "signals": signals,
        "raybrew": __version__,
        "shards": [shard.plain() for shard in shards],
    }
    storage.write("manifest.json", json_bytes(manifest))


def read_manifest(storage: Storage) -> dict[str, Any]:
    """The manifest of a store, checked for form and version; `shards` parsed. StoreError otherwise."""
    path = f"{storage.location}/manifest.json"
    try:
        manifest = json.loads(storage.read("manifest.json"))
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
    if not isinstance(manifest, dict) or manifest.get("kind") != _KIND:
        raise StoreError(f"{path}: not the manifest of a raybrew teacher store")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise StoreError(
            f"{path}: format version {version}, written by raybrew {manifest.get('raybrew')}; "
            f"this is raybrew {__version__}, which reads version {FORMAT_VERSION}"
        )
    try:
        found = str(manifest["fingerprint"])
        if found != fingerprint_of_parts(manifest["parts"]):
            raise StoreError(f"{path}: damaged, the fingerprint {found} is not that of its own parts")
        manifest["shards"] = [Shard.parse(value) for value in manifest["shards"]]
        for folder, entry in manifest["signals"].items():
            if signal_of(folder) is None:
                raise ValueError(f"{folder!r} is no folder of a signal")
            int(entry["dim"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{path}: damaged ({type(error).__name__}: {error}); capture again to rewrite it") from error
    return manifest


def fingerprint_of_parts(parts: Mapping[str, Any]) -> str:
    """Name of a store: xxh3_128 over the canonical JSON of its parts and the format version."""
    text = json.dumps({"format_version": FORMAT_VERSION, **parts}, sort_keys=True, ensure_ascii=False)
    return xxhash.xxh3_128_hexdigest(text.encode())


def _parsed(index: int, content: bytes) -> Shard | None:
    """The shard of a commit mark; None if it cannot be read."""
    try:
        shard = Shard.parse(json.loads(content))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return shard if shard.index == index else None


def _whole(shard: Shard, sizes: Mapping[str, int]) -> Shard | None:
    """`shard` with those of its files that are of the size they should be; None if its examples are not."""
    files = {folder: info for folder, info in shard.files.items() if sizes.get(f"{folder}/{shard.file}") == info.bytes}
    return dataclasses.replace(shard, files=files) if EXAMPLES in files else None


def _unharmed(storage: Storage, shard: Shard) -> Shard | None:
    """`shard` with those of its files that hold the bytes that were written; None if its examples do not."""
    name = "{}/{}".format
    files = {
        folder: info for folder, info in shard.files.items() if storage.hash_of(name(folder, shard.file)) == info.xxh3
    }
    return dataclasses.replace(shard, files=files) if EXAMPLES in files else None


def _mark(index: int) -> str:
    return f"shards/{index:05d}.json"

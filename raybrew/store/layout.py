"""Where a store keeps what, and its shards: their files, and sidecars that are their commit marks.

    <root>/<fingerprint>/
      manifest.json                     written last; what readers go by
      shards/00000.json                 commit mark of a shard: rows, sizes and hashes; what a restarted capture goes by
      examples/data-00000.arrow         id, input_ids; token_type_ids where the tokenizer gives them; for tasks that
                                        judge parts of a text, items: the positions of tokens that have logits
      index/<xxh3>.arrow                ids, sorted, and their positions; named by its content
      signals/logits/data-00000.arrow   always float32; one vector a row, or a list of one for each item
      signals/hidden.08/...             float16; other types have folders of their own: hidden.08.bfloat16, .int8, ...
      pending/<token>/                  rows that a running capture still has to compute

All folders have the same rows in the same order. A signal may lack shards whose rows it was never asked for.

In the dense form (`raybrew.store.forms`; folders of others are such as logits.int8@package.module-Name) one row is, in
the column named by the kind: a list of numbers of one size (logits, pooled); a list with one such list for each token
(hidden, query, key, value); or, for attention, one list of heads * length * length numbers, head by head and query by
query. So nothing is padded. Of queries, keys and values the vectors are kept: a relation of n heads would be n * length
numbers for each token instead of the width of the model, which is less for very short rows alone, and would tie all
students to that n.

A row that the teacher could not compute stands there as zeros (as an example without tokens, if it has none), and is
named with the reason in the commit mark: `set_aside`, by folder and id.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from raybrew.data.arrow import ArrowFolder, ShardInfo, shard_name
from raybrew.files import json_bytes
from raybrew.storage.protocol import Storage
from raybrew.store.forms.base import StoredAs

__all__ = [
    "EXAMPLES",
    "Shard",
    "commit_shard",
    "committed_shard",
    "committed_shards",
    "open_shards",
    "problems_of",
    "problems_of_file",
]

EXAMPLES = "examples"

_MARK = re.compile(r"shards/(\d+)\.json")


@dataclasses.dataclass(frozen=True)
class Shard:
    """A committed shard: for each folder that has it, size and hash of its file."""

    index: int
    rows: int
    tokens: int
    first_id: str
    last_id: str
    files: Mapping[str, ShardInfo]
    set_aside: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)  #: folder -> id -> reason

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
            "set_aside": {
                folder: dict(sorted(rows.items())) for folder, rows in sorted(self.set_aside.items()) if rows
            },
        }

    @classmethod
    def parse(cls, value: Any) -> Shard:
        """From JSON; KeyError, TypeError or ValueError where it is not what `plain` writes."""
        index, rows = int(value["index"]), int(value["rows"])
        files = {}
        for folder, entry in value["files"].items():
            if folder != EXAMPLES and StoredAs.parse(folder) is None:
                raise ValueError(f"{folder!r} is no folder of a store")
            files[folder] = ShardInfo(shard_name(index), rows, int(entry["bytes"]), str(entry["xxh3"]))
        aside = {
            str(folder): {str(row): str(reason) for row, reason in rows.items()}
            for folder, rows in value["set_aside"].items()
        }
        return cls(index, rows, int(value["tokens"]), str(value["first_id"]), str(value["last_id"]), files, aside)


def commit_shard(storage: Storage, shard: Shard) -> None:
    """Write the commit mark of `shard`, whose files must be in place."""
    storage.write(_mark(shard.index), json_bytes(shard.plain()))


def committed_shards(storage: Storage, hashes: bool = False, folders: Collection[str] = ()) -> list[Shard]:
    """Shards with a commit mark, by number, without those files that are missing or not of the size they should be.

    With `hashes` all bytes are read, and files that hold other ones are left out too; of files in `folders` that lie on
    this node the hashes are compared as they are known (`known_hashes`). So what was damaged is computed again. A shard
    without its examples is not committed at all.
    """
    sizes = storage.files()
    marks = {int(found[1]): name for name in sizes if (found := _MARK.fullmatch(name)) is not None}
    contents = storage.read_many(list(marks.values()))
    parsed = [_parsed(number, contents[marks[number]]) for number in sorted(marks) if marks[number] in contents]
    whole = [kept for shard in parsed if shard is not None and (kept := _whole(shard, sizes)) is not None]
    changed = {name for folder in (() if hashes else folders) for name in _changed(storage, folder, whole)}

    def is_bad(name: str, info: ShardInfo) -> bool:
        return storage.hash_of(name) != info.xxh3 if hashes else name in changed

    return [kept for shard in whole if (kept := _without(shard, is_bad)) is not None]


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
    problems: list[str] = []
    sizes = storage.files()
    for shard in shards:
        for folder, info in shard.files.items():
            problems += problems_of_file(storage, f"{folder}/{shard.file}", info, hashes, sizes)
    return tuple(problems)


def problems_of_file(
    storage: Storage, name: str, info: ShardInfo, hashes: bool, sizes: Mapping[str, int] | None = None
) -> tuple[str, ...]:
    """One line if the file `name` is not what `info` says, as in `problems_of`."""
    size = (storage.sizes([name]) if sizes is None else sizes).get(name)
    if size is None:
        return (f"{name} is missing",)
    if size != info.bytes:
        return (f"{name} has {size} bytes instead of {info.bytes}",)
    if hashes and storage.hash_of(name) != info.xxh3:
        return (f"{name} holds other bytes than were written",)
    return ()


def _parsed(index: int, content: bytes) -> Shard | None:
    """The shard of a commit mark; None if it cannot be read."""
    try:
        shard = Shard.parse(json.loads(content))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return shard if shard.index == index else None


def _whole(shard: Shard, sizes: Mapping[str, int]) -> Shard | None:
    """`shard` with those of its files that are of the size they should be; None if its examples are not."""
    return _without(shard, lambda name, info: sizes.get(name) != info.bytes)


def _changed(storage: Storage, folder: str, shards: Sequence[Shard]) -> list[str]:
    """Names of the files of `folder` that are known to hold other bytes than were committed."""
    wanted = {shard.file: shard.files[folder].xxh3 for shard in shards if folder in shard.files}
    found = storage.known_hashes(folder, wanted) if wanted else None
    return [] if found is None else [f"{folder}/{file}" for file, xxh3 in wanted.items() if found.get(file) != xxh3]


def _without(shard: Shard, is_bad: Callable[[str, ShardInfo], bool]) -> Shard | None:
    """`shard` without its bad files; None if its examples are among them."""
    files = {folder: info for folder, info in shard.files.items() if not is_bad(f"{folder}/{shard.file}", info)}
    aside = {folder: rows for folder, rows in shard.set_aside.items() if folder in files}
    return dataclasses.replace(shard, files=files, set_aside=aside) if EXAMPLES in files else None


def _mark(index: int) -> str:
    return f"shards/{index:05d}.json"

"""Parsed rows of large local files, kept as Arrow: one process parses a file, all others map the result.

A kept table is named by a hash of the bytes of the files and of everything else that parsing depends on, so a changed
file or setting has a name of its own and nothing stale is read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from raybrew.data.arrow import write_shard
from raybrew.data.hashes import known_hashes, read_note, write_note
from raybrew.data.readers.records import BadRow
from raybrew.data.rows.row_set import ID_BYTES, RowSet
from raybrew.errors import DataError
from raybrew.tasks.base import Labels

__all__ = ["kept_rows"]

#: Changes when rows are parsed otherwise or kept in another form.
_FORMAT = 1
#: Files that are smaller together are parsed by each process.
_WORTH_BYTES = 1 << 20
_FACTS, _SET_ASIDE = b"raybrew", b"set_aside"


def kept_rows(
    folder: Path | None, files: Sequence[tuple[Path, str]], asked: Sequence[Any], read: Callable[[], RowSet]
) -> RowSet:
    """What `read` makes of `files` (path and format), from `folder` if a process has kept it there.

    `asked`: all that `read` depends on beside the bytes of the files. Without files or a folder nothing is kept.
    """
    content = None if folder is None else _content(files)
    if folder is None or content is None:
        return read()
    key = xxhash.xxh3_128_hexdigest(json.dumps([_FORMAT, content, asked], default=str).encode())
    path = folder / f"rows-{key}.arrow"
    found = _load(path)
    if found is None:
        found = read()
        if _content(files) == content:  # else the file changed while it was read
            with contextlib.suppress(OSError):  # the next process parses it again then
                _keep(path, found)
    return found


def _content(files: Sequence[tuple[Path, str]]) -> list[tuple[str, str, str]] | None:
    """Path, format and hash of each file; None where one is not a plain file, or all are small."""
    try:
        if not files or not all(path.is_file() for path, _ in files):
            return None
        if sum(path.stat().st_size for path, _ in files) < _WORTH_BYTES:
            return None
        return [(str(path), kind, known_hashes(path.parent, [path.name])[path.name]) for path, kind in files]
    except (OSError, KeyError):
        return None


def _keep(path: Path, rows: RowSet) -> None:
    if not path.parent.parent.is_dir():
        return
    path.parent.mkdir(exist_ok=True)
    facts = {
        "labels": rows.labels.names,
        "named": rows.labels.named,
        "skipped": [dataclasses.astuple(bad) for bad in rows.skipped],
        "source": rows.source,
        "num_read": rows.num_read,
        "numbered": rows.numbered,
    }
    metadata = {_FACTS: json.dumps(facts).encode(), _SET_ASIDE: rows.set_aside.tobytes()}
    shard = write_shard(path, rows.table.replace_schema_metadata(metadata))
    write_note(path.with_suffix(".json"), shard.xxh3)


def _load(path: Path) -> RowSet | None:
    """Kept rows, mapped; None where there are none or their bytes are not those that were written."""
    try:
        wanted = read_note(path.with_suffix(".json"))
        if wanted is None or known_hashes(path.parent, [path.name]).get(path.name) != wanted:
            return None
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_stream(file).read_all()
        facts = json.loads(table.schema.metadata[_FACTS])
        return RowSet(
            table.replace_schema_metadata(None),
            Labels(tuple(facts["labels"]), facts["named"]),
            tuple(BadRow(*bad) for bad in facts["skipped"]),
            facts["source"],
            np.frombuffer(table.schema.metadata[_SET_ASIDE], np.uint8).reshape(-1, ID_BYTES),
            facts["num_read"],
            facts["numbered"],
        )
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException, DataError):
        return None

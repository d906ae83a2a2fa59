"""Where the files of a store lie, behind one small protocol: a folder (local, NFS), or a prefix of an object store.

Names are relative to the store and use `/`: `manifest.json`, `signals/logits/data-00000.arrow`. What is read as memory
maps is `staged` first: for a folder that is the file itself, for an object store a verified copy on this node.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from raybrew.data.arrow import ShardInfo

__all__ = ["PENDING", "Storage"]

#: Folder of what a running capture still has to compute; below it one folder per capture, named by its token.
PENDING = "pending"


class Storage(Protocol):
    """The files of one store. Objects travel to other processes (they pickle) and open their connections there."""

    @property
    def location(self) -> str:
        """Path or URL, as a person writes it."""

    @property
    def path(self) -> Path:
        """Folder of this node where files are mapped from: the store itself, or its staged copies."""

    def exists(self) -> bool:
        """Whether there is anything."""

    def files(self, below: str = "") -> dict[str, int]:
        """Names and sizes of all files, or of those in or under the folder `below`."""

    def sizes(self, names: Collection[str]) -> dict[str, int]:
        """Sizes of those of `names` that exist."""

    def read(self, name: str) -> bytes:
        """Content of a small file; FileNotFoundError."""

    def read_many(self, names: Sequence[str]) -> dict[str, bytes]:
        """Contents of those of `names` that exist."""

    def write(self, name: str, data: bytes) -> None:
        """A small file, whole or not at all."""

    def put(self, path: Path, name: str) -> None:
        """Move the finished local file `path` to `name`, whole or not at all; FileNotFoundError if it is gone."""

    def delete(self, names: Collection[str]) -> None:
        """Remove files; missing ones are none to remove."""

    def hash_of(self, name: str) -> str:
        """xxh3_128 of a file's bytes as they are now."""

    def known_hashes(self, folder: str, files: Collection[str]) -> dict[str, str] | None:
        """xxh3_128 of those files of `folder` that exist, each read once a node; None where they lie elsewhere."""

    def schema_of(self, name: str) -> pa.Schema:
        """Columns of an Arrow file, of which little more is read."""

    def staged(self, folder: str, shards: Sequence[ShardInfo]) -> tuple[Path, tuple[str, ...]]:
        """Folder and file names of these shards of `folder` on this node, to be mapped.

        DataError if a copy would not be what was committed; StoreError if it cannot be made.
        """

    def table_of(self, name: str) -> pa.Table:
        """A small Arrow file as a table; DataError if it cannot be read."""

    def claim(
        self, waiting: Callable[[str], None] | None = None, writes: bool = True
    ) -> contextlib.AbstractContextManager[str]:
        """Hold the store as its one writer, or as one who only removes from it; gives a token.

        With `waiting`, which hears on whom, it waits for others; StoreError says who holds it otherwise.
        """

    def await_end(self, waiting: Callable[[str], None]) -> None:
        """Wait while anybody holds the store; `waiting` hears who."""

    def holder(self) -> str | None:
        """Who is capturing into the store, in words; None if nobody is known to."""

    def reading(self) -> object:
        """Something to keep while the files of the store are read, so that nobody removes them."""

    def is_read(self) -> bool:
        """Whether a run reads the store, as far as that is known."""

    def holds(self, token: str) -> bool:
        """Whether the capture of that token is still the one that may write."""

    def scratch(self, token: str) -> contextlib.AbstractContextManager[Path]:
        """Local folder for files that a worker of the capture `token` is about to `put`."""

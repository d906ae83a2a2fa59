"""One capture at a time: the folder of what is pending, and tidying up after one that died."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

from raybrew.errors import Interrupted
from raybrew.storage.lock import Waiting
from raybrew.storage.open import storage_errors
from raybrew.storage.protocol import PENDING, Storage
from raybrew.store.index import INDEX, published_index
from raybrew.store.layout import Shard

__all__ = ["Pending", "await_store", "locked_store", "orphans_of", "remove_orphans"]


@dataclasses.dataclass(frozen=True)
class Pending:
    """What one running capture still has to compute, in a folder of the store that is gone when that capture is."""

    storage: Storage
    token: str

    def name(self, file: str) -> str:
        """Name in the store of a file of this capture."""
        return f"{PENDING}/{self.token}/{file}"

    def check(self) -> None:
        """Interrupted if the capture has ended, or another one has taken its place."""
        if not self.storage.holds(self.token):
            raise Interrupted("the capture was stopped")


@contextlib.contextmanager
def locked_store(storage: Storage, waiting: Waiting | None = None, writes: bool = True) -> Iterator[Pending]:
    """Hold the store, made if need be, as its one writer; pending files are removed at the end.

    With `waiting` it waits until nobody else holds the store, Interrupted by Ctrl-C; StoreError says who holds it
    otherwise.
    """
    with contextlib.ExitStack() as stack:
        with storage_errors(storage, "the store cannot be written"), _left_by_ctrl_c(storage):
            token = stack.enter_context(storage.claim(waiting, writes))
        yield Pending(storage, token)


def await_store(storage: Storage, waiting: Waiting) -> None:
    """Returns when nobody captures into the store (any more). Changes nothing. Interrupted by Ctrl-C."""
    with _left_by_ctrl_c(storage):
        storage.await_end(waiting)


@contextlib.contextmanager
def _left_by_ctrl_c(storage: Storage) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"no longer waiting for the capture into {storage.location}, which goes on; the same command waits again"
        ) from None


def remove_orphans(storage: Storage, shards: Sequence[Shard]) -> None:
    """Remove files that no commit mark knows, left by a capture that died between two steps. Needs the lock."""
    storage.delete(orphans_of(storage, shards))


def orphans_of(storage: Storage, shards: Sequence[Shard]) -> list[str]:
    """Names of the files that `remove_orphans` removes."""
    known = {f"{folder}/{shard.file}" for shard in shards for folder in shard.files}
    known |= {f"shards/{shard.index:05d}.json" for shard in shards}
    index = published_index(storage)
    orphans = []
    for name in storage.files():
        folder, _, file = name.rpartition("/")
        temporary = file.startswith(".") and file.endswith(".tmp")
        data = file.endswith(".arrow") and not name.startswith((f"{PENDING}/", f"{INDEX}/"))
        mark = folder == "shards" and file.endswith(".json")
        old = folder == INDEX and index is not None and file != index
        if temporary or old or ((data or mark) and name not in known):
            orphans.append(name)
    return orphans

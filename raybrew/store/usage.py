"""When a store was last written or read by a run: one date in the store, for `raybrew store ls` and `prune`."""

from __future__ import annotations

import contextlib
import datetime
import json

from raybrew.files import json_bytes
from raybrew.storage.protocol import Storage

__all__ = ["USED", "last_used", "mark_used"]

USED = ".used"

#: A date this fresh is not written anew: a sweep opens a store hundreds of times.
_FRESH = datetime.timedelta(hours=1)


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

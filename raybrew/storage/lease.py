"""One capture at a time in an object store: a lease object whose holder keeps it beating.

Object stores (as pyarrow reaches them) have no write that fails when the object exists, so this is a lease, not a lock:
two captures that start within the same instant settle who is first by what lies there a moment later; one that was cut
off for longer than the lease lasts may be taken over, and finds that out at its next beat or commit. Until then both
may write. No reader takes harm: a mark names sizes and hashes, so an object that another capture has overwritten with
other rows is found by `verify`, by staging and by the next capture, and computed again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from raybrew.errors import StoreError
from raybrew.files import json_bytes
from raybrew.storage.lock import waiting_for
from raybrew.storage.protocol import PENDING, Storage

__all__ = ["BEAT_SECONDS", "LEASE_SECONDS", "Holder", "await_lease", "holder_of", "leased"]

log = logging.getLogger("raybrew.store")

#: A holder writes its lease this often; one that has not changed for `LEASE_SECONDS` while watched is nobody's.
BEAT_SECONDS = 5.0
LEASE_SECONDS = 30.0
#: After writing a lease, how long to wait before looking whose it is.
SETTLE_SECONDS = 1.0
_LEASE = ".lease.json"


class Leased(Storage, Protocol):
    """What a lease is kept in."""

    def hasty(self) -> Storage:
        """The same, which does not try again what fails."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who captures into a store. `machine` tells machines, and containers on one, apart."""

    token: str
    pid: int
    host: str
    machine: str
    since: str
    beat: int

    @property
    def gone(self) -> bool:
        """Known to have ended: a process of this machine that is no more."""
        if self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"


def holder_of(storage: Leased) -> Holder | None:
    """Whose lease lies in the store; None if there is none."""
    try:
        values = json.loads(storage.read(_LEASE))
        return Holder(**values)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError) as error:
        raise StoreError(f"{storage.location}/{_LEASE}: no lease of this version ({error}); delete it") from error


@contextlib.contextmanager
def leased(storage: Leased, waiting: Callable[[str], None] | None = None) -> Iterator[str]:
    """Hold the store for the length of the block; gives a token.

    Waits up to `LEASE_SECONDS` for the lease of a capture that may have been killed on another machine, and with
    `waiting`, which hears on whom, for the end of those that go on; StoreError says who holds it otherwise.
    """
    while True:
        await_lease(storage, waiting)
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        mine = Holder(uuid.uuid4().hex, os.getpid(), socket.gethostname(), _machine(), since, 0)
        storage.write(_LEASE, json_bytes(dataclasses.asdict(mine)))
        time.sleep(SETTLE_SECONDS)
        found = holder_of(storage)
        if found is not None and found.token == mine.token:
            break
        if waiting is None:
            raise StoreError(_held(storage, found))
    storage.delete(storage.files(PENDING))
    hasty, done = storage.hasty(), threading.Event()
    beating = threading.Thread(target=_beat, args=(hasty, mine, done), name="lease", daemon=True)
    beating.start()
    try:
        yield mine.token
    finally:
        done.set()
        beating.join()
        with contextlib.suppress(StoreError):
            # An error that ended the block is worth more than one of tidying up, and must not wait for it.
            if hasty.holds(mine.token):
                hasty.delete([*hasty.files(PENDING), _LEASE])


def await_lease(storage: Leased, waiting: Callable[[str], None] | None) -> None:
    """Returns when no lease lies in the store, or nobody keeps it beating.

    While it beats, `waiting` hears whose it is; StoreError without it.
    """
    found = holder_of(storage)
    if found is None or found.gone:
        return
    log.warning(
        "%s: %s may be capturing into this store; waiting up to %.0f s for a sign of it",
        storage.location,
        found,
        LEASE_SECONDS,
    )
    # Watched, not dated: the clocks of two machines and of the service need not agree.
    end, told = time.monotonic() + LEASE_SECONDS, ""
    while time.monotonic() < end:
        time.sleep(min(1.0, BEAT_SECONDS / 2))
        now = holder_of(storage)
        if now is None or now.gone:
            return
        if now == found:
            continue
        if waiting is None:
            raise StoreError(_held(storage, now))
        if now.token != told:
            waiting(waiting_for(storage.location, str(now)))
        found, end, told = now, time.monotonic() + LEASE_SECONDS, now.token


def _beat(storage: Leased, mine: Holder, done: threading.Event) -> None:
    """Write the lease anew until `done`, or until it is another's; an outage is waited out."""
    beat = 0
    while not done.wait(BEAT_SECONDS):
        try:
            if not storage.holds(mine.token):
                return
            beat += 1
            storage.write(_LEASE, json_bytes(dataclasses.asdict(dataclasses.replace(mine, beat=beat))))
        except StoreError:
            continue  # an outage


def _held(storage: Leased, holder: Holder | None) -> str:
    who = "another process" if holder is None else str(holder)
    return f"{storage.location}: {who} is capturing into this store; wait for it, or stop it"


def _machine() -> str:
    """A name that only processes share that see each other's process ids."""
    names = [socket.gethostname()]
    with contextlib.suppress(OSError):
        names.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip())
    with contextlib.suppress(OSError):
        names.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(names)

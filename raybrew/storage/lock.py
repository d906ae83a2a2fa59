"""One capture at a time in a folder: the lock on its store, which goes with its process, and the mark of readers."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from raybrew.errors import FULL, StoreError, StoreNotWritable
from raybrew.files import write_json
from raybrew.storage.protocol import PENDING

__all__ = ["Reading", "Waiting", "await_folder", "folder_holder", "is_read", "locked_folder", "waiting_for"]

_HOLDER = ".capture.json"
_LOCK = ".lock"
_DEAD = ".dead-"
_READERS = ".readers"
#: A holder has noted who it is after so long.
_GRACE_SECONDS = 0.2
_POLL_SECONDS = 0.5

#: Hears on whom a process waits, in one line, anew whenever that is another one.
Waiting = Callable[[str], None]


def waiting_for(location: str | Path, holder: str) -> str:
    """On whom a process waits, and how to stop that, in one line."""
    return (
        f"{location}: {holder} is capturing into this store; waiting for it to end, to use what it stored "
        "(Ctrl-C ends this command alone)"
    )


@contextlib.contextmanager
def locked_folder(root: Path, waiting: Waiting | None = None, writes: bool = True) -> Iterator[str]:
    """The lock on a store in a folder. It goes with its process, however that ends.

    Who does not mean to write, but to remove, needs no room on the disk.
    """
    lock = filelock.FileLock(root / _LOCK)
    timeout, told = 0.0 if waiting is None else _GRACE_SECONDS, ""
    while not lock.is_locked:
        try:
            root.mkdir(parents=True, exist_ok=True)  # anew, as `store prune` may remove what is waited for
            lock.acquire(timeout=timeout)
        except filelock.Timeout:
            who = _holder(root)
            if waiting is None:
                raise StoreError(f"{root}: {who} is capturing into this store; wait for it, or stop it") from None
            if who != told:
                waiting(waiting_for(root, who))
            timeout, told = _POLL_SECONDS, who
        except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
            raise StoreNotWritable(f"{root}: no folder can be made here ({error.strerror}); set store.path") from None
    try:
        _discard(root / PENDING)
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        token = uuid.uuid4().hex
        with _noted_if_possible(writes):
            write_json(root / _HOLDER, {"pid": os.getpid(), "host": socket.gethostname(), "since": since})
            (root / PENDING / token).mkdir(parents=True)
        yield token
    finally:
        _discard(root / PENDING)
        (root / _HOLDER).unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def _noted_if_possible(needed: bool) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if needed or error.errno not in FULL:
            raise


class Reading:
    """While it lives, the store in a folder is read by this process: `is_read` says so, also after a fork.

    Where the folder cannot be written nobody can remove anything either, and nothing is noted.
    """

    def __init__(self, root: Path) -> None:
        self._descriptor: int | None = None
        with contextlib.suppress(OSError):
            self._descriptor = os.open(root / _READERS, os.O_RDONLY | os.O_CREAT, 0o666)
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)


def is_read(root: Path) -> bool:
    """Whether a process reads the store in a folder."""
    try:
        # Network file systems want the right to write for it.
        path = root / _READERS
        descriptor = os.open(path, os.O_RDWR if os.access(path, os.W_OK) else os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def folder_holder(root: Path) -> str | None:
    """Who holds the lock on a store in a folder; None if nobody does. Changes nothing."""
    if not (root / _LOCK).is_file():
        return None
    lock = filelock.FileLock(root / _LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return _holder(root)
    except OSError:
        return None  # a store that cannot be written is not being written
    lock.release()
    return None


def await_folder(root: Path, waiting: Waiting) -> None:
    """Returns when nobody holds the lock on a store in a folder. Changes nothing."""
    told = ""
    while (who := folder_holder(root)) is not None:
        if who != told:
            waiting(waiting_for(root, who))
        told = who
        time.sleep(_POLL_SECONDS)


def _discard(folder: Path) -> None:
    # Renamed first: from then on no worker that is still alive finds its way in, whatever it writes meanwhile.
    if folder.is_dir():
        os.replace(folder, folder.with_name(f"{_DEAD}{uuid.uuid4().hex}"))
    # With those of captures that were killed just here.
    for dead in folder.parent.glob(f"{_DEAD}*"):
        shutil.rmtree(dead, ignore_errors=True)


def _holder(root: Path) -> str:
    try:
        holder = json.loads((root / _HOLDER).read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} (since {holder['since']})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"

"""Checkpoints: everything that changes during training, in one file, whole or absent.

`step-00000120.pt` is written beside its final name and renamed, so a file that exists is complete. The checksum beside
it, which is on the disk before it counts, tells damage by a broken disk: without one, or with another, a checkpoint is
as good as none, and the one before is taken. Writing goes on in a thread beside the training, from a copy.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import re
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from raybrew.errors import CheckpointError, EnvironmentProblem, first_line, machine_problem
from raybrew.files import write_bytes

__all__ = ["Checkpoints"]

_NAME = re.compile(r"step-(\d{8})\.pt")


class Checkpoints:
    """The checkpoints of one run: the newest `keep` stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self._writer: threading.Thread | None = None
        self._newest: int | None = None
        self._error: BaseException | None = None

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(found[1]) for path in self.folder.iterdir() if (found := _NAME.fullmatch(path.name)))

    def save(self, step: int, state: Mapping[str, Any], then: Callable[[], None] | None = None) -> None:
        """Begin to write the state after `step` steps, once the one before is written; a copy is taken at once.

        The folder's parent must be there. `then` is called, in the thread that writes, when the state is on the disk.
        EnvironmentProblem when the one before could not be written, for example on a full disk.
        """
        self.wait()
        if step == self._newest:
            return  # to replace a checkpoint by itself would only be a moment without one
        copied = _on_cpu(state)
        self._writer = threading.Thread(target=self._write_aside, args=(step, copied, then), name="raybrew-checkpoint")
        self._writer.start()

    def wait(self) -> None:
        """Until the last save is on the disk; EnvironmentProblem if it failed."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write_aside(self, step: int, state: Mapping[str, Any], then: Callable[[], None] | None) -> None:
        try:
            self._write(step, state)
            self._newest = step
            if then is not None:
                then()
        except BaseException as error:  # raised by `wait`, in the thread that trains
            self._error = error

    def _write(self, step: int, state: Mapping[str, Any]) -> None:
        path = self._path(step)
        temporary = self.folder / f".{path.name}.{os.getpid()}"
        try:
            self.folder.mkdir(exist_ok=True)  # a run folder that was removed does not come back in parts
            torch.save(state, temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            self._put(temporary, path, _checksum(temporary).encode())
        except (OSError, RuntimeError) as error:  # torch wraps a failed write in RuntimeError
            full = self.folder.is_dir() and shutil.disk_usage(self.folder).free < _size(temporary) + 2**20
            temporary.unlink(missing_ok=True)
            # torch reports a failed write in words of its own.
            cause = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if full else error
            reason = machine_problem(cause) or first_line(cause)
            raise EnvironmentProblem(f"cannot write checkpoint {path}: {reason}") from cause
        self._prune()

    def _put(self, temporary: Path, path: Path, checksum: bytes) -> None:
        """Give a whole file its name, its checksum first."""
        write_bytes(_sum_path(path), checksum)
        _sync(self.folder)
        os.replace(temporary, path)
        _sync(self.folder)

    def load_newest(self, mapped: bool = False) -> tuple[int, dict[str, Any]] | None:
        """The newest whole checkpoint as (step, state), None if there is none; damaged ones are passed over.

        Tensors of a `mapped` one are read from the file when they are used, which must be before the next save.

        CheckpointError if there are checkpoints and all of them are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            state = self._read(step, mapped)
            if state is not None:
                self._newest = step
                return step, state
        if steps:
            raise CheckpointError(
                f"{self.folder}: all {len(steps)} checkpoints are damaged; remove the folder to start the run anew"
            )
        return None

    def load(self, step: int, mapped: bool = False) -> dict[str, Any]:
        """The checkpoint of `step`; CheckpointError if it is not there or damaged."""
        state = self._read(step, mapped)
        if state is None:
            raise CheckpointError(
                f"{self._path(step)}: not there or damaged, but another worker has read it; is {self.folder} the same "
                "folder on all nodes?"
            )
        return state

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}.pt"

    def _read(self, step: int, mapped: bool) -> dict[str, Any] | None:
        if not self.has(step):
            return None
        try:
            state: dict[str, Any] = torch.load(self._path(step), map_location="cpu", weights_only=True, mmap=mapped)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            return None
        return state

    def has(self, step: int) -> bool:
        """Whether there is a whole checkpoint of `step`."""
        path = self._path(step)
        try:
            return _sum_path(path).read_bytes() == _checksum(path).encode()
        except OSError:
            return False

    def take(self, folder: Path, step: int) -> None:
        """Copy the checkpoint of `step` from another run's `folder`."""
        source, path = Checkpoints(folder, 1)._path(step), self._path(step)
        temporary = self.folder / f".{path.name}.{os.getpid()}"
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        self._put(temporary, path, _sum_path(source).read_bytes())

    def clear(self) -> None:
        """Remove all checkpoints of a finished run."""
        for step in self.steps():
            self._remove(step)

    def _prune(self) -> None:
        for step in self.steps()[: -self.keep]:
            self._remove(step)
        for left_over in self.folder.glob(".step-*"):
            left_over.unlink(missing_ok=True)

    def _remove(self, step: int) -> None:
        path = self._path(step)
        path.unlink(missing_ok=True)
        _sum_path(path).unlink(missing_ok=True)


def _on_cpu(value: Any) -> Any:
    """A copy that later steps do not change; tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_on_cpu(item) for item in value)
    return value


def _size(path: Path) -> int:
    """Bytes of a file that may not be there."""
    return path.stat().st_size if path.exists() else 0


def _sync(folder: Path) -> None:
    """Makes renames in `folder` last; some network file systems refuse, and lose nothing by it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sum_path(path: Path) -> Path:
    return path.with_suffix(".xxh3")


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()

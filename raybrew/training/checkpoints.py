"""Checkpoints: everything that changes during training, in one file, whole or absent.

`step-00000120.pt` is written beside its final name and renamed, so a file that exists is complete; a checksum beside it
tells damage from truncation by a broken disk.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import torch
import xxhash

from raybrew.errors import CheckpointError, EnvironmentProblem

__all__ = ["Checkpoints"]

_NAME = re.compile(r"step-(\d{8})\.pt")


class Checkpoints:
    """The checkpoints of one run: the newest `keep` stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(found[1]) for path in self.folder.iterdir() if (found := _NAME.fullmatch(path.name)))

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write the state after `step` steps; EnvironmentProblem when the disk is full."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08d}.pt"
        temporary = self.folder / f".{path.name}.{os.getpid()}"
        try:
            torch.save(state, temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            _sum_path(path).write_text(_checksum(temporary), encoding="ascii")
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:  # torch wraps a failed write in RuntimeError
            full = shutil.disk_usage(self.folder).free < _size(temporary) + 2**20
            temporary.unlink(missing_ok=True)
            # torch reports a failed write in words of its own.
            reason = "No space left on device" if full else str(error).splitlines()[0]
            raise EnvironmentProblem(f"cannot write checkpoint {path}: {reason}") from error
        self._prune()
        return path

    def load_newest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest whole checkpoint as (step, state), None if there is none; damaged ones are passed over.

        CheckpointError if there are checkpoints and all of them are damaged.
        """
        steps = self.steps()
        for step in reversed(steps):
            path = self.folder / f"step-{step:08d}.pt"
            checksum = _sum_path(path)
            if checksum.is_file() and checksum.read_text(encoding="ascii") != _checksum(path):
                continue
            try:
                return step, torch.load(path, map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
                continue
        if steps:
            raise CheckpointError(
                f"{self.folder}: all {len(steps)} checkpoints are damaged; remove the folder to start the run anew"
            )
        return None

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
        path = self.folder / f"step-{step:08d}.pt"
        path.unlink(missing_ok=True)
        _sum_path(path).unlink(missing_ok=True)


def _size(path: Path) -> int:
    """Bytes of a file that may not be there."""
    return path.stat().st_size if path.exists() else 0


def _sum_path(path: Path) -> Path:
    return path.with_suffix(".xxh3")


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()

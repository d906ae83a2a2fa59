"""Students as Hugging Face folders, replaced so that a whole one is there at any moment."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raybrew.errors import EnvironmentProblem, ModelError, RaybrewError, RunError
from raybrew.models.weights import write_record

__all__ = [
    "EXPORT_MARK",
    "check_target",
    "held_export",
    "next_student",
    "recover_student",
    "replaced_folder",
    "save_student",
    "scratch_beside",
    "take_next_student",
    "whole_folder",
    "write_card",
]

#: Facts about an export, by which its folder is known as one; written last.
EXPORT_MARK = "raybrew.json"
_CARD = "README.md"
#: renameat2(2): exchange the two names.
_EXCHANGE = 2
#: "relative to the working directory" for the *at system calls.
_AT_WORKING_DIRECTORY = -100


def save_student(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    card: str,
    weights: Mapping[str, Tensor] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Path:
    """Writes model (safetensors), config, tokenizer and, if `card` is not empty, README.md to `folder`; returns it.

    Hashes of the files are noted beside `facts` (`raybrew.models.weights`), by which a later change is noticed.
    `weights` replace those that the model holds, which are parts where it is divided among workers.
    Everything is written beside it first, then takes its place in one rename; a student that was there stays whole
    until then. One writer per folder. RunError if the folder holds something else than a model; EnvironmentProblem if
    it cannot be written, ModelError if the model is none of Hugging Face's.
    """
    if not isinstance(model, PreTrainedModel):
        raise ModelError(f"only Hugging Face models can be exported, got {type(model).__name__}")
    folder = _real(folder)
    recover_student(folder)
    _check_replaceable(folder)
    new = _sibling(folder, "new")
    try:
        new.mkdir(parents=True)
        model.save_pretrained(new, state_dict=None if weights is None else dict(weights))
        tokenizer.save_pretrained(new)
        if card:
            (new / _CARD).write_text(card, encoding="utf-8")
        write_record(new, **(facts or {}))
        _finish_files(new)
        _put_in_place(new, folder)
    except (OSError, SafetensorError) as error:
        raise EnvironmentProblem(
            f"cannot write the student to {folder}: {error}; what was there before is unchanged"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return folder


def next_student(folder: Path) -> Path:
    """Where a student waits that is to take the place of the one in `folder`, on the same disk."""
    folder = _real(folder)
    return folder.parent / f".{folder.name}.next"


def take_next_student(folder: Path) -> None:
    """Lets the student that waits take the place of the one in `folder`, which is gone then."""
    folder, new = _real(folder), next_student(folder)
    recover_student(folder)
    _check_replaceable(folder)
    try:
        _put_in_place(new, folder)
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write the student to {folder}: {error}; what was there before is unchanged"
        ) from error
    shutil.rmtree(new, ignore_errors=True)


def recover_student(folder: Path) -> None:
    """Clears what a killed save left beside `folder`, and puts the student back if the kill came between two renames.

    `save_student` begins with it; a run that continues calls it before it counts on the folder.
    """
    folder = _real(folder)
    if not folder.exists():
        for old in _siblings(folder, "old"):
            old.rename(folder)
            break
    for left in (*_siblings(folder, "new"), *_siblings(folder, "old")):
        shutil.rmtree(left, ignore_errors=True)


def check_target(folder: Path, force: bool = False) -> None:
    """RunError if an export may not be written to `folder`: it holds one, or (even with `force`) something else."""
    folder = _real(folder)
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is a file; name a folder to export to")
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / EXPORT_MARK).is_file():
        raise RunError(
            f"{folder} holds files but no {EXPORT_MARK}, so it is no export and is not replaced; name another"
        )
    if not force:
        raise RunError(f"{folder} holds an export already; --force replaces it")


def held_export(folder: Path) -> dict[str, Any] | None:
    """What EXPORT_MARK says of the export at `folder`, after clearing what a killed one left; None without one."""
    recover_student(folder)
    try:
        facts = json.loads((_real(folder) / EXPORT_MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return facts if isinstance(facts, dict) else None


@contextlib.contextmanager
def scratch_beside(folder: Path) -> Iterator[Path]:
    """A folder beside the export `folder` for what making it takes; if a kill leaves it, the next export clears it."""
    scratch = _sibling(_real(folder), "new")
    try:
        scratch.mkdir(parents=True)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write beside {folder}: {error}") from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def whole_folder(folder: Path, force: bool = False) -> Iterator[Path]:
    """A new folder to write an export into, which takes the place of `folder` in one rename when the block ends well.

    Until then what is at `folder` stays as it is. One writer per folder. RunError as `check_target`,
    EnvironmentProblem if it cannot be written.
    """
    folder = _real(folder)
    recover_student(folder)
    check_target(folder, force)
    with replaced_folder(folder) as new:
        yield new


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder`, whatever that holds, in one rename when the block ends well."""
    folder = _real(folder)
    recover_student(folder)
    new = _sibling(folder, "new")
    try:
        new.mkdir(parents=True)
        yield new
        _finish_files(new)
        _put_in_place(new, folder)
    except (OSError, SafetensorError) as error:
        if isinstance(error, RaybrewError):
            raise
        raise EnvironmentProblem(f"cannot write {folder}: {error}; what was there before is unchanged") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_card(folder: Path, card: str) -> None:
    """Replaces the README.md of a saved student in one rename."""
    path = folder / _CARD
    temporary = folder.parent / f".{folder.name}.{_CARD}.{secrets.token_hex(4)}"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(card)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise EnvironmentProblem(f"cannot write the model card {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _real(folder: Path) -> Path:
    """The folder behind a link: renaming would replace the link and leave that folder as it was."""
    return Path(os.path.realpath(folder.expanduser()))


def _sibling(folder: Path, role: str) -> Path:
    return folder.parent / f".{folder.name}.{role}-{secrets.token_hex(4)}"


def _siblings(folder: Path, role: str) -> list[Path]:
    marker = f".{folder.name}.{role}-"
    return [path for path in folder.parent.iterdir() if path.name.startswith(marker)] if folder.parent.is_dir() else []


def _check_replaceable(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RunError(f"{folder} is a file; name a folder for the student")
    held = list(folder.iterdir())
    foreign = [path.name for path in held if path.is_dir() or path.name.startswith(".")]
    if not held or (not foreign and (folder / "config.json").is_file()):
        return
    what = f"holds {foreign[0]!r}" if foreign else "holds files but no config.json"
    raise RunError(f"{folder} is no student's folder ({what}) and is not replaced; name another one, or empty it")


def _put_in_place(new: Path, folder: Path) -> None:
    """Renames `new` to `folder`; what was there ends up under `new`'s name or is gone."""
    if not folder.exists():
        new.rename(folder)
    elif not _exchange(new, folder):
        # A kill between these two renames leaves the student under `old`: recover_student puts it back.
        old = _sibling(folder, "old")
        folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    _sync_folder(folder.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two names in one step; False where system or file system cannot (macOS, NFS)."""
    if sys.platform != "linux":
        return False
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    here = ctypes.c_int(_AT_WORKING_DIRECTORY)
    failed: int = function(here, os.fsencode(first), here, os.fsencode(second), ctypes.c_uint(_EXCHANGE))
    return failed == 0


def _finish_files(folder: Path) -> None:
    """Gives all files the rights of an ordinary one (safetensors' are the owner's alone) and puts them on the disk."""
    rights = next(folder.rglob("config.json")).stat().st_mode  # of several tasks each student has a folder in it
    for path in folder.rglob("*"):
        if path.is_dir():
            _sync_folder(path)
            continue
        path.chmod(rights)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    """Makes renames in `folder` last; some network file systems refuse, and lose nothing by it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)

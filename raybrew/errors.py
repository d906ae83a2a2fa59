"""Errors that users meet: one line that says what is wrong and what to do, picklable across Ray processes.

Every error also derives from the built-in exception a caller would expect, so `except ValueError` keeps working.
`exit_code` is what the command line returns for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Iterator
from typing import Literal, TypeAlias

__all__ = [
    "FULL",
    "CheckpointError",
    "ClusterError",
    "ConfigError",
    "DataError",
    "DivergenceError",
    "EnvironmentProblem",
    "Interrupted",
    "LossError",
    "ModelError",
    "Problem",
    "ProblemCode",
    "RaybrewError",
    "RunError",
    "RunLocked",
    "StoreError",
    "StoreNotWritable",
    "StoreUnreachable",
    "first_line",
    "machine_problem",
    "writing",
]

#: What a write ends in on a disk that is full or over its quota, ...
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
#: ... or read-only.
_DISK = FULL | {errno.EROFS}
_DISK_WORDS = tuple(map(os.strerror, sorted(_DISK)))
#: Other answers of the system that are no fault of the program.
_SYSTEM = _DISK | {
    *(errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.ENOMEM, errno.EMFILE, errno.ENFILE),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ESTALE),
}
_MEMORY_WORDS = ("can't allocate memory", "out of memory")


#: What can be wrong with a key, for programs; sentences are for people and may change.
ProblemCode: TypeAlias = Literal[
    "value",  # of the wrong kind, out of its bounds, or none of what is allowed
    "unknown",  # a key, or a name of something, that does not exist
    "required",  # not given, though something else that is given needs it
    "conflict",  # given beside something that it does not go with
    "unused",  # given, but nothing reads it
    "empty",  # leaves nothing to learn, to try or to compare
    "duplicate",  # the same thing twice
    "missing",  # a file, folder or function that is not where it is said to be
    "unfit",  # does not fit the models, rows or machines that it is for
    "secret",  # holds what looks like a secret
]


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing wrong with one key.

    >>> str(Problem("train.epochs", "given 0; allowed: at least 1"))
    'train.epochs: given 0; allowed: at least 1'
    """

    key: str
    message: str
    code: ProblemCode = "value"

    def __str__(self) -> str:
        return f"{self.key}: {self.message}"


class RaybrewError(Exception):
    """Base of all errors raised on purpose by raybrew."""

    exit_code = 1
    #: What kind of thing is wrong, for programs.
    code = "error"
    #: Whether the same may succeed a while later, so that workers are started again for it.
    transient = False

    def __reduce__(self) -> tuple[type, tuple[object, ...], dict[str, object]]:
        # The default rebuilds from `args` and would lose attributes set by subclasses on the way through Ray.
        return type(self), self.args, self.__dict__.copy()


class ConfigError(RaybrewError, ValueError):
    """An experiment file, an override or an argument is wrong; carries every problem found, not only the first."""

    code = "config"
    exit_code = 3

    def __init__(self, message: str, problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems

    @classmethod
    def of(cls, key: str, message: str, code: ProblemCode = "value") -> ConfigError:
        """The error of a single problem, in one line."""
        problem = Problem(key, message, code)
        return cls(str(problem), (problem,))


class DataError(RaybrewError, ValueError):
    """Source rows cannot be used; names file, row and column."""

    code = "data"


class ModelError(RaybrewError, ValueError):
    """A model, tokenizer or student shape cannot be loaded or built."""

    code = "model"


class LossError(RaybrewError, ValueError):
    """A loss, match or projection cannot be computed; names the match and both shapes."""

    code = "loss"


class DivergenceError(LossError):
    """The loss or its gradient became NaN or infinite; names the step, the loss terms and the example ids."""

    code = "divergence"
    step: int = 0
    terms: dict[str, float]
    grad_norm: float = 0.0
    example_ids: tuple[str, ...] = ()

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.terms = {}


class StoreError(RaybrewError, OSError):
    """The teacher store is missing, foreign, damaged or lacks what was asked for."""

    code = "store"


class EnvironmentProblem(RaybrewError, RuntimeError):  # noqa: N818 (EnvironmentError is taken by Python)
    """The machine cannot do what was asked: no GPU, a full disk, a missing package."""

    code = "environment"
    exit_code = 4


class StoreNotWritable(StoreError, EnvironmentProblem):  # noqa: N818 (as the others of its kind)
    """The disk of a store, or of copies of one, is full or may not be written."""

    code = "store-not-writable"
    exit_code = 4


class StoreUnreachable(StoreError):  # noqa: N818 (as the others of its kind)
    """The service that holds the store does not answer, or refuses: what is there is not known."""

    code = "store-unreachable"
    transient = True


class CheckpointError(RaybrewError, OSError):
    """A checkpoint is missing, damaged or belongs to another configuration."""

    code = "checkpoint"


class RunError(RaybrewError, RuntimeError):
    """A run failed or its folder belongs to something else."""

    code = "run"


class RunLocked(RunError):  # noqa: N818 (as the others of its kind)
    """Another process works on this run or sweep: it is free when that one has ended."""

    code = "run-locked"


class ClusterError(EnvironmentProblem):
    """Ray cannot be started, reached or given the resources asked for."""

    code = "cluster"
    transient = True


class Interrupted(RaybrewError):  # noqa: N818 (an outcome, not a fault)
    """The run was asked to stop and saved its state first; the same command continues it."""

    code = "interrupted"
    exit_code = 130


def machine_problem(error: BaseException, only_disk: bool = False) -> str | None:
    """What the machine lacks, if that is what ended in `error`: room on a disk, the right to write, memory.

    With `only_disk` a disk that is full, over its quota or read-only, which whatever else writes to it meets as well.

    Libraries written in Rust and C++ tell of a full disk in words alone, so that these are looked at as well. What an
    error of ours came from counts only if it was the disk: that a file cannot be read is the caller's matter.
    """
    known = only_disk or isinstance(error, RaybrewError)
    seen: set[int] = set()
    here: BaseException | None = error
    while here is not None and id(here) not in seen:
        seen.add(id(here))
        if isinstance(here, OSError) and here.errno in (_DISK if known else _SYSTEM):
            where = "" if here.filename is None else f"{here.filename}: "
            return f"{where}{os.strerror(here.errno)}"
        text = "" if isinstance(here, RaybrewError) else str(here)
        found = next((words for words in _DISK_WORDS if words in text), None)
        if found is not None:
            return found
        of_memory = isinstance(here, RuntimeError) and any(words in text for words in _MEMORY_WORDS)
        if not only_disk and (of_memory or isinstance(here, MemoryError)):
            return "not enough memory"
        here = here.__cause__ or (None if here.__suppress_context__ else here.__context__)
    return None


@contextlib.contextmanager
def writing(path: object) -> Iterator[None]:
    """EnvironmentProblem that names `path` where the machine keeps a block from writing to it."""
    try:
        yield
    except RaybrewError:
        raise
    except Exception as error:
        lacking = machine_problem(error)
        if lacking is None:
            raise
        raise EnvironmentProblem(f"cannot write {path}: {lacking}") from error


def first_line(error: BaseException) -> str:
    """The first line of what a library's error says; the error's name if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

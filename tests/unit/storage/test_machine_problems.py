"""A disk that is full or read-only, and memory that runs out: one class and one exit code, wherever it is met."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from raybrew.cli import main as command_line
from raybrew.errors import (
    ConfigError,
    DataError,
    EnvironmentProblem,
    RunError,
    StoreError,
    StoreNotWritable,
    machine_problem,
    writing,
)
from raybrew.storage.open import open_storage, storage_errors
from raybrew.tasks.scores import RowScores, save_scores
from raybrew.tracking.jsonl import MetricsLog


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/runs/x")
READ_ONLY = OSError(errno.EROFS, os.strerror(errno.EROFS), "/data/runs")
NO_RIGHTS = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/data/runs")
MACHINE: list[Exception] = [
    FULL,
    READ_ONLY,
    NO_RIGHTS,
    OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    # Libraries in Rust and C++, and errors of Ray's workers, have the system's words only.
    ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:659] No space left on device"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    MemoryError(),
    caused(RuntimeError("wrapped"), FULL),
    caused(RunError("the run failed"), FULL),
    caused(StoreError("a shard was not written"), READ_ONLY),
    StoreNotWritable("no space left"),
    EnvironmentProblem("no space left"),
]
OTHERS: list[Exception] = [
    ValueError("shapes differ"),
    KeyError("x"),
    FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "x"),
    RunError("the run failed"),
    # That a file of rows cannot be read is told as such.
    caused(DataError("cannot be read"), NO_RIGHTS),
]


@pytest.mark.parametrize(("error", "code"), [*((error, 4) for error in MACHINE), *((error, 1) for error in OTHERS)])
def test_the_command_line_has_one_code(
    error: Exception, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(command_line, "app", fail)
    with pytest.raises(SystemExit) as ended:
        command_line.main(["distill"])
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert ("unexpected" in said) == (code == 1 and not isinstance(error, RunError | DataError))


def test_messages_of_the_command_line_hold_no_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "very-private-value")
    for error in (RunError("at s3://AKIAX:a/b+c@bucket/x"), ValueError("key very-private-value refused" * 5000)):
        monkeypatch.setattr(command_line, "app", lambda raised=error, **_: (_ for _ in ()).throw(raised))
        with pytest.raises(SystemExit):
            command_line.main(["distill"])
        said = capsys.readouterr().err
        assert not {"AKIAX", "a/b+c", "very-private-value"} & set(said.replace("@", " ").replace("//", " ").split())
        assert len(said) < 21_000


def test_a_disk_is_named() -> None:
    assert machine_problem(FULL) == "/data/runs/x: No space left on device"
    assert machine_problem(ValueError("other")) is None
    with pytest.raises(EnvironmentProblem, match=r"cannot write /data/y: .*No space left"), writing("/data/y"):
        raise FULL
    with pytest.raises(ValueError, match="other"), writing("/data/y"):
        raise ValueError("other")
    with pytest.raises(ConfigError), writing("/data/y"):
        raise ConfigError("ours")


def test_a_store_that_cannot_be_written_is_both_of_the_store_and_of_the_machine(tmp_path: Path) -> None:
    for error in (FULL, READ_ONLY, NO_RIGHTS):
        with pytest.raises(StoreNotWritable) as caught, storage_errors(open_storage(tmp_path), "capture"):
            raise error
        assert isinstance(caught.value, StoreError)
        assert isinstance(caught.value, EnvironmentProblem)
        assert (caught.value.exit_code, pickle.loads(pickle.dumps(caught.value)).exit_code) == (4, 4)


def write_log(path: Path) -> None:
    with MetricsLog(path / "metrics.jsonl") as log:
        log.write({"step": 1, "kind": "event"})
        log.sync()


def write_scores(path: Path) -> None:
    values = scipy.sparse.csr_matrix(np.ones((2, 1)))
    save_scores(path / "scores" / "eval.npz", RowScores("classes", ("a",), ("right a",), values, "key"))


@pytest.mark.parametrize("write", [write_log, write_scores])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_what_a_run_writes_names_the_file(
    write: Callable[[Path], None], number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "whole")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(EnvironmentProblem, match=rf"cannot write {tmp_path}.*: {os.strerror(number)}"):
        write(tmp_path / "full")

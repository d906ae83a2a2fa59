"""A teacher worker: reads the rows of a shard, computes what it lacks, writes and commits it. No Ray.

`run` may be called from several threads: tokenising and writing of some shards go on beside the forward pass of
another, and all forward passes run in one thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raybrew.data.arrow import ArrowFolder, ShardInfo, shard_name, write_shard
from raybrew.errors import Interrupted, StoreError
from raybrew.models.loading import ModelSource, load_model, load_tokenizer, pick_device
from raybrew.signals import Signal
from raybrew.store.compute import Teacher
from raybrew.store.layout import EXAMPLES, Shard, commit_shard, committed_shard, element_type_of, signal_folder
from raybrew.store.plan import ShardTask
from raybrew.tasks.base import Task

__all__ = [
    "MAX_ATTEMPTS",
    "ShardResult",
    "ShardWorker",
    "WorkerSettings",
    "build_teacher",
    "load_teacher",
    "pending_file",
    "storage_errors",
]

#: A shard that is begun more often than this has killed its workers before.
MAX_ATTEMPTS = 3


@dataclasses.dataclass(frozen=True)
class WorkerSettings:
    """All a worker needs to know. `pending` is the folder of one running capture, and gone when that is."""

    root: Path
    pending: Path
    teacher: ModelSource
    task: Task
    device: str
    precision: str
    element_type: str
    batch_tokens: int
    threads: int | None = None


@dataclasses.dataclass(frozen=True)
class ShardResult:
    """What a worker tells of a committed shard."""

    index: int
    rows: int
    tokens: int
    bytes: int
    notes: tuple[str, ...]


def build_teacher(settings: WorkerSettings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Teacher:
    """A loaded model as the teacher of `settings`, on its device."""
    device = pick_device(settings.device, "teacher.device")
    module: nn.Module = model
    return Teacher(
        module.to(device).eval(),
        tokenizer,
        settings.task,
        device,
        settings.precision,
        settings.element_type,
        settings.batch_tokens,
    )


def load_teacher(settings: WorkerSettings) -> Teacher:
    """The teacher of `settings`, loaded from where it lies."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    model = load_model(settings.teacher, settings.task.kind)
    return build_teacher(settings, model, load_tokenizer(settings.teacher))


class ShardWorker:
    """Computes and commits shards of one store with one loaded teacher."""

    def __init__(self, settings: WorkerSettings, teacher: Teacher) -> None:
        self._settings = settings
        self._teacher = teacher
        self._forward_thread = ThreadPoolExecutor(1, "teacher")
        self._stopped = threading.Event()
        self._rows_done = 0

    @property
    def rows_done(self) -> int:
        """Rows that went through the teacher so far, of unfinished shards too."""
        return self._rows_done

    def stop(self) -> None:
        """Let running shards end at their next batch, uncommitted."""
        self._stopped.set()

    def run(self, task: ShardTask) -> ShardResult:
        """Compute and commit one shard. StoreError names a shard that cannot be computed or written."""
        self._begin(task)
        settings, written = self._settings, dict[str, Path]()
        try:
            with storage_errors(settings.root, f"shard {task.index:05d} was not written"):
                old = None if task.new else committed_shard(settings.root, task.index)
                if old is None:
                    examples = self._teacher.encode(_read_shard(pending_file(settings.pending, task.index)))
                else:
                    examples = _read_shard(settings.root / EXAMPLES / old.file)
                tables = self._forward_thread.submit(
                    self._teacher.compute, examples, task.signals, self._count
                ).result()
                outputs = {self._folder(signal): table for signal, table in tables.items()}
                if old is None:
                    outputs[EXAMPLES] = examples
                infos: dict[str, ShardInfo] = dict(old.files) if old is not None else {}
                for folder, table in outputs.items():
                    self._check_running()
                    written[folder] = settings.pending / folder / shard_name(task.index)
                    written[folder].parent.mkdir(parents=True, exist_ok=True)
                    infos[folder] = write_shard(written[folder], table)
                shard = _shard_of(task.index, examples, infos)
                self._commit(shard, written)
        except BaseException:
            for path in written.values():
                path.unlink(missing_ok=True)
            raise
        return ShardResult(
            task.index,
            task.rows,
            shard.tokens,
            sum(infos[folder].bytes for folder in outputs),
            tuple(self._teacher.notes),
        )

    def _folder(self, signal: Signal) -> str:
        return signal_folder(signal, element_type_of(signal, self._settings.element_type))

    def _commit(self, shard: Shard, written: Mapping[str, Path]) -> None:
        # A worker can outlive its capture for a while (Ray ends actors later than their driver) and must not write
        # into a store that the next capture is writing. That one removes `pending` first, so these moves fail.
        try:
            for folder, path in written.items():
                (self._settings.root / folder).mkdir(parents=True, exist_ok=True)
                os.replace(path, self._settings.root / folder / path.name)
        except FileNotFoundError:
            raise Interrupted("the capture was stopped") from None
        self._check_pending()
        commit_shard(self._settings.root, shard)

    def _begin(self, task: ShardTask) -> None:
        """Count the attempts of a shard in a file: Ray would start a shard that kills its worker again for ever."""
        self._check_running()
        path = self._settings.pending / f"{task.index:05d}.attempts"
        with storage_errors(self._settings.root, "the capture cannot go on"):
            with path.open("ab") as file:
                file.write(b".")
            attempts = path.stat().st_size
        if attempts > MAX_ATTEMPTS:
            raise StoreError(
                f"shard {task.index:05d} ({task.rows} rows) ended its teacher process {MAX_ATTEMPTS} times, perhaps "
                "for lack of memory; set a smaller store.batch_tokens or store.rows_per_shard"
            )

    def _count(self, rows: int) -> None:
        self._rows_done += rows
        if self._stopped.is_set():
            raise Interrupted("the capture was stopped")

    def _check_running(self) -> None:
        if self._stopped.is_set():
            raise Interrupted("the capture was stopped")
        self._check_pending()

    def _check_pending(self) -> None:
        if not self._settings.pending.is_dir():
            raise Interrupted("the capture was stopped")


def _read_shard(path: Path) -> pa.Table:
    """A shard file as a table of views; DataError if it cannot be read."""
    return ArrowFolder.open(path.parent, [path.name]).table()


def pending_file(folder: Path, index: int) -> Path:
    """File of the rows of a new shard, below the folder of a running capture."""
    return folder / shard_name(index)


@contextlib.contextmanager
def storage_errors(root: Path, what: str) -> Iterator[None]:
    """A full disk or missing rights as a StoreError of one line; other errors pass."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free / 2**20
            raise StoreError(
                f"{what}: no space left ({free:.0f} MiB free) in {root}; finished shards are kept: "
                "free some space or set store.path, and run the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StoreError(f"{what}: {root} cannot be written ({error.strerror}); set store.path") from error
        raise


def _shard_of(index: int, examples: pa.Table, files: dict[str, ShardInfo]) -> Shard:
    ids = examples.column("id")
    tokens = sum(len(chunk.values) for chunk in examples.column("input_ids").chunks)
    return Shard(index, examples.num_rows, tokens, ids[0].as_py().hex(), ids[-1].as_py().hex(), files)

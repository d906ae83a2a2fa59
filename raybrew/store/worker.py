"""A teacher worker: reads the rows of a shard, computes what it lacks, writes and commits it. No Ray.

`run` may be called from several threads: tokenising and writing of some shards go on beside the forward pass of
another, and all forward passes run in one thread.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import nn

from raybrew.data.arrow import ShardInfo, shard_name, write_shard
from raybrew.errors import Interrupted, StoreError
from raybrew.models.cache import ModelCache
from raybrew.models.devices import pick_device
from raybrew.models.loading import ModelSource
from raybrew.signals import Signal
from raybrew.storage.open import storage_errors
from raybrew.store.compute import Teacher
from raybrew.store.forms.base import Forms
from raybrew.store.layout import EXAMPLES, Shard, commit_shard, committed_shard, open_shards
from raybrew.store.pending import Pending
from raybrew.store.plan import ShardTask
from raybrew.tasks.base import Task

__all__ = [
    "MAX_ATTEMPTS",
    "CaptureProgress",
    "ProgressReporter",
    "ShardResult",
    "ShardWorker",
    "WorkerSettings",
    "load_teacher",
]

#: In a shard of fewer rows it says nothing when most of them are bad.
_FEW_ROWS = 8

#: A shard that is begun more often than this has killed its workers before.
MAX_ATTEMPTS = 3


@dataclasses.dataclass(frozen=True)
class WorkerSettings:
    """All a worker needs to know. `pending` names the rows of one running capture, in the store that it fills."""

    pending: Pending
    teacher: ModelSource
    task: Task
    device: str
    precision: str
    forms: Forms
    batch_tokens: int
    skip_bad_rows: bool = False
    threads: int | None = None


@dataclasses.dataclass(frozen=True)
class ShardResult:
    """What a worker tells of a committed shard."""

    index: int
    rows: int
    tokens: int
    bytes: int
    notes: tuple[str, ...]
    set_aside: int = 0


@dataclasses.dataclass(frozen=True)
class CaptureProgress:
    """Shards committed, and rows that went through the teacher (those of committed shards where no more is known).

    `tokens` and `bytes_written` are of committed shards, `seconds` since work began. `note` is news for a person.
    """

    done_shards: int
    total_shards: int
    done_rows: int
    total_rows: int
    tokens: int
    bytes_written: int
    seconds: float
    note: str | None = None


class ProgressReporter:
    """Adds up what workers tell and passes it on; used by one thread."""

    def __init__(self, tasks: Sequence[ShardTask], listener: Callable[[CaptureProgress], None] | None) -> None:
        self._listener = listener
        self._start = time.perf_counter()
        self._state = CaptureProgress(0, len(tasks), 0, sum(task.rows for task in tasks), 0, 0, 0.0)
        self._committed_rows = 0
        self._notes: set[str] = set()

    @property
    def shards_done(self) -> int:
        """Shards that were committed since work began."""
        return self._state.done_shards

    def rows(self, done: int) -> None:
        """`done` rows went through the teacher so far."""
        if done > self._state.done_rows:
            self._tell(done_rows=done)

    def shard(self, result: ShardResult) -> None:
        """One more shard is committed."""
        state = self._state
        self._committed_rows += result.rows
        news = [note for note in result.notes if note not in self._notes]
        self._notes.update(news)
        self._tell(
            done_shards=state.done_shards + 1,
            done_rows=max(state.done_rows, self._committed_rows),
            tokens=state.tokens + result.tokens,
            bytes_written=state.bytes_written + result.bytes,
            note="; ".join(news) or None,
        )

    def _tell(self, **changes: Any) -> None:
        seconds = time.perf_counter() - self._start
        self._state = dataclasses.replace(self._state, **{"note": None, "seconds": seconds, **changes})
        if self._listener is not None:
            self._listener(self._state)


def load_teacher(settings: WorkerSettings, models: ModelCache | None = None) -> Teacher:
    """The teacher of `settings`, loaded from where it lies unless `models` has it, on its device."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    models = models or ModelCache()
    module: nn.Module = models.model(settings.teacher, settings.task.kind, needs_head=False)
    device = pick_device(settings.device, "teacher.device")
    return Teacher(
        module.to(device).eval(),
        models.tokenizer(settings.teacher),
        settings.task,
        device,
        settings.precision,
        settings.forms,
        settings.batch_tokens,
    )


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
        again = self._begin(task) > 1
        pending, storage = self._settings.pending, self._settings.pending.storage
        with (
            storage_errors(storage, f"shard {task.index:05d} was not written"),
            storage.scratch(pending.token) as scratch,
        ):
            old = None if task.new and not again else committed_shard(storage, task.index)
            if again and old is not None and all(self._folder(signal) in old.files for signal in task.signals):
                # Committed by a worker whose node was lost before its word arrived. What the capture found damaged
                # was removed before the first attempt.
                return self._result(task, old, old.files)
            untokenised: dict[int, str] | None = {} if self._settings.skip_bad_rows else None
            uncomputed: dict[Signal, dict[int, str]] | None = {} if self._settings.skip_bad_rows else None
            if old is None:
                examples = self._teacher.encode(storage.table_of(pending.name(shard_name(task.index))), untokenised)
            else:
                examples = open_shards(storage, EXAMPLES, [old]).table()
            tables = self._forward_thread.submit(
                self._teacher.compute, examples, task.signals, self._count, uncomputed
            ).result()
            aside = {folder: dict(rows) for folder, rows in old.set_aside.items()} if old is not None else {}
            aside |= self._set_aside(examples, untokenised or {}, uncomputed or {})
            outputs = {self._folder(signal): table for signal, table in tables.items()}
            if old is None:
                outputs[EXAMPLES] = examples
            infos: dict[str, ShardInfo] = dict(old.files) if old is not None else {}
            written: dict[str, Path] = {}
            try:
                for folder, table in outputs.items():
                    self._check_running()
                    written[folder] = scratch / folder.rpartition("/")[2] / shard_name(task.index)
                    with _interrupted_where_gone():
                        written[folder].parent.mkdir(exist_ok=True)
                        infos[folder] = write_shard(written[folder], table)
                shard = _shard_of(task.index, examples, infos, aside)
                self._commit(shard, written)
            except BaseException:
                for path in written.values():
                    path.unlink(missing_ok=True)
                raise
        return self._result(task, shard, outputs)

    def _result(self, task: ShardTask, shard: Shard, written: Iterable[str]) -> ShardResult:
        return ShardResult(
            task.index,
            task.rows,
            shard.tokens,
            sum(shard.files[folder].bytes for folder in written),
            tuple(self._teacher.notes),
            len({row for rows in shard.set_aside.values() for row in rows}),
        )

    def _set_aside(
        self, examples: pa.Table, untokenised: dict[int, str], uncomputed: dict[Signal, dict[int, str]]
    ) -> dict[str, dict[str, str]]:
        """What a commit mark says of rows that are set aside; StoreError where it is not a matter of single rows."""
        found = {EXAMPLES: untokenised} | {self._folder(signal): rows for signal, rows in uncomputed.items()}
        for rows in found.values():
            if 2 * len(rows) > examples.num_rows >= _FEW_ROWS:
                raise StoreError(
                    f"{len(rows)} of {examples.num_rows} rows of a shard cannot be stored, which is no matter of "
                    f"single rows: {next(iter(rows.values()))}; try another store.element_type, or teacher.precision"
                )
        ids = examples.column("id")
        return {
            folder: {ids[row].as_py().hex(): reason for row, reason in rows.items()}
            for folder, rows in found.items()
            if rows
        }

    def _folder(self, signal: Signal) -> str:
        return self._settings.forms.stored_as(signal).folder

    def _commit(self, shard: Shard, written: Mapping[str, Path]) -> None:
        # A worker can outlive its capture for a while (Ray ends actors later than their driver) and must not write
        # into a store that the next capture is writing. That one removes what is pending first: in a folder these
        # moves then fail; in an object store the check before each of them does, but for the moment of the upload.
        pending = self._settings.pending
        for folder, path in written.items():
            pending.check()
            with _interrupted_where_gone():
                pending.storage.put(path, f"{folder}/{path.name}")
        pending.check()
        commit_shard(pending.storage, shard)

    def _begin(self, task: ShardTask) -> int:
        """Count the attempts of a shard in a file: Ray would start a shard that kills its worker again for ever."""
        self._check_running()
        pending = self._settings.pending
        name = pending.name(f"{task.index:05d}.attempts")
        with storage_errors(pending.storage, "the capture cannot go on"), _interrupted_where_gone():
            attempts = pending.storage.read_many([name]).get(name, b"") + b"."
            pending.storage.write(name, attempts)
        if len(attempts) > MAX_ATTEMPTS:
            raise StoreError(
                f"shard {task.index:05d} ({task.rows} rows) ended its teacher process {MAX_ATTEMPTS} times, perhaps "
                "for lack of memory; set a smaller store.batch_tokens or store.rows_per_shard"
            )
        return len(attempts)

    def _count(self, rows: int) -> None:
        self._rows_done += rows
        if self._stopped.is_set():
            raise Interrupted("the capture was stopped")

    def _check_running(self) -> None:
        if self._stopped.is_set():
            raise Interrupted("the capture was stopped")
        self._settings.pending.check()


@contextlib.contextmanager
def _interrupted_where_gone() -> Iterator[None]:
    """The folder of a capture that has ended is gone: that is no fault of this worker's files."""
    try:
        yield
    except FileNotFoundError:
        raise Interrupted("the capture was stopped") from None


def _shard_of(
    index: int, examples: pa.Table, files: dict[str, ShardInfo], aside: Mapping[str, Mapping[str, str]]
) -> Shard:
    ids = examples.column("id")
    tokens = sum(len(chunk.values) for chunk in examples.column("input_ids").chunks)
    return Shard(index, examples.num_rows, tokens, ids[0].as_py().hex(), ids[-1].as_py().hex(), files, aside)

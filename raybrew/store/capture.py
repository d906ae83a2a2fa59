"""Capture: the teacher pass over all rows that a store lacks, in this process or by Ray Data actors.

What lies in the store is the state: committed shards are kept, the rest is computed, so the same call continues a
capture that was stopped or killed. The manifest comes last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from raybrew.config import StoreConfig
from raybrew.data.arrow import shard_name, write_shard
from raybrew.data.rows import row_ids
from raybrew.data.tables import taken
from raybrew.errors import (
    ClusterError,
    DataError,
    Interrupted,
    RaybrewError,
)
from raybrew.models.cache import ModelCache
from raybrew.models.devices import Place, free_gpu
from raybrew.models.loading import ModelSource, load_config
from raybrew.nodes import Folder, check_seen, check_shared
from raybrew.runtime import RayInfo, check_resources, quiet_ray, ray_runtime
from raybrew.signals import Signal, sorted_signals
from raybrew.storage.lock import Waiting
from raybrew.storage.open import is_remote, open_storage, storage_errors
from raybrew.storage.protocol import Storage
from raybrew.store.find import (
    StoreIdentity,
    check_forms,
    checked_rows,
    identity_of,
    other_weights,
)
from raybrew.store.forms.base import Forms
from raybrew.store.index import INDEX, index_file
from raybrew.store.layout import EXAMPLES, Shard, committed_shards, problems_of_file
from raybrew.store.manifest import captured_labels, finished_manifest, mark_used, publish, refuse_foreign
from raybrew.store.pending import Pending, locked_store, remove_orphans
from raybrew.store.plan import Ids, ShardTask, ids_of, plan_shards
from raybrew.store.reader import Store
from raybrew.store.worker import (
    CaptureProgress,
    ProgressReporter,
    ShardResult,
    ShardWorker,
    WorkerSettings,
    load_teacher,
)
from raybrew.tasks.base import Task

__all__ = ["CaptureProgress", "capture"]

#: Shards that one worker has in hand: while one goes through the model, the other is tokenised or written.
_SHARDS_IN_HAND = 2
_POLL_SECONDS = 0.5
#: An actor on CPUs holds its teacher, what that computes of a batch, and two shards.
_TIMES_IN_MEMORY = 4


def capture(
    rows: pa.Table,
    task: Task,
    teacher: ModelSource,
    request: Iterable[Signal],
    store: StoreConfig,
    store_root: str | Path,
    device: str,
    precision: str,
    progress: Callable[[CaptureProgress], None] | None = None,
    skip_bad_rows: bool = False,
    verify: bool = False,
    waiting: Waiting | None = None,
    labels: Sequence[str] = (),
    *,
    models: ModelCache | None = None,
) -> Store:
    """The store that holds the signals of `request` for all `rows`, below the folder or URL `store_root`.

    What it lacks is computed. `rows` has `id` (16 bytes) and the content columns of the task; repeats are stored
    once. `auto` device and precision are those of the machines that capture. A row that the teacher cannot
    compute is an error, or with `skip_bad_rows` set aside: `Store.set_aside` names it. `verify` reads what is stored
    already and computes anew what does not hold the bytes that were written. `labels` are noted as the names of the
    outputs, `models` keeps the teacher for who asks next. While another capture writes this store, this one waits and
    `waiting` hears on whom, before it looks what is still lacking; without `waiting` that is a StoreError. Raises
    DataError, ModelError, ClusterError and StoreError, Interrupted after Ctrl-C.
    """
    request, models = sorted_signals(request), models or ModelCache()
    forms = Forms(store.element_type, store.forms)
    rows = checked_rows(rows, task, request)
    known = identity_of(task, teacher, request, device, precision, store, models)
    check_forms(load_config(known.source), request, forms)
    storage = open_storage(f"{store_root}/{known.fingerprint}", store.cache)
    refuse_foreign(storage)
    if waiting is not None and not is_remote(store_root) and not storage.exists():
        for line in other_weights(store_root, known, teacher):
            waiting(line)
    ids, folders = row_ids(rows), [EXAMPLES, *(forms.stored_as(each).folder for each in request)]

    def planned() -> tuple[list[Shard], list[ShardTask], Mapping[int, npt.NDArray[np.int64]]]:
        shards, stored_ids = _readable_shards(storage, verify, folders)
        return shards, *plan_shards(ids, shards, stored_ids, request, forms, store.rows_per_shard)

    shards, tasks, _ = planned()
    if tasks or not _is_published(storage, shards, verify):
        with locked_store(storage, waiting) as pending:
            shards, tasks, sources = planned()  # again, now that nobody else writes
            remove_orphans(storage, shards)
            place, batch_tokens = known.place, store.batch_tokens
            settings = WorkerSettings(
                pending, known.source, task, place.device, place.precision, forms, batch_tokens, skip_bad_rows
            )
            with storage_errors(storage, "the capture cannot go on"):
                _write_pending(pending, rows, sources)
                _run(settings, tasks, store, ProgressReporter(tasks, progress), known, models)
                pending.check()
                names = dict.fromkeys([*captured_labels(storage), *([tuple(labels)] if labels else [])])
                publish(storage, known.parts, teacher.model, committed_shards(storage), list(names))
    mark_used(storage)
    return Store.open(storage, known.fingerprint, store.element_type, forms=store.forms)


def _run(
    settings: WorkerSettings,
    tasks: list[ShardTask],
    store: StoreConfig,
    reporter: ProgressReporter,
    known: StoreIdentity,
    models: ModelCache,
) -> None:
    """Compute and commit the shards, here or by Ray. Interrupted after Ctrl-C."""
    try:
        if tasks and _runs_here(store, tasks, known.place):
            _run_here(settings, tasks, reporter, models)
        elif tasks:
            models.release()  # beside its actors this process may have no room for a teacher
            _run_on_ray(settings, tasks, store, reporter, known.size)
    except KeyboardInterrupt:
        raise Interrupted(
            f"{reporter.shards_done} of {len(tasks)} shards are done and kept in {settings.pending.storage.location}; "
            "the same command computes the others"
        ) from None


def _write_pending(pending: Pending, rows: pa.Table, sources: Mapping[int, npt.NDArray[np.int64]]) -> None:
    """Put the rows of new shards where workers on any node find them."""
    with pending.storage.scratch(pending.token) as scratch:
        for index, places in sources.items():
            path = scratch / shard_name(index)
            write_shard(path, taken(rows, places))
            pending.storage.put(path, pending.name(path.name))


def _readable_shards(storage: Storage, verify: bool, folders: Sequence[str]) -> tuple[list[Shard], Ids]:
    """Committed shards whose examples can be read, and the ids of all their rows."""
    shards, ids = [], []
    committed = committed_shards(storage, verify, folders)
    with contextlib.suppress(DataError):
        # All together, where they have to be copied to this node.
        storage.staged(EXAMPLES, [shard.files[EXAMPLES] for shard in committed])
    for shard in committed:
        try:
            ids.append(ids_of(storage, [shard]))
        except DataError:
            continue
        shards.append(shard)
    return shards, np.concatenate([ids_of(storage, []), *ids])


def _is_published(storage: Storage, shards: list[Shard], verify: bool) -> bool:
    manifest = finished_manifest(storage)
    if manifest is None:
        return False
    index = index_file(manifest)
    sound = not problems_of_file(storage, f"{INDEX}/{index.file}", index, hashes=verify)
    known = storage.known_hashes(INDEX, [index.file])
    sound = sound and (known is None or known.get(index.file) == index.xxh3)
    return bool(manifest["shards"] == shards and sound)


def _runs_here(store: StoreConfig, tasks: list[ShardTask], place: Place) -> bool:
    if store.launcher == "auto":
        return len(tasks) == 1 and (place.device == "cpu" or torch.cuda.is_available())
    return store.launcher == "local"


def _run_here(settings: WorkerSettings, tasks: list[ShardTask], reporter: ProgressReporter, models: ModelCache) -> None:
    teacher = load_teacher(settings, models)
    worker = ShardWorker(settings, teacher)
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(_SHARDS_IN_HAND, "shard") as pool:
        stack.callback(free_gpu, teacher.model)  # students that are trained next need it
        waiting = {pool.submit(worker.run, task) for task in tasks}
        try:
            while waiting:
                done, waiting = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
                for future in done:
                    reporter.shard(future.result())
                reporter.rows(worker.rows_done)
        except BaseException:
            # Until the other shards in hand have ended, at their next batch, nothing here may be removed.
            worker.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


class _ShardActor:
    """A teacher in a Ray Data actor: one row in is one shard, one row out its result or its error."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._worker = ShardWorker(settings, load_teacher(settings))

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            result: ShardResult | RaybrewError = self._worker.run(pickle.loads(row["task"]))
        except RaybrewError as error:
            result = error  # not raised: Ray would print the traceback of an error that is meant for people
        return {"result": pickle.dumps(result)}


def _run_on_ray(
    settings: WorkerSettings, tasks: list[ShardTask], store: StoreConfig, reporter: ProgressReporter, size: int
) -> None:
    """A Ray Data job of one operator whose rows are shards.

    Nothing depends on block boundaries or order, and there is no second operator to wait for the actors' CPUs.
    """
    with ray_runtime("capture") as info:
        storage = settings.pending.storage
        check_shared({f"store.path ({storage.location})": storage}, "capture")
        folder = Path(settings.teacher.model)
        check_seen({f"teacher.model ({folder})": Folder(folder)} if folder.is_dir() else {}, "capture")
        import ray.data

        quiet_ray()
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        # Actors here never have more calls queued than they run, which Ray takes for a pool that is not yet full.
        context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
        try:
            for row in _shard_results(settings, tasks, store, info, size):
                result = pickle.loads(row["result"])
                if isinstance(result, RaybrewError):
                    raise result
                reporter.shard(result)
        except ray.exceptions.RayError as error:
            raise _plain_error(error) from error


def _shard_results(
    settings: WorkerSettings, tasks: list[ShardTask], store: StoreConfig, info: RayInfo, size: int
) -> Iterable[dict[str, Any]]:
    import ray.data

    gpus = 1 if settings.device == "cuda" else 0
    fewest, most = (min(count, len(tasks)) for count in store.actors or (1, _room(store, info, gpus, size)))
    check_resources(fewest * store.cpus_per_actor, fewest * gpus, "capture (store.actors, store.cpus_per_actor)")
    room = min(info.cpus // store.cpus_per_actor, info.gpus if gpus else math.inf)
    settings = dataclasses.replace(settings, threads=max(1, int(store.cpus_per_actor)))
    items = [{"task": pickle.dumps(task)} for task in tasks]
    dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(
        _ShardActor,  # type: ignore[arg-type]  # Ray makes one per actor and calls it
        fn_constructor_args=(settings,),
        compute=ray.data.ActorPoolStrategy(
            min_size=fewest,
            max_size=most,
            initial_size=max(fewest, int(min(most, room))),
            max_tasks_in_flight_per_actor=_SHARDS_IN_HAND,
            max_concurrent_calls_per_actor=_SHARDS_IN_HAND,
            enable_true_multi_threading=True,
        ),
        num_cpus=store.cpus_per_actor,
        num_gpus=gpus,
    )
    return dataset.iter_rows()


def _room(store: StoreConfig, info: RayInfo, gpus: int, size: int) -> int:
    """Actors that the cluster has CPUs, GPUs and, for teachers of `size` bytes on CPUs, memory for; at least one."""
    room = min(info.cpus // store.cpus_per_actor, info.gpus if gpus else math.inf)
    return max(1, int(room if gpus else min(room, info.memory // (_TIMES_IN_MEMORY * size))))


def _plain_error(error: BaseException) -> RaybrewError:
    """The error of ours that Ray has wrapped, or a ClusterError of one line."""
    found: BaseException | None = error
    seen: set[int] = set()
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if isinstance(found, RaybrewError):
            return found
        found = getattr(found, "cause", None) or found.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return ClusterError(f"capture: the teacher actors failed: {lines[-1].strip() if lines else type(error).__name__}")

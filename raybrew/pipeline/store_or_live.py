"""`teacher.source: auto`: whether a student's targets come from a store or from the teacher in every step.

The rule, by the arithmetic of `raybrew plan` without its measurements:

1. A store below 1 GiB is taken.
2. So is one that is there already with all that is asked.
3. Where the rest of it does not fit on the disk, the teacher runs live.
4. Where the rows are read once only (one epoch of one training), the teacher runs live: a store pays from the second
   pass on. All trials of a sweep read one store, so it is their epochs together that count.
5. Else the store.

A teacher with another tokenizer than the student's cannot run live; then it is the store.
"""

from __future__ import annotations

import pyarrow as pa

from raybrew.errors import StoreError, StoreUnreachable
from raybrew.pipeline.resolve import ResolvedTask, ResolvedTeacher
from raybrew.pipeline.rows import Say
from raybrew.pipeline.sizes import Sizes, free_bytes, sizes_of_store
from raybrew.signals import Signal
from raybrew.storage.open import is_remote, open_storage
from raybrew.store.find import find_store, identity_of

__all__ = ["SMALL_BYTES", "runs_live"]

SMALL_BYTES = 1 << 30
_SAMPLE_ROWS = 2000


def runs_live(
    task: ResolvedTask,
    teacher: ResolvedTeacher,
    units: pa.Table,
    request: tuple[Signal, ...],
    num_labels: int,
    say: Say,
    trainings: int = 1,
) -> bool:
    """Whether `auto` means a live teacher here; says what was decided, and why, where that is not plain.

    `trainings` like this one are going to read the same store.
    """
    sizes = sizes_of_store(task, teacher, units, request, num_labels, _SAMPLE_ROWS)
    free = free_bytes(task)
    if sizes.total < SMALL_BYTES and (free is None or sizes.total <= free):
        return False
    root, source, config = task.store_root, teacher.source, teacher.config
    try:
        find_store(
            units, task.task, source, request, task.store, root, config.device, config.precision, models=task.models
        )
        return False
    except StoreUnreachable:
        raise
    except StoreError:
        pass  # not there yet, or not all of it
    known = identity_of(task.task, source, request, config.device, config.precision, task.store, task.models)
    storage = open_storage(f"{root}/{known.fingerprint}", task.store.cache)
    there = 0 if is_remote(root) else sum(storage.files().values())
    needed = Sizes.text(sizes.total)
    if free is not None and sizes.total - there > free:
        say(
            f"teacher.source auto: live, as the outputs of {source.model} take {needed} and {Sizes.text(free)} are "
            f"free for {root}; store.path names another place"
        )
        return True
    passes = task.train.epochs * trainings
    if passes == 1:
        say(f"teacher.source auto: live, as one epoch would read the {needed} of the teacher's outputs only once")
        return True
    epochs = f"{task.train.epochs} epoch{'s' if task.train.epochs > 1 else ''}"
    what = epochs if trainings == 1 else f"{trainings} trials of {epochs}"
    say(f"teacher.source auto: store, {needed}, as {what} would run the teacher {passes} times")
    return False

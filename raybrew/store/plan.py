"""Which shards a capture still has to compute: missing rows become new shards, missing signals complete old ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from raybrew.data.rows.row_set import id_keys
from raybrew.signals import Signal, sorted_signals
from raybrew.storage.protocol import Storage
from raybrew.store.forms.base import Forms
from raybrew.store.index import IdIndex
from raybrew.store.layout import EXAMPLES, Shard, open_shards

__all__ = ["ShardTask", "ids_of", "plan_shards", "unique_rows"]

Ids = npt.NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class ShardTask:
    """Signals to compute for one shard: a new one, whose rows are pending, or one that lacks these signals."""

    index: int
    rows: int
    signals: tuple[Signal, ...]
    new: bool


def unique_rows(ids: Ids) -> npt.NDArray[np.int64]:
    """Place of the first row of each id, in source order."""
    return np.sort(np.unique(id_keys(ids), return_index=True)[1]).astype(np.int64)


def ids_of(storage: Storage, shards: Sequence[Shard]) -> Ids:
    """Example ids of all rows of `shards`, (rows, 16). DataError names a file that cannot be read."""
    if not shards:
        return np.empty((0, 16), np.uint8)
    return open_shards(storage, EXAMPLES, shards).flat("id").read()


def plan_shards(
    ids: Ids,
    committed: Sequence[Shard],
    committed_ids: Ids,
    request: Iterable[Signal],
    forms: Forms,
    rows_per_shard: int,
) -> tuple[list[ShardTask], dict[int, npt.NDArray[np.int64]]]:
    """Tasks by shard number, and the source rows of each new shard.

    `ids` (n, 16) are the rows asked for, in source order, repeats allowed. Missing rows are cut in that order and take
    the lowest numbers that are free, so that a capture that was killed and is repeated ends as an unbroken one. Old
    shards are touched only where they hold rows asked for.
    """
    request = sorted_signals(request)
    places = unique_rows(ids)
    found = IdIndex.of(committed_ids).find(ids[places])
    starts = np.cumsum([0, *(shard.rows for shard in committed)])
    touched = np.unique(np.searchsorted(starts, found[found >= 0], side="right") - 1)
    tasks: list[ShardTask] = []
    sources: dict[int, npt.NDArray[np.int64]] = {}
    for shard in (committed[place] for place in touched.tolist()):
        lacking = tuple(signal for signal in request if forms.stored_as(signal).folder not in shard.files)
        if lacking:
            tasks.append(ShardTask(shard.index, shard.rows, lacking, new=False))
    missing = places[found < 0]
    used = {shard.index for shard in committed}
    index = 0
    for start in range(0, len(missing), rows_per_shard):
        while index in used:
            index += 1
        sources[index] = missing[start : start + rows_per_shard]
        tasks.append(ShardTask(index, len(sources[index]), request, new=True))
        used.add(index)
    return sorted(tasks, key=lambda task: task.index), sources

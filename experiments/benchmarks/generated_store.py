"""A generated store of any number of rows, and what a process that reads it holds in private memory.

python experiments/benchmarks/generated_store.py STORE      # writes the figures of a reader as JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa

from raybrew.data.arrow import write_shard
from raybrew.signals import LOGITS, Signal
from raybrew.storage.local import LocalFolder
from raybrew.store.forms.base import Forms
from raybrew.store.layout import Shard, commit_shard
from raybrew.store.manifest import publish
from raybrew.store.reader import Store

__all__ = ["make_store"]

ROWS_PER_SHARD = 65536
_TOKENS, _DIM = 4, 8
HIDDEN = Signal("hidden", 1)


def ids_of(count: int) -> np.ndarray:
    """(count, 16) ids as hashes are: of no order."""
    return np.random.default_rng(0).integers(0, 256, (count, 16), np.uint8)


def make_store(path: Path, count: int, rows_per_shard: int = ROWS_PER_SHARD) -> Path:
    """A finished store of `count` rows of 4 tokens: logits, and one hidden layer of 8 numbers."""
    storage, ids, rng, shards = LocalFolder(path), ids_of(count), np.random.default_rng(1), []
    for index, first in enumerate(range(0, count, rows_per_shard)):
        here = ids[first : first + rows_per_shard]
        rows = len(here)
        offsets = np.arange(rows + 1) * _TOKENS
        tokens = pa.array(rng.integers(0, 30000, rows * _TOKENS, np.int32))
        keys = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), rows, [None, pa.py_buffer(here.tobytes())])
        hidden = pa.array(rng.standard_normal(rows * _TOKENS * _DIM).astype(np.float16))
        vectors = pa.FixedSizeListArray.from_arrays(hidden, _DIM)
        tables = {
            "examples": pa.table({"id": keys, "input_ids": pa.ListArray.from_arrays(offsets.astype(np.int32), tokens)}),
            "signals/logits": pa.table(
                {"logits": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2 * rows, np.float32)), 2)}
            ),
            Forms("float16").stored_as(HIDDEN).folder: pa.table(
                {"hidden": pa.LargeListArray.from_arrays(offsets.astype(np.int64), vectors)}
            ),
        }
        infos = {}
        for folder, table in tables.items():
            target = path / folder / f"data-{index:05d}.arrow"
            target.parent.mkdir(parents=True, exist_ok=True)
            infos[folder] = write_shard(target, table)
        shard = Shard(index, rows, rows * _TOKENS, here[0].tobytes().hex(), here[-1].tobytes().hex(), infos)
        commit_shard(storage, shard)
        shards.append(shard)
    publish(storage, {"weights": "generated"}, "generated", shards)
    return path


def read(path: Path) -> dict[str, int]:
    """Private dirty bytes before and after finding 20,000 rows by their ids and gathering them, batch by batch."""
    import torch

    torch.zeros(64, 4, _DIM).half().float()
    warm = _private()
    store = Store.open(path)
    count = store.num_rows
    rng = np.random.default_rng(2)
    ids = store.examples.flat("id")
    for _ in range(300):
        wanted = rng.integers(0, count, 64)
        positions = store.locate(ids.gather(wanted))
        store.gather(HIDDEN, positions)
        store.gather(LOGITS, positions)
    return {"before": warm, "after": _private(), "grown": _private() - warm}


def _private() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_Dirty"))


if __name__ == "__main__":
    print(json.dumps(read(Path(sys.argv[1]))))

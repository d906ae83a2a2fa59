"""Which shards are computed, how they are named and numbered, and what a manifest must look like."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from raybrew.data.arrow import ShardInfo
from raybrew.errors import StoreError
from raybrew.signals import LOGITS, Signal
from raybrew.storage.local import LocalFolder
from raybrew.store.forms.base import Forms, StoredAs
from raybrew.store.index import IdIndex
from raybrew.store.layout import (
    Shard,
    commit_shard,
    committed_shards,
)
from raybrew.store.manifest import read_manifest
from raybrew.store.plan import plan_shards, unique_rows

HIDDEN = Signal("hidden", 1)


def ids(*numbers: int) -> np.ndarray:
    """Ids whose last bytes are zero: they must not be taken for padding."""
    return np.array([[number // 256, number % 256] + [0] * 14 for number in numbers], np.uint8).reshape(-1, 16)


def shard(index: int, rows: int, *folders: str) -> Shard:
    files = {folder: ShardInfo(f"data-{index:05d}.arrow", rows, 8, "0") for folder in ("examples", *folders)}
    return Shard(index, rows, rows, "", "", files)


def folder_of(signal: Signal, element_type: str) -> str:
    return Forms(element_type).stored_as(signal).folder


def test_folders_of_signals_tell_their_type() -> None:
    assert folder_of(LOGITS, "float32") == folder_of(LOGITS, "bfloat16") == "signals/logits"
    assert folder_of(Signal("hidden", 8), "float16") == "signals/hidden.08"
    assert folder_of(Signal("hidden", 8), "bfloat16") == "signals/hidden.08.bfloat16"
    deep = Signal("hidden", 120)
    for signal, kept in ((LOGITS, "float32"), (HIDDEN, "float16"), (HIDDEN, "float32"), (deep, "bfloat16")):
        assert StoredAs.parse(folder_of(signal, kept)) == (signal, kept, "dense")
    for wrong in ("signals/../../etc", "examples", "signals/hidden", "signals/hidden.8", "signals/x.01"):
        assert StoredAs.parse(wrong) is None
    assert StoredAs.parse("signals/logits.float32") is None


def test_an_index_finds_what_a_dictionary_finds() -> None:
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 3, (300, 16)).astype(np.uint8)
    asked = np.concatenate([stored[rng.permutation(300)], rng.integers(0, 3, (100, 16)).astype(np.uint8)])
    naive = {bytes(row): place for place, row in reversed(list(enumerate(stored)))}
    assert IdIndex.of(stored).find(asked).tolist() == [naive.get(bytes(row), -1) for row in asked]
    assert IdIndex.of(ids()).find(ids(1, 2)).tolist() == [-1, -1]
    assert IdIndex.of(ids(256, 1, 0)).find(ids(0, 1, 256, 2)).tolist() == [2, 1, 0, -1]


def test_repeats_count_once_at_their_first_place() -> None:
    assert unique_rows(ids(5, 3, 5, 9, 3)).tolist() == [0, 1, 3]


def test_missing_rows_are_cut_in_source_order() -> None:
    tasks, sources = plan_shards(ids(9, 4, 7, 4, 1, 2), [], ids(), [HIDDEN, LOGITS], Forms("float16"), 2)
    assert [(task.index, task.rows, task.new) for task in tasks] == [(0, 2, True), (1, 2, True), (2, 1, True)]
    assert {index: places.tolist() for index, places in sources.items()} == {0: [0, 1], 1: [2, 4], 2: [5]}
    assert all(task.signals == (LOGITS, HIDDEN) for task in tasks)


def test_a_killed_capture_plans_the_rest_of_the_unbroken_one() -> None:
    everything = ids(*range(11))
    _, unbroken = plan_shards(everything, [], ids(), [LOGITS], Forms("float16"), 3)
    for committed in ([1, 3], [0], [2, 3], [0, 1, 2, 3]):
        done = [shard(index, len(unbroken[index]), "signals/logits") for index in committed]
        done_ids = np.concatenate([everything[unbroken[index]] for index in committed])
        _, rest = plan_shards(everything, done, done_ids, [LOGITS], Forms("float16"), 3)
        assert {k: v.tolist() for k, v in rest.items()} == {
            k: v.tolist() for k, v in unbroken.items() if k not in committed
        }


def test_old_shards_are_completed_only_where_asked() -> None:
    both = ("signals/logits", "signals/hidden.01")
    committed = [shard(0, 2, "signals/logits"), shard(2, 2, *both), shard(5, 1, "signals/logits")]
    tasks, sources = plan_shards(ids(4, 2, 8, 0), committed, ids(0, 1, 2, 3, 4), [LOGITS, HIDDEN], Forms("float16"), 4)
    assert [(task.index, task.new, task.signals) for task in tasks] == [
        (0, False, (HIDDEN,)),
        (1, True, (LOGITS, HIDDEN)),
        (5, False, (HIDDEN,)),
    ]
    assert sources[1].tolist() == [2]
    tasks, _ = plan_shards(ids(2), committed, ids(0, 1, 2, 3, 4), [HIDDEN], Forms("float16"), 4)
    assert tasks == []
    tasks, _ = plan_shards(ids(2), committed, ids(0, 1, 2, 3, 4), [HIDDEN], Forms("bfloat16"), 4)
    assert [(task.index, task.signals) for task in tasks] == [(2, (HIDDEN,))]


def test_commit_marks_without_their_files_do_not_count(tmp_path: Path) -> None:
    for folder in ("examples", "signals/logits"):
        (tmp_path / folder).mkdir(parents=True)
        for index in range(3):
            (tmp_path / folder / f"data-{index:05d}.arrow").write_bytes(b"x" * 8)
    for index in range(3):
        commit_shard(LocalFolder(tmp_path), shard(index, 2, "signals/logits"))
    assert committed_shards(LocalFolder(tmp_path)) == [shard(index, 2, "signals/logits") for index in range(3)]
    (tmp_path / "examples/data-00000.arrow").unlink()
    (tmp_path / "signals/logits/data-00001.arrow").write_bytes(b"x" * 7)
    (tmp_path / "shards/00002.json").write_text("{")
    assert committed_shards(LocalFolder(tmp_path)) == [shard(1, 2)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "something else"}, "not the manifest of a raybrew teacher store"),
        (
            {"format_version": 3, "raybrew": "9.1"},
            r"format version 3, written by raybrew 9\.1; .*reads version 2.*install",
        ),
        ({"format_version": 1, "raybrew": "0.0"}, r"format version 1, .*reads version 2; capture again, .*store prune"),
        ({"fingerprint": "0" * 32}, f"the fingerprint {'0' * 32} is not that of its own parts"),
        ({"shards": [{"index": 0}]}, "damaged .*rows"),
        ({"shards": None}, "damaged"),
        ({"signals": {"../../outside": {"dim": 1}}}, "no folder of a signal"),
    ],
)
def test_manifests_that_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    from raybrew.store.manifest import FORMAT_VERSION, fingerprint_of_parts

    good = {
        "kind": "raybrew teacher store",
        "format_version": FORMAT_VERSION,
        "fingerprint": fingerprint_of_parts({"weights": "a"}),
        "parts": {"weights": "a"},
        "signals": {},
        "rows": 0,
        "index": {"bytes": 1, "xxh3": "0"},
        "shards": [],
    }
    (tmp_path / "manifest.json").write_text(json.dumps(good))
    assert read_manifest(LocalFolder(tmp_path))["parts"] == {"weights": "a"}
    (tmp_path / "manifest.json").write_text(json.dumps({**good, **change}))
    with pytest.raises(StoreError, match=message) as caught:
        read_manifest(LocalFolder(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_store_without_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no teacher store here"):
        read_manifest(LocalFolder(tmp_path / "none"))
    with pytest.raises(StoreError, match=r"not finished \(0 shards are committed\); the same command continues"):
        read_manifest(LocalFolder(tmp_path))
    (tmp_path / "manifest.json").write_text('{"kind": ')
    with pytest.raises(StoreError, match="no readable JSON"):
        read_manifest(LocalFolder(tmp_path))


def test_a_folder_that_was_moved_to_another_disk_and_linked_counts(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/data-00000.arrow").write_bytes(b"x" * 8)
    (tmp_path / "store/signals").mkdir(parents=True)
    (tmp_path / "store/signals/logits").symlink_to(tmp_path / "disk")
    assert LocalFolder(tmp_path / "store").files() == {"signals/logits/data-00000.arrow": 8}
    assert LocalFolder(tmp_path / "none").files() == {}

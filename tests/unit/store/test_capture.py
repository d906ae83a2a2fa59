"""Capture in this process: what is stored, what is computed again and what is not, and what a killed one leaves."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal as signals
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny_teacher import CLASSES, WIDTH, make_rows, make_teacher, small_store, task_of, tree

from raybrew.data.rows import row_ids, rows_fingerprint
from raybrew.errors import DataError, Interrupted, ModelError, StoreError
from raybrew.models.loading import ModelSource, load_model, load_tokenizer
from raybrew.signals import LOGITS, Signal
from raybrew.storage.local import LocalFolder
from raybrew.store import worker as worker_module
from raybrew.store.capture import CaptureProgress, capture
from raybrew.store.find import find_store
from raybrew.store.forms.base import Forms
from raybrew.store.listing import describe, list_stores
from raybrew.store.pending import locked_store
from raybrew.store.plan import ShardTask
from raybrew.store.reader import Store
from raybrew.store.worker import ShardWorker, WorkerSettings

HIDDEN = Signal("hidden", 1)
LAST = Signal("hidden", 2)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> ModelSource:
    return make_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def rows() -> pa.Table:
    return make_rows(35)


def run(
    rows: pa.Table,
    teacher: ModelSource,
    root: Path,
    *request: Signal,
    precision: str = "fp32",
    progress: Any = None,
    **store: Any,
) -> Store:
    wanted = request or (LOGITS, HIDDEN)
    return capture(rows, task_of(), teacher, wanted, small_store(**store), root, "cpu", precision, progress)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, teacher: ModelSource, rows: pa.Table) -> Store:
    """A capture that nothing disturbed; tests copy it before they change it."""
    return run(rows, teacher, tmp_path_factory.mktemp("finished"))


@pytest.fixture
def copied(finished: Store, tmp_path: Path) -> Path:
    """Root of a copy of `finished`."""
    shutil.copytree(finished.path, tmp_path / "store" / finished.path.name)
    return tmp_path / "store"


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[ShardTask]:
    """The tasks that workers run from now on."""
    tasks: list[ShardTask] = []
    real = ShardWorker.run

    def spy(self: ShardWorker, task: ShardTask) -> Any:
        tasks.append(task)
        return real(self, task)

    monkeypatch.setattr(ShardWorker, "run", spy)
    return tasks


def test_gather_is_what_the_teacher_says_of_each_row(finished: Store, teacher: ModelSource, rows: pa.Table) -> None:
    model, tokenizer = load_model(teacher, "classification").eval(), load_tokenizer(teacher)
    wanted = np.array([34, 0, 11, 10, 0, 9])
    positions = finished.locate(row_ids(rows)[wanted])
    logits, hidden = finished.gather(LOGITS, positions), finished.gather(HIDDEN, positions)
    assert (logits.dtype, logits.shape) == (torch.float32, (6, CLASSES))
    longest = int(finished.lengths[positions].max())
    assert (hidden.dtype, hidden.shape) == (torch.float16, (6, longest, WIDTH))
    for place, index in enumerate(wanted.tolist()):
        encoded = tokenizer(rows.column("text")[index].as_py(), return_tensors="pt", truncation=True, max_length=32)
        length = encoded["input_ids"].shape[1]
        assert finished.lengths[positions[place]] == length
        with torch.no_grad():
            outputs = model(**encoded, output_hidden_states=True)
        torch.testing.assert_close(logits[place], outputs.logits[0], atol=2e-6, rtol=0)
        torch.testing.assert_close(hidden[place, :length].float(), outputs.hidden_states[1][0], atol=2e-3, rtol=1e-3)
        assert not hidden[place, length:].any()
    assert finished.gather(HIDDEN, positions, longest + 3).shape == (6, longest + 3, WIDTH)
    assert (finished.dim(LOGITS), finished.dim(HIDDEN)) == (CLASSES, WIDTH)


def test_what_a_store_tells_of_itself(finished: Store, teacher: ModelSource, rows: pa.Table) -> None:
    assert finished.path.name == finished.fingerprint == finished.manifest["fingerprint"]
    assert finished.signals == (LOGITS, HIDDEN)
    assert finished.num_rows == len(finished.lengths) == 35
    assert finished.manifest["rows_fingerprint"] == rows_fingerprint(rows)
    assert set(finished.manifest["parts"]) == {"weights", "config", "tokenizer", "encode", "precision"}
    assert finished.manifest["signals"]["signals/hidden.01"] == {
        "signal": "hidden.01",
        "element_type": "float16",
        "dim": WIDTH,
        "rows": 35,
    }
    assert finished.verify() == ()
    told = describe(finished)
    assert (told["rows"], told["shards"], told["teacher"]) == (35, 4, teacher.model)
    assert told["tokens"] == int(finished.lengths.sum())
    assert told["bytes"] == sum(path.stat().st_size for path in finished.path.rglob("*.arrow"))
    assert json.loads(json.dumps(told)) == told
    leftover = {path.name for path in finished.path.iterdir()} - {".lock", ".readers", ".used"}
    assert leftover == {"manifest.json", "shards", "examples", "index", "signals"}


def test_datasets_opens_every_folder(finished: Store, rows: pa.Table) -> None:
    datasets = pytest.importorskip("datasets")
    texts, fingerprints = {}, set()
    for folder in ("examples", "signals/logits", "signals/hidden.01"):
        loaded = datasets.load_from_disk(str(finished.path / folder))
        assert len(loaded) == 35
        texts[folder] = loaded[12]
        fingerprints.add(loaded._fingerprint)
    assert len(fingerprints) == 3
    assert texts["examples"]["id"] == rows.column("id")[12].as_py()
    assert len(texts["signals/hidden.01"]["hidden"]) == len(texts["examples"]["input_ids"])
    np.testing.assert_allclose(texts["signals/logits"]["logits"], finished.gather(LOGITS, np.array([12]))[0].numpy())


def test_nothing_missing_is_nothing_done(
    copied: Path, teacher: ModelSource, rows: pa.Table, computed: list[ShardTask]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    shuffled = rows.take(np.random.default_rng(0).permutation(35)).slice(0, 20)
    store = run(shuffled, teacher, copied, launcher="ray", rows_per_shard=3)
    assert computed == []
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before
    assert store.num_rows == 35


def test_repeated_rows_are_stored_once(tmp_path: Path, teacher: ModelSource, rows: pa.Table, finished: Store) -> None:
    relabelled = rows.set_column(2, "label", pa.array([-1] * 35, pa.int32()))
    store = run(pa.concat_tables([rows.slice(0, 12), relabelled, rows]), teacher, tmp_path)
    assert store.num_rows == 35
    assert tree(store.path) == tree(finished.path)


@pytest.mark.parametrize("done", [(0, 1), (1, 3), (2,), ()])
def test_a_capture_that_was_killed_ends_like_an_unbroken_one(
    copied: Path,
    finished: Store,
    teacher: ModelSource,
    rows: pa.Table,
    computed: list[ShardTask],
    done: tuple[int, ...],
) -> None:
    root = copied / finished.path.name
    for index in set(range(4)) - set(done):
        (root / f"shards/{index:05d}.json").unlink()
    (root / "manifest.json").unlink()
    # What is left of files that were being written, of a shard with a higher number, of the pending rows.
    (root / f"signals/logits/data-0000{0 if 2 in done else 2}.arrow").write_bytes(b"half a shard")
    (root / "signals/logits/data-00017.arrow").write_bytes(b"half a shard")
    (root / "shards/.00002.json.4711.tmp").write_text("{")
    (root / "examples/.data-00002.arrow.4711.tmp").write_bytes(b"half")
    (root / "pending/dead/examples").mkdir(parents=True)
    (root / "pending/dead/data-00002.arrow").write_bytes(b"rows")
    with pytest.raises(StoreError, match=rf"not finished \({len(done)} shards are committed\)"):
        Store.open(root)
    run(rows, teacher, copied)
    assert sorted(task.index for task in computed) == sorted(set(range(4)) - set(done))
    assert tree(root) == tree(finished.path)


def test_a_capture_killed_before_its_manifest_only_writes_that(
    copied: Path, finished: Store, teacher: ModelSource, rows: pa.Table, computed: list[ShardTask]
) -> None:
    root = copied / finished.path.name
    (root / "manifest.json").unlink()
    run(rows, teacher, copied)
    assert computed == []
    assert tree(root) == tree(finished.path)


def test_more_rows_are_added_and_positions_stay(
    copied: Path, finished: Store, teacher: ModelSource, rows: pa.Table, computed: list[ShardTask]
) -> None:
    more = make_rows(15, seed=1)
    store = run(pa.concat_tables([more.slice(0, 5), rows, more]), teacher, copied)
    assert [(task.index, task.rows, task.new) for task in computed] == [(4, 10, True), (5, 5, True)]
    assert store.num_rows == 50
    assert store.locate(row_ids(rows)).tolist() == finished.locate(row_ids(rows)).tolist()
    assert torch.equal(store.gather(LOGITS, np.arange(35)), finished.gather(LOGITS, np.arange(35)))
    alone = run(more, teacher, copied.parent / "alone")
    found = store.gather(HIDDEN, store.locate(row_ids(more)))
    torch.testing.assert_close(found, alone.gather(HIDDEN, alone.locate(row_ids(more))), atol=2e-3, rtol=1e-3)
    assert store.manifest["rows_fingerprint"] != finished.manifest["rows_fingerprint"]


def test_more_layers_end_as_if_asked_for_at_once(
    copied: Path, teacher: ModelSource, rows: pa.Table, computed: list[ShardTask], tmp_path: Path
) -> None:
    later = run(rows, teacher, copied, LOGITS, HIDDEN, LAST)
    assert {task.signals for task in computed} == {(LAST,)}
    assert not any(task.new for task in computed)
    at_once = run(rows, teacher, tmp_path / "at once", LAST, LOGITS, HIDDEN)
    assert tree(later.path) == tree(at_once.path)
    assert later.signals == (LOGITS, HIDDEN, LAST)


def test_a_layer_can_be_stored_for_some_rows(copied: Path, teacher: ModelSource, rows: pa.Table) -> None:
    more = make_rows(12, seed=1)
    store = run(pa.concat_tables([rows.slice(15, 5), more]), teacher, copied, LAST)
    asked, others = store.locate(row_ids(rows.slice(10, 10))), store.locate(row_ids(rows.slice(0, 3)))
    assert store.has(LAST, asked)
    assert not store.has(LAST, others)
    assert store.has(LAST, store.locate(row_ids(more)))
    full = run(rows, teacher, copied.parent / "full", LAST)
    assert torch.equal(store.gather(LAST, asked), full.gather(LAST, full.locate(row_ids(rows.slice(10, 10)))))
    with pytest.raises(StoreError, match=r"hidden.02 is stored for 22 of 47 rows, and 3 of those asked for"):
        store.gather(LAST, np.concatenate([asked, others]))
    # The new rows were asked for this layer only.
    with pytest.raises(StoreError, match="logits is stored for 35 of 47 rows"):
        store.gather(LOGITS, store.locate(row_ids(more)))


def test_another_teacher_or_encoding_is_another_store(
    copied: Path, finished: Store, rows: pa.Table, teacher: ModelSource, tmp_path: Path
) -> None:
    other = make_teacher(tmp_path / "other", seed=1)
    store = run(rows, other, copied)
    assert store.fingerprint != finished.fingerprint
    assert [entry.path.name for entry in list_stores(copied)] == sorted([store.fingerprint, finished.fingerprint])
    assert not torch.equal(store.gather(LOGITS, np.arange(35)), finished.gather(LOGITS, np.arange(35)))
    with pytest.raises(StoreError, match=f"{finished.fingerprint}.* but {store.fingerprint} is needed"):
        Store.open(finished.path, expect_fingerprint=store.fingerprint)
    assert run(rows, teacher, copied, precision="bf16").fingerprint not in (store.fingerprint, finished.fingerprint)


def test_element_types_stand_side_by_side(copied: Path, finished: Store, teacher: ModelSource, rows: pa.Table) -> None:
    exact = run(rows, teacher, copied, HIDDEN, element_type="float32")
    bits = run(rows, teacher, copied, HIDDEN, element_type="bfloat16")
    every = np.arange(35)
    assert exact.gather(HIDDEN, every).dtype == torch.float32
    assert bits.gather(HIDDEN, every).dtype == torch.bfloat16
    assert torch.equal(exact.gather(HIDDEN, every).bfloat16(), bits.gather(HIDDEN, every))
    assert torch.equal(exact.gather(HIDDEN, every).half(), finished.gather(HIDDEN, every))
    assert exact.signals == bits.signals == (LOGITS, HIDDEN)
    # Without a choice the most exact is read.
    assert Store.open(bits.path).gather(HIDDEN, every).dtype == torch.float32
    with pytest.raises(StoreError, match=r"hidden.02 is not stored as bfloat16, only hidden.01, hidden.01.bfloat16"):
        bits.gather(LAST, every)


def test_overflow_stops_the_capture_before_it_is_stored(tmp_path: Path, rows: pa.Table) -> None:
    loud = make_teacher(tmp_path / "loud", loud=1e5)
    embeddings = Signal("hidden", 0)
    with pytest.raises(StoreError, match=r"hidden.00: \d+ of \d+ values overflow float16; .*bfloat16 or float32"):
        run(rows, loud, tmp_path / "store", embeddings)
    (root,) = (tmp_path / "store").iterdir()
    assert not list(root.rglob("*.arrow"))
    store = run(rows, loud, tmp_path / "store", embeddings, element_type="bfloat16")
    assert torch.isfinite(store.gather(embeddings, np.arange(35)).float()).all()


def test_unknown_rows_are_counted(finished: Store, rows: pa.Table) -> None:
    with pytest.raises(StoreError, match="4 of 9 rows are not in this store"):
        finished.locate(np.concatenate([row_ids(rows)[:5], row_ids(make_rows(4, seed=9))]))


def test_an_open_store_travels_as_its_path(finished: Store) -> None:
    positions = np.array([3, 30])
    finished.gather(HIDDEN, positions)
    data = pickle.dumps(finished)
    assert len(data) < 1000
    assert torch.equal(pickle.loads(data).gather(HIDDEN, positions), finished.gather(HIDDEN, positions))


@pytest.mark.parametrize(
    ("damage", "seen_by_open"),
    [("truncated", True), ("missing", True), ("flipped", False)],
)
def test_damage_is_found_named_and_repaired(
    copied: Path, finished: Store, teacher: ModelSource, rows: pa.Table, damage: str, seen_by_open: bool
) -> None:
    root = copied / finished.path.name
    path = root / "signals/hidden.01/data-00002.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content[:-8] if damage == "truncated" else content)
    if damage == "missing":
        path.unlink()
    if seen_by_open:
        with pytest.raises(StoreError, match=r"damaged: signals/hidden\.01/data-00002\.arrow (is missing|has \d+ b)"):
            Store.open(root)
    else:
        (problem,) = Store.open(root).verify()
        assert problem == "signals/hidden.01/data-00002.arrow holds other bytes than were written"
        path.unlink()
    (entry,) = list_stores(copied)
    assert entry.store is None
    assert entry.problem is not None
    assert "damaged: signals/hidden.01" in entry.problem
    store = run(rows, teacher, copied)
    assert tree(root) == tree(finished.path)
    assert store.verify() == ()


def test_only_one_capture_writes_a_store(copied: Path, finished: Store, teacher: ModelSource, rows: pa.Table) -> None:
    root = copied / finished.path.name
    code = (
        "import sys, time; from pathlib import Path; from raybrew.storage.lock import locked_folder\n"
        "with locked_folder(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True, cwd=_root())
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=rf"process {holder.pid} on \S+ \(since .*\) is capturing into this store"):
            run(make_rows(3, seed=5), teacher, copied)
        # Reading, and a capture that has nothing to do, need no lock.
        run(rows, teacher, copied)
    finally:
        holder.kill()
        holder.wait()
    assert run(make_rows(3, seed=5), teacher, copied).num_rows == 38


def test_a_worker_that_outlives_its_capture_commits_nothing(
    copied: Path, finished: Store, teacher: ModelSource, tmp_path: Path
) -> None:
    root = copied / finished.path.name
    before = tree(root)
    with locked_store(LocalFolder(root)) as pending:
        settings = WorkerSettings(pending, teacher, task_of(), "cpu", "fp32", Forms("float16"), 64)
        worker = ShardWorker(settings, worker_module.load_teacher(settings))
        real = worker_module.write_shard

        def late(path: Path, table: pa.Table) -> Any:
            info = real(path, table)
            shutil.rmtree(root / "pending")
            return info

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker_module, "write_shard", late)
            with pytest.raises(Interrupted):
                worker.run(ShardTask(1, 10, (LAST,), new=False))
        with pytest.raises(Interrupted):
            worker.run(ShardTask(2, 10, (LAST,), new=False))
    assert tree(root) == before


def test_a_shard_that_kills_its_workers_is_named(copied: Path, finished: Store, teacher: ModelSource) -> None:
    root = copied / finished.path.name
    with locked_store(LocalFolder(root)) as pending:
        settings = WorkerSettings(pending, teacher, task_of(), "cpu", "fp32", Forms("float16"), 64)
        worker = ShardWorker(settings, worker_module.load_teacher(settings))
        pending.storage.write(pending.name("00003.attempts"), b"...")
        with pytest.raises(StoreError, match=r"shard 00003 \(5 rows\) ended its teacher process 3 times"):
            worker.run(ShardTask(3, 5, (LAST,), new=False))
        worker.run(ShardTask(2, 10, (LAST,), new=False))


def test_a_shard_whose_word_was_lost_is_not_computed_again(
    copied: Path, finished: Store, teacher: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray gives the task of a lost node to another worker, even if all it had left to do was to say so."""
    root = copied / finished.path.name
    with locked_store(LocalFolder(root)) as pending:
        settings = WorkerSettings(pending, teacher, task_of(), "cpu", "fp32", Forms("float16"), 64)
        worker = ShardWorker(settings, worker_module.load_teacher(settings))
        old, new = ShardTask(2, 10, (LAST,), new=False), ShardTask(1, 10, finished.signals, new=True)
        told = [worker.run(old)]
        pending.storage.write(pending.name("00001.attempts"), b".")
        marks = {path: path.stat().st_mtime_ns for path in (root / "shards").iterdir()}
        monkeypatch.setattr(worker_module, "write_shard", None)
        again = [worker.run(old), worker.run(new)]
    assert again[0].rows == told[0].rows == again[1].rows == 10
    assert again[0].tokens == told[0].tokens
    assert marks == {path: path.stat().st_mtime_ns for path in marks}


def test_a_full_disk_is_one_line_and_leaves_nothing_partial(
    tmp_path: Path, teacher: ModelSource, rows: pa.Table, finished: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = worker_module.write_shard

    def small_disk(path: Path, table: pa.Table) -> Any:
        if path.name == "data-00002.arrow" and path.parent.name == "hidden.01":
            raise OSError(28, "No space left on device")
        return real(path, table)

    monkeypatch.setattr(worker_module, "write_shard", small_disk)
    with pytest.raises(StoreError, match=r"shard 00002 was not written: no space left \(\d+ MiB free\)") as caught:
        run(rows, teacher, tmp_path)
    assert "\n" not in str(caught.value)
    (root,) = tmp_path.iterdir()
    committed = [path.stem for path in (root / "shards").iterdir()]
    assert "00002" not in committed
    assert len(committed) >= 1
    assert len(list(root.rglob("*.arrow"))) == 3 * len(committed)
    assert not (root / "pending").exists()
    monkeypatch.undo()
    run(rows, teacher, tmp_path)
    assert tree(root) == tree(finished.path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, teacher: ModelSource, rows: pa.Table) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match=r"cannot be written .*set store\.path"):
        run(rows, teacher, tmp_path / "store")


def test_interrupting_keeps_committed_shards(
    tmp_path: Path, teacher: ModelSource, rows: pa.Table, finished: Store
) -> None:
    def interrupt(progress: CaptureProgress) -> None:
        if progress.done_shards == 2:
            raise KeyboardInterrupt

    with pytest.raises(
        Interrupted, match=r"2 of 4 shards are done and kept in .* the same command computes the others"
    ):
        run(rows, teacher, tmp_path, progress=interrupt)
    (root,) = tmp_path.iterdir()
    assert len(list((root / "shards").glob("*.json"))) >= 2
    assert not (root / "manifest.json").exists()
    assert not (root / "pending").exists()
    run(rows, teacher, tmp_path)
    assert tree(root) == tree(finished.path)


def test_progress_adds_up(tmp_path: Path, teacher: ModelSource, rows: pa.Table) -> None:
    seen: list[CaptureProgress] = []
    store = run(rows, teacher, tmp_path, progress=seen.append)
    last = seen[-1]
    assert (last.done_shards, last.total_shards, last.done_rows, last.total_rows) == (4, 4, 35, 35)
    assert last.tokens == int(store.lengths.sum())
    shards = list(store.path.rglob("data-*.arrow"))
    assert last.bytes_written == sum(path.stat().st_size for path in shards)
    assert [entry.done_rows for entry in seen] == sorted(entry.done_rows for entry in seen)
    assert last.note is None
    assert last.seconds > 0


def test_arguments_that_cannot_be(tmp_path: Path, teacher: ModelSource, rows: pa.Table) -> None:
    with pytest.raises(DataError, match="lack text; they have id, label"):
        run(rows.select(["id", "label"]), teacher, tmp_path)
    with pytest.raises(DataError, match="no rows"):
        run(rows.slice(0, 0), teacher, tmp_path)
    with pytest.raises(ModelError, match=r"hidden.03 was asked for, but .* has layers 0 \(embeddings\) to 2"):
        run(rows, teacher, tmp_path, Signal("hidden", 3))
    with pytest.raises(ModelError, match=r"attention\.03 was asked for, but .* has layers 1 to 2"):
        run(rows, teacher, tmp_path, Signal("attention", 3))
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_found_only_when_it_has_everything(copied: Path, teacher: ModelSource, rows: pa.Table) -> None:
    def find(rows: pa.Table, *request: Signal, root: Path = copied) -> Store:
        return find_store(rows, task_of(), teacher, request, small_store(), root, "cpu", "auto")

    assert find(rows.slice(3, 5), LOGITS, HIDDEN).num_rows == 35
    with pytest.raises(StoreError, match="3 of 3 rows are not in this store"):
        find(make_rows(3, seed=8), LOGITS)
    with pytest.raises(StoreError, match=r"hidden.02 is not stored for all rows"):
        find(rows, LOGITS, LAST)
    with pytest.raises(StoreError, match=r"no store [0-9a-f]{32} of the teacher"):
        find(rows, LOGITS, root=copied / "elsewhere")


def test_a_finished_store_is_used_without_ray(copied: Path, teacher: ModelSource) -> None:
    code = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from tiny_teacher import make_rows, small_store, task_of
from raybrew.models.loading import ModelSource
from raybrew.signals import LOGITS
from raybrew.store.capture import capture
rows, store = make_rows(35), small_store(launcher="ray")
capture(rows, task_of(), ModelSource(sys.argv[1]), [LOGITS], store, Path(sys.argv[2]), "cpu", "fp32")
assert "ray" not in sys.modules, "ray was imported"
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, teacher.model, str(copied)],
        cwd=_root(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "done\n", done.stderr


@pytest.mark.slow
def test_a_capture_killed_by_the_system_is_continued(
    tmp_path: Path, teacher: ModelSource, rows: pa.Table, finished: Store
) -> None:
    code = """
import sys, time
from pathlib import Path
sys.path.insert(0, "tests")
from tiny_teacher import make_rows, small_store, task_of
from raybrew.models.loading import ModelSource
from raybrew.signals import LOGITS, Signal
from raybrew.store import compute
from raybrew.store.capture import capture
real = compute.forward
def slow(*arguments):
    time.sleep(0.2)
    return real(*arguments)
compute.forward = slow
request = [LOGITS, Signal("hidden", 1)]
capture(make_rows(35), task_of(), ModelSource(sys.argv[1]), request, small_store(), Path(sys.argv[2]), "cpu", "fp32")
"""
    victim = subprocess.Popen(
        [sys.executable, "-c", code, teacher.model, str(tmp_path)], cwd=_root(), stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (marks := list(tmp_path.glob("*/shards/*.json"))) and time.monotonic() < deadline:
        assert victim.poll() is None, "it ended before its first shard"
        time.sleep(0.02)
    victim.send_signal(signals.SIGKILL)
    victim.wait()
    assert marks
    (root,) = tmp_path.iterdir()
    assert not (root / "manifest.json").exists()
    assert (root / "pending").is_dir()
    kept = {path: path.stat().st_mtime_ns for path in (root / "shards").glob("*.json")}
    assert 1 <= len(kept) < 4
    run(rows, teacher, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert tree(root) == tree(finished.path)


def _root() -> Path:
    return Path(__file__).resolve().parents[3]

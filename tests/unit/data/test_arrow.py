"""Shard files: atomic, hashed, opened by `datasets`, gathered as a naive loop would."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybrew.data.arrow import ArrowFolder, hash_file, shard_name, write_folder_state, write_shard
from raybrew.data.columns import FlatColumn, RaggedColumn
from raybrew.errors import DataError
from raybrew.files import write_json

DIM = 5
TYPES = {"float16": pa.float16(), "float32": pa.float32(), "uint16": pa.uint16()}


def _rows(rng: np.random.Generator, lengths: list[int], dtype: str) -> list[np.ndarray]:
    return [rng.integers(0, 1000, (length, DIM)).astype(dtype) for length in lengths]


def _table(rows: list[np.ndarray], dtype: str, start: int) -> pa.Table:
    offsets = np.cumsum([0, *map(len, rows)]).astype(np.int64)
    flat = np.concatenate([*rows, np.empty((0, DIM), dtype)])
    matrix = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1), TYPES[dtype]), DIM)
    numbers = range(start, start + len(rows))
    counted = list(zip(numbers, (len(row) for row in rows), strict=True))
    return pa.table(
        {
            "hidden": pa.LargeListArray.from_arrays(pa.array(offsets), matrix),
            "input_ids": pa.array([[number] * length for number, length in counted], pa.list_(pa.int32())),
            "types": pa.array([[number % 2] * length for number, length in counted], pa.list_(pa.int8())),
            "id": pa.array([bytes([number % 256]) * 15 + b"\0" for number in numbers], pa.binary(16)),
            "label": pa.array(list(numbers), pa.int32()),
            "logits": pa.FixedSizeListArray.from_arrays(
                pa.array(np.arange(start * 2, (start + len(rows)) * 2), pa.float32()), 2
            ),
        }
    )


def _folder(path: Path, dtype: str, shards: list[list[int]]) -> tuple[ArrowFolder, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    everything: list[np.ndarray] = []
    files = []
    path.mkdir(exist_ok=True)
    for index, lengths in enumerate(shards):
        rows = _rows(rng, lengths, dtype)
        files.append(write_shard(path / shard_name(index), _table(rows, dtype, len(everything))).file)
        everything += rows
    write_folder_state(path, files)
    return ArrowFolder.open(path), everything


@pytest.mark.parametrize("dtype", TYPES)
def test_gather_is_what_a_loop_over_rows_gives(tmp_path: Path, dtype: str) -> None:
    folder, rows = _folder(tmp_path, dtype, [[3, 1, 0, 7], [2], [5, 5, 1]])
    hidden = folder.ragged("hidden")
    assert hidden.lengths.tolist() == [len(row) for row in rows]
    assert hidden.lengths.dtype == np.int32
    assert (hidden.item_shape, hidden.dtype) == ((DIM,), np.dtype(dtype))
    for wanted in ([0], [7, 0, 4, 4, 2], [2], []):
        values, lengths = hidden.gather(wanted)
        assert lengths.tolist() == [len(rows[index]) for index in wanted]
        assert values.shape == (sum(lengths), DIM)
        np.testing.assert_array_equal(values, np.concatenate([*(rows[i] for i in wanted), np.empty((0, DIM), dtype)]))
        padded = hidden.gather_padded(wanted, 9)
        assert padded.dtype == np.dtype(dtype)
        assert padded.shape == (len(wanted), max(map(int, lengths), default=0), DIM)
        for place, index in zip(padded, wanted, strict=True):
            np.testing.assert_array_equal(place[: len(rows[index])], rows[index])
            assert (place[len(rows[index]) :] == 9).all()


@given(
    shards=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=5), min_size=1, max_size=4),
    data=st.data(),
)
@settings(max_examples=25, deadline=None)
def test_any_sharding_gathers_the_same(
    tmp_path_factory: pytest.TempPathFactory, shards: list[list[int]], data: st.DataObject
) -> None:
    folder, rows = _folder(tmp_path_factory.mktemp("shards"), "float16", shards)
    wanted = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=8))
    padded = folder.ragged("input_ids").gather_padded(wanted, -1, 6)
    assert padded.tolist() == [[index] * len(rows[index]) + [-1] * (6 - len(rows[index])) for index in wanted]
    assert folder.flat("label").gather(wanted).tolist() == wanted
    assert folder.flat("logits").gather(wanted).tolist() == [[2 * index, 2 * index + 1] for index in wanted]


def test_flat_columns(tmp_path: Path) -> None:
    folder, rows = _folder(tmp_path, "float16", [[1, 2], [3]])
    ids = folder.flat("id")
    assert ids.read().shape == (3, 16)
    assert [bytes(value) for value in ids.gather([2, 0])] == [b"\x02" * 15 + b"\0", b"\0" * 16]
    assert len(folder.flat("label")) == folder.num_rows == len(rows) == 3
    assert folder.flat("label").gather([]).shape == (0,)


def test_slices_are_read_from_their_offset() -> None:
    table = _table(_rows(np.random.default_rng(1), [2, 3, 1, 4], "float32"), "float32", 10).slice(1, 2)
    ragged = RaggedColumn(table.schema.field("hidden").type, table.column("hidden").chunks)
    naive = [np.array(row, np.float32) for row in table.column("hidden").to_pylist()]
    np.testing.assert_array_equal(ragged.gather([1, 0])[0], np.concatenate([naive[1], naive[0]]))
    flat = FlatColumn(table.schema.field("id").type, table.column("id").chunks)
    assert [bytes(value) for value in flat.read()] == table.column("id").to_pylist()
    logits = FlatColumn(table.schema.field("logits").type, table.column("logits").chunks)
    assert logits.read().tolist() == table.column("logits").to_pylist()


def test_values_are_views_of_the_file(tmp_path: Path) -> None:
    folder, _ = _folder(tmp_path, "float16", [[2, 3]])
    (row,) = folder.ragged("hidden")._rows([1])
    assert not row.flags.owndata
    assert not row.flags.writeable


def test_datasets_opens_a_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    _, rows = _folder(tmp_path, "float16", [[3, 1], [2]])
    loaded = datasets.load_from_disk(str(tmp_path))
    assert len(loaded) == 3
    np.testing.assert_array_equal(np.array(loaded[2]["hidden"], np.float16), rows[2])
    assert loaded[1]["input_ids"] == [1]


def test_a_shard_tells_its_size_and_hash(tmp_path: Path) -> None:
    info = write_shard(tmp_path / shard_name(3), pa.table({"x": [1, 2, 3]}))
    path = tmp_path / "data-00003.arrow"
    assert (info.file, info.rows, info.bytes) == (path.name, 3, path.stat().st_size)
    assert info.xxh3 == hash_file(path)
    assert len(info.xxh3) == 32
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_equal_tables_give_equal_bytes_however_they_are_cut(tmp_path: Path) -> None:
    table = _table(_rows(np.random.default_rng(0), [1, 2, 3], "float32"), "float32", 0)
    whole = write_shard(tmp_path / "a.arrow", table)
    pieces = write_shard(tmp_path / "b.arrow", pa.concat_tables([table.slice(0, 1), table.slice(1)]))
    assert whole.xxh3 == pieces.xxh3


@pytest.mark.parametrize("what", ["shard", "json"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("raybrew.files.os.fsync", no_space)
    with pytest.raises(OSError, match="No space left") as caught:
        write_shard(path, pa.table({"x": [1]})) if what == "shard" else write_json(path, {})
    assert caught.value.errno == 28
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    folder, _ = _folder(tmp_path / "good", "float16", [[2], [3]])
    with pytest.raises(DataError, match=r"no column 'x'; columns: hidden"):
        folder.column("x")
    with pytest.raises(DataError, match="'label' holds no lists"):
        folder.ragged("label")
    with pytest.raises(DataError, match="'hidden' holds lists"):
        folder.flat("hidden")
    with pytest.raises(DataError, match=r"state\.json: missing"):
        ArrowFolder.open(tmp_path)
    shard = tmp_path / "good" / shard_name(1)
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"data-00001\.arrow: no readable Arrow stream"):
        ArrowFolder.open(tmp_path / "good")
    shard.unlink()
    with pytest.raises(DataError, match=r"data-00001\.arrow: missing"):
        ArrowFolder.open(tmp_path / "good")


def test_a_file_list_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    _folder(tmp_path, "float16", [[2]])
    state = json.loads((tmp_path / "state.json").read_text())
    state["_data_files"][0]["filename"] = "../data-00000.arrow"
    write_json(tmp_path / "state.json", state)
    with pytest.raises(DataError, match="leads out of the folder"):
        ArrowFolder.open(tmp_path)


def test_shards_of_other_columns_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", pa.table({"x": [1]}))
    write_shard(tmp_path / "b", pa.table({"y": [1]}))
    with pytest.raises(DataError, match="b: columns differ from those of a"):
        ArrowFolder.open(tmp_path, ["a", "b"])


def test_rows_beyond_the_end_and_short_padding_are_errors(tmp_path: Path) -> None:
    folder, _ = _folder(tmp_path, "float16", [[2, 4]])
    for wrong in ([2], [-1]):
        with pytest.raises(IndexError):
            folder.ragged("hidden").gather(wrong)
        with pytest.raises(IndexError):
            folder.flat("label").gather(wrong)
    with pytest.raises(ValueError, match="4 items, more than length=3"):
        folder.ragged("hidden").gather_padded([1], 0, 3)


def test_nulls_are_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", pa.table({"x": [1, None]}))
    with pytest.raises(DataError, match="nulls"):
        ArrowFolder.open(tmp_path, ["a"]).column("x")


def test_a_folder_without_rows_is_read(tmp_path: Path) -> None:
    folder, _ = _folder(tmp_path, "float16", [[]])
    assert folder.num_rows == 0
    assert folder.ragged("hidden").gather_padded([]).shape == (0, 0, DIM)
    assert folder.flat("logits").read().shape == (0, 2)
    assert folder.ragged("hidden").lengths.shape == (0,)


def test_a_folder_is_opened_anew_in_another_process(tmp_path: Path) -> None:
    folder, rows = _folder(tmp_path, "float16", [[2, 4]])
    again = pickle.loads(pickle.dumps(folder))
    np.testing.assert_array_equal(again.ragged("hidden").gather([1])[0], rows[1])
    assert len(pickle.dumps(folder)) < 500


def test_state_names_the_content(tmp_path: Path) -> None:
    info = write_shard(tmp_path / "a", pa.table({"x": [1]}))
    write_folder_state(tmp_path, [info.file])
    first = json.loads((tmp_path / "state.json").read_text())["_fingerprint"]
    info = write_shard(tmp_path / "a", pa.table({"x": [1, 2]}))
    write_folder_state(tmp_path, [info.file])
    assert json.loads((tmp_path / "state.json").read_text())["_fingerprint"] != first
    write_folder_state(tmp_path, [info.file], "given")
    assert json.loads((tmp_path / "state.json").read_text())["_fingerprint"] == "given"

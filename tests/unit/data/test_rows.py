"""Ids of examples, fingerprints of rows, duplicates and subsets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybrew.data.rows import row_ids, rows_fingerprint, subset_indices
from raybrew.tasks.base import Labels
from raybrew.tasks.values import example_id
from unit.data.test_formats import column, load, write_csv, write_jsonl


def test_ids_are_pinned() -> None:
    # Stores and caches on disk are keyed by these: they may never change.
    assert example_id(("raybrew",)).hex() == "41e054fb6b6fb8d32b6efec487d1c3be"
    assert example_id(("naïve 你好", "")).hex() == "191857f3e912f6c9c18b93a0bf209f8b"


def test_ids_tell_borders_and_numbers_of_texts_apart() -> None:
    contents = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ("ab", "c", "")]
    assert len({example_id(content) for content in contents}) == len(contents)
    assert {len(example_id(content)) for content in contents} == {16}


@given(st.lists(st.lists(st.text(max_size=3), max_size=3).map(tuple), unique=True, max_size=20))
def test_different_contents_have_different_ids(contents: list[tuple[str, ...]]) -> None:
    contents = [c for c in contents if not any("\ud800" <= char <= "\udfff" for text in c for char in text)]
    assert len({example_id(content) for content in contents}) == len(contents)


def test_fingerprint_of_rows_ignores_order_and_labels_but_not_content(tmp_path: Path) -> None:
    source = [{"text": f"row {i}", "label": i % 2} for i in range(100)]
    write_csv(tmp_path / "r.csv", source)
    write_jsonl(tmp_path / "r.jsonl", [{"label": 1 - row["label"], "text": row["text"]} for row in reversed(source)])
    table = load(tmp_path / "r.csv").table
    fingerprint = rows_fingerprint(table)
    assert len(fingerprint) == 32
    assert rows_fingerprint(load(tmp_path / "r.jsonl").table) == fingerprint
    assert rows_fingerprint(pa.concat_tables([table.slice(60), table.slice(0, 60)])) == fingerprint
    assert rows_fingerprint(table.slice(0, 99)) != fingerprint
    assert rows_fingerprint(pa.concat_tables([table, table.slice(0, 1)])) != fingerprint


def test_row_ids_follow_slices_and_chunks(tmp_path: Path) -> None:
    write_csv(tmp_path / "r.csv", [{"text": f"row {i}", "label": i % 2} for i in range(10)])
    table = load(tmp_path / "r.csv").table
    parts = pa.concat_tables([table.slice(7), table.slice(2, 3), table.slice(0, 0)])
    assert [bytes(row) for row in row_ids(parts)] == parts.column("id").to_pylist()
    assert row_ids(table.slice(0, 0)).shape == (0, 16)


def test_duplicates_are_kept(tmp_path: Path) -> None:
    source = [("same", 0), ("same", 0), ("both", 0), ("both", 1), ("both", 1), ("other", 1), ("two", 1), ("two", 0)]
    write_jsonl(tmp_path / "r.jsonl", [{"text": text, "label": label} for text, label in source])
    rows = load(tmp_path / "r.jsonl")
    assert len(rows) == 8
    assert len(set(column(rows, "id"))) == 4


@pytest.mark.parametrize("split", ["train", "eval", "unlabeled"])
def test_subsets_keep_the_order_and_lie_in_larger_ones(split: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "r.csv", [{"text": f"{i:04d}", "label": i % 2} for i in range(1000)])
    labels = Labels(("0", "1"))
    small = column(load(tmp_path / "r.csv", split, labels, **{f"{split}_rows": 50}), "text")
    large = column(load(tmp_path / "r.csv", split, labels, **{f"{split}_rows": 200}), "text")
    assert len(small) == 50
    assert len(large) == 200
    assert set(small) < set(large)
    assert small == sorted(small)
    assert large == sorted(large)
    # Drawn from everywhere, not cut off the front.
    assert 350 < np.mean([int(text) for text in large]) < 650
    assert len(load(tmp_path / "r.csv", split, labels, **{f"{split}_rows": 5000})) == 1000


def test_subset_rows_are_pinned() -> None:
    # The same rows on every machine, with every version of numpy.
    assert subset_indices(20, 6).tolist() == [1, 2, 3, 11, 13, 15]


def test_labels_do_not_depend_on_the_subset(tmp_path: Path) -> None:
    write_csv(tmp_path / "r.csv", [{"text": f"{i}", "label": f"class {i % 100:02d}"} for i in range(300)])
    assert len(load(tmp_path / "r.csv", train_rows=5).labels) == 100


def test_more_rows_than_one_chunk(tmp_path: Path) -> None:
    count = 20_000
    write_jsonl(tmp_path / "r.jsonl", [{"text": f"row {i}", "label": i % 3} for i in range(count)])
    rows = load(tmp_path / "r.jsonl")
    assert column(rows, "text") == [f"row {i}" for i in range(count)]
    assert column(rows, "label") == [i % 3 for i in range(count)]


def test_real_rows(shared_data: Path) -> None:
    rows = load(shared_data / "mrpc" / "dev.jsonl.gz", "eval", Labels(("equivalent", "not_equivalent")), pair=True)
    assert len(rows) == 408
    assert len(set(column(rows, "id"))) == 408

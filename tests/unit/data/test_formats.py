"""Rows of every format, and any text in them, come out as they went in. Other tests use the writers of this file."""

from __future__ import annotations

import csv
import gzip
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raybrew.config import ClassificationConfig, Columns, DataConfig
from raybrew.data.rows import RowSet, load_rows
from raybrew.errors import DataError
from raybrew.tasks.base import Labels, build_task
from raybrew.tasks.values import example_id

Row = dict[str, Any]
SENTENCES = ["a first one", 'she said "no", twice', "naïve 你好 🙂", " kept  spaces ", "it 's\u2028fine", "last"]
NAMED = ["good", "bad", "good", "good", "bad", "good"]


def write_csv(path: Path, rows: Sequence[Row], delimiter: str = ",") -> None:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8", newline="") as file:
        if delimiter == ",":
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        else:
            for cells in (list(rows[0]), *(row.values() for row in rows)):
                file.write(delimiter.join(map(str, cells)) + "\n")


def write_tsv(path: Path, rows: Sequence[Row]) -> None:
    write_csv(path, rows, "\t")


def write_jsonl(path: Path, rows: Sequence[Row]) -> None:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=2)


def write_arrow_file(path: Path, rows: Sequence[Row]) -> None:
    table = pa.Table.from_pylist(list(rows))
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_arrow_stream(path: Path, rows: Sequence[Row]) -> None:
    table = pa.Table.from_pylist(list(rows))
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_dataset(path: Path, rows: Sequence[Row]) -> None:
    import datasets

    datasets.Dataset.from_list(list(rows)).save_to_disk(str(path))


FORMATS: dict[str, tuple[str, Callable[[Path, Sequence[Row]], None]]] = {
    "csv": ("rows.csv", write_csv),
    "csv.gz": ("rows.csv.gz", write_csv),
    "tsv": ("rows.tsv", write_tsv),
    "tsv.gz": ("rows.tsv.gz", write_tsv),
    "jsonl": ("rows.jsonl", write_jsonl),
    "jsonl.gz": ("rows.jsonl.gz", write_jsonl),
    "parquet": ("rows.parquet", write_parquet),
    "arrow file": ("rows.arrow", write_arrow_file),
    "arrow stream": ("rows.arrow", write_arrow_stream),
    "dataset": ("rows", write_dataset),
}


def load(
    path: Path | str, split: Any = "train", labels: Labels | None = None, pair: bool = False, **options: Any
) -> RowSet:
    columns = Columns(text_pair="text_pair" if pair else None)
    task_labels = options.pop("task_labels", None)
    data = DataConfig(**{split: str(path)}, columns=columns, **options)
    task = build_task(ClassificationConfig(labels=task_labels), columns)
    return load_rows(data, split, task, labels)


def column(rows: RowSet, name: str) -> list[Any]:
    return list(rows.table.column(name).to_pylist())


def failure(path: Path | str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, **options)
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args
    return str(caught.value)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("numbered", [False, True])
@pytest.mark.parametrize("pair", [False, True])
def test_round_trip_of_every_format(kind: str, numbered: bool, pair: bool, tmp_path: Path) -> None:
    name, write = FORMATS[kind]
    labels = [int(label == "good") for label in NAMED] if numbered else NAMED
    more = {"text_pair": "the other"} if pair else {}
    source = [
        {"text": text, **more, "label": label, "unused": 7} for text, label in zip(SENTENCES, labels, strict=True)
    ]
    write(tmp_path / name, source)
    rows = load(tmp_path / name, pair=pair)
    assert column(rows, "text") == SENTENCES
    assert rows.table.column_names == (["id", "text", "text_pair", "label"] if pair else ["id", "text", "label"])
    if pair:
        assert column(rows, "text_pair") == ["the other"] * 6
    assert rows.labels.names == (("0", "1") if numbered else ("bad", "good"))
    assert column(rows, "label") == [1, 0, 1, 1, 0, 1]
    assert rows.table.schema.field("label").type == pa.int32()
    contents = [(text, "the other") if pair else (text,) for text in SENTENCES]
    assert column(rows, "id") == [example_id(content) for content in contents]
    assert rows.skipped == ()
    assert rows.source == str(tmp_path / name)


@pytest.mark.parametrize("kind", ["csv", "jsonl.gz", "parquet", "dataset"])
def test_unlabeled_rows_need_and_read_no_labels(kind: str, tmp_path: Path) -> None:
    name, write = FORMATS[kind]
    write(tmp_path / name, [{"text": text} for text in SENTENCES])
    assert column(load(tmp_path / name, "unlabeled"), "label") == [-1] * 6
    nonsense = tmp_path / "nonsense"
    nonsense.mkdir()
    write(nonsense / name, [{"text": text, "label": "neither"} for text in SENTENCES])
    rows = load(nonsense / name, "unlabeled", labels=Labels(("bad", "good")))
    assert column(rows, "label") == [-1] * 6
    assert rows.labels.names == ("bad", "good")


def test_a_folder_is_read_in_the_order_of_names_with_rows_counted_per_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "b.jsonl.gz", [{"text": "three", "label": "x"}, {"text": "", "label": "x"}])
    write_csv(tmp_path / "a.csv", [{"text": "one", "label": "y"}, {"text": "two", "label": "x"}])
    rows = load(tmp_path, on_bad_row="skip")
    assert column(rows, "text") == ["one", "two", "three"]
    assert [(Path(bad.file).name, bad.row) for bad in rows.skipped] == [("b.jsonl.gz", 2)]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize(("name", "delimiter"), [("rows.csv", b","), ("rows.tsv", b"\t")])
def test_byte_order_mark_line_ends_and_blank_lines(
    mark: bytes, end: bytes, name: str, delimiter: bytes, tmp_path: Path
) -> None:
    lines = [b"text", b"a", b"", b"b", b""]
    lines = [line and line + delimiter + (b"label" if line == b"text" else line) for line in lines]
    (tmp_path / name).write_bytes(mark + end.join(lines))
    rows = load(tmp_path / name)
    assert column(rows, "text") == ["a", "b"]
    assert rows.labels.names == ("a", "b")


def test_jsonl_takes_a_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a", "label": 0}\r\n \n{"label": 1, "text": "b"}')
    assert column(load(path), "text") == ["a", "b"]


def test_tsv_has_no_quoting(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_bytes(b'text\tlabel\n" an open quote\t0\nhe said ""so""\t1\nold\rmac\t1\n')
    assert column(load(path), "text") == ['" an open quote', 'he said ""so""', "old\rmac"]


def test_gzip_is_known_by_content(tmp_path: Path) -> None:
    write_csv(tmp_path / "packed.csv.gz", [{"text": "a", "label": 0}, {"text": "b", "label": 1}])
    (tmp_path / "packed.csv.gz").rename(tmp_path / "plain.csv")
    assert len(load(tmp_path / "plain.csv")) == 2


def test_parquet_bytes_without_a_text_mark_are_text(tmp_path: Path) -> None:
    table = pa.table({"text": pa.array([b"caf\xc3\xa9", b"b", b"caf\xe9"]), "label": [0, 1, 1]})
    pq.write_table(table, tmp_path / "rows.parquet")
    rows = load(tmp_path / "rows.parquet", on_bad_row="skip")
    assert column(rows, "text") == ["café", "b"]
    assert [(bad.row, bad.column) for bad in rows.skipped] == [(3, "text")]


def test_arrow_text_that_is_not_utf8_is_a_bad_row(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"caf\xe9", b"too"]).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    table = pa.table({"text": text.dictionary_encode(), "plain": text, "label": ["x", "x", "y"]})
    with pa.ipc.new_stream(str(tmp_path / "rows.arrow"), table.schema) as writer:
        writer.write_table(table)
    for name in ("text", "plain"):
        data = DataConfig(train=str(tmp_path / "rows.arrow"), columns=Columns(text=name), on_bad_row="skip")
        rows = load_rows(data, "train", build_task(ClassificationConfig(), Columns(text=name)))
        assert column(rows, "text") == ["fine", "too"]
        assert rows.skipped[0].column == name
        assert "byte 0xe9 at character 4" in rows.skipped[0].reason


text_of_csv = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\ufffd"), min_size=1, max_size=30
).filter(lambda text: bool(text.strip()))
label_of_csv = st.sampled_from(['a "label"', "b, with comma", "c\nd"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(text_of_csv, label_of_csv), min_size=1, max_size=8), gap=st.booleans())
def test_any_text_survives_csv(rows: list[tuple[str, str]], gap: bool, tmp_path: Path) -> None:
    rows = [*rows, ("x", "c\nd"), ('"', "b, with comma")]
    with (tmp_path / "any.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n\n" if gap else "\r\n", quoting=csv.QUOTE_ALL)
        writer.writerows([("text", "label"), *rows])
    loaded = load(tmp_path / "any.csv")
    assert column(loaded, "text") == [text for text, _ in rows]
    assert [loaded.labels.names[index] for index in column(loaded, "label")] == [label for _, label in rows]

"""Bad rows are named by file, row, line and column or left out; files that cannot be used say why in one line."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybrew.config import ClassificationConfig, DataConfig
from raybrew.data.rows import BadRow, load_rows
from raybrew.errors import ConfigError
from raybrew.tasks.base import Labels, build_task
from unit.data.test_formats import (
    FORMATS,
    column,
    failure,
    load,
    write_arrow_stream,
    write_csv,
    write_jsonl,
    write_parquet,
)

CSV = b"text,label\nfine,a\n%s\nlast,b\n"
TSV = b"text\tlabel\nfine\ta\n%s\nlast\tb\n"
JSONL = b'{"text": "fine", "label": "a"}\n%s\n{"text": "last", "label": "b"}\n'

BAD_ROWS = {
    "csv not utf-8": ("r.csv", CSV % b"caf\xe9,a", "text", "not UTF-8: byte 0xe9 at character 4"),
    "csv not utf-8 in label": ("r.csv", CSV % b"x,\xff", "label", "not UTF-8: byte 0xff"),
    "csv too few": ("r.csv", CSV % b"only", None, "1 fields, but the header has 2"),
    "csv too many": ("r.csv", CSV % b"a,b,c", None, "3 fields, but the header has 2"),
    "csv broken quotes": ("r.csv", CSV % b'"a" b,c', None, "no CSV"),
    "csv empty text": ("r.csv", CSV % b" ,a", "text", "empty"),
    "csv no label": ("r.csv", CSV % b"x,", "label", "no label"),
    "csv replacement": ("r.csv", CSV % "caf\ufffd,a".encode(), "text", "U+FFFD"),
    "tsv not utf-8": ("r.tsv", TSV % b"caf\xe9\ta", "text", "not UTF-8: byte 0xe9"),
    "tsv too few": ("r.tsv", TSV % b"only", None, "1 fields"),
    "tsv too many": ("r.tsv", TSV % b"a\tb\tc", None, "3 fields"),
    "tsv nul": ("r.tsv", TSV % b"a\0\tb", "text", "NUL"),
    "jsonl not utf-8": ("r.jsonl", JSONL % b'{"text": "caf\xe9", "label": "a"}', "text", "not UTF-8: byte 0xe9"),
    "jsonl neither": ("r.jsonl", JSONL % b"\xff\xfe?", None, "neither UTF-8 nor JSON"),
    "jsonl no json": ("r.jsonl", JSONL % b'{"text": "a', None, "no JSON"),
    "jsonl array": ("r.jsonl", JSONL % b"[1, 2]", None, "a JSON object expected, got an array"),
    "jsonl null": ("r.jsonl", JSONL % b"null", None, "a JSON object expected, got null"),
    "jsonl deep": ("r.jsonl", JSONL % (b"[" * 100_000), None, "no JSON"),
    "jsonl lacks text": ("r.jsonl", JSONL % b'{"label": "a"}', "text", "missing; the row has 'label'"),
    "jsonl text null": ("r.jsonl", JSONL % b'{"text": null, "label": "a"}', "text", "empty"),
    "jsonl text number": ("r.jsonl", JSONL % b'{"text": 1, "label": "a"}', "text", "text expected, got int"),
    "jsonl nul": ("r.jsonl", JSONL % b'{"text": "a\\u0000b", "label": "a"}', "text", "NUL"),
    "jsonl surrogate": ("r.jsonl", JSONL % b'{"text": "a\\ud800b", "label": "a"}', "text", "U+D800"),
    "jsonl no label": ("r.jsonl", JSONL % b'{"text": "x"}', "label", "no label"),
    "jsonl label null": ("r.jsonl", JSONL % b'{"text": "x", "label": null}', "label", "no label"),
    "jsonl label list": ("r.jsonl", JSONL % b'{"text": "x", "label": ["a"]}', "label", "got list"),
    "jsonl label half": ("r.jsonl", JSONL % b'{"text": "x", "label": 0.5}', "label", "whole number"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_is_named_or_skipped(case: str, tmp_path: Path) -> None:
    name, content, bad_column, reason = BAD_ROWS[case]
    path = tmp_path / name
    path.write_bytes(content)
    line = 2 if name.endswith("jsonl") else 3
    message = failure(path)
    place = f"{path}, row 2 (line {line})" + (f", column '{bad_column}': " if bad_column else ": ")
    assert message.startswith(f"data.train: 1 of the 3 rows of {path} cannot be used")
    assert place in message
    assert reason in message.partition(place)[2]
    assert "data.on_bad_row=skip" in message

    rows = load(path, on_bad_row="skip")
    assert column(rows, "text") == ["fine", "last"]
    (bad,) = rows.skipped
    assert (bad.file, bad.row, bad.line, bad.column) == (str(path), 2, line, bad_column)
    assert reason in bad.reason
    assert place in str(bad)


def test_nul_in_csv_is_a_bad_row(tmp_path: Path) -> None:
    # Python 3.10's csv refuses the line, later ones hand it over; the column is only known in the latter case.
    (tmp_path / "r.csv").write_bytes(CSV % b"a\0b,a")
    (bad,) = load(tmp_path / "r.csv", on_bad_row="skip").skipped
    assert (bad.row, bad.line) == (2, 3)
    assert "NUL" in bad.reason


def test_bad_rows_of_columnar_formats_have_no_line(tmp_path: Path) -> None:
    write_parquet(
        tmp_path / "r.parquet", [{"text": t, "label": n} for t, n in (("a", 0), (None, 1), ("b", None), ("c", 1))]
    )
    rows = load(tmp_path / "r.parquet", on_bad_row="skip")
    file = str(tmp_path / "r.parquet")
    assert rows.skipped == (BadRow(file, 2, "text", "empty"), BadRow(file, 3, "label", "no label"))
    assert f"{file}, row 2, column 'text': empty" in failure(tmp_path / "r.parquet")


def test_lines_are_counted_through_quoted_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_bytes(b'text,label\n"one\ntwo\nthree",a\n\n,a\n"x\n",b\n"y\nz",\n')
    rows = load(path, on_bad_row="skip")
    assert column(rows, "text") == ["one\ntwo\nthree", "x\n"]
    assert [(bad.row, bad.line, bad.column) for bad in rows.skipped] == [(2, 6, "text"), (4, 9, "label")]


def test_an_open_quote_is_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_bytes(b'text,label\na,0\nb,1\n"open,1\nc,0\n')
    (bad,) = load(path, on_bad_row="skip").skipped
    assert (bad.row, bad.line) == (3, 4)


def test_long_fields_are_read_and_the_limit_of_others_is_kept(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    write_csv(tmp_path / "r.csv", [{"text": "w" * 300_000, "label": 0}, {"text": "b", "label": 1}])
    assert len(column(load(tmp_path / "r.csv"), "text")[0]) == 300_000
    assert csv.field_size_limit() == before


def test_many_bad_rows_show_the_first_five_and_the_count(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "r.jsonl", [{"text": "" if i % 2 else "x", "label": i % 4} for i in range(24)])
    message = failure(tmp_path / "r.jsonl")
    assert "12 of the 24 rows" in message
    assert [f"row {row} " in message for row in (2, 4, 6, 8, 10, 12)] == [True] * 5 + [False]
    assert "and 7 more" in message
    assert len(load(tmp_path / "r.jsonl", on_bad_row="skip").skipped) == 12


def test_no_usable_row_left(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "r.jsonl", [{"text": "", "label": 0}, {"text": " ", "label": 1}])
    message = failure(tmp_path / "r.jsonl", on_bad_row="skip")
    assert "none of the 2 rows" in message
    assert "row 1 (line 1), column 'text': empty" in message
    assert "on_bad_row" not in message


WHOLE_FILES = {
    "empty csv": ("r.csv", b"", "empty file"),
    "empty tsv": ("r.tsv", b"\n\n", "empty file"),
    "empty jsonl": ("r.jsonl", b"\n \n", "empty file"),
    "empty gzip": ("r.csv.gz", gzip.compress(b""), "empty file"),
    "csv header only": ("r.csv", b"text,label\n", "a header, but no rows"),
    "tsv header only": ("r.tsv", b"text\tlabel", "a header, but no rows"),
    "csv column": ("r.csv", b"Text,lable\na,b\n", "no column 'text', 'label'; it has 'Text', 'lable' (near: 'Text', '"),
    "tsv column": ("r.tsv", b"sentence\tlabel\na\tb\n", "no column 'text'; it has 'sentence', 'label'. Name the"),
    "jsonl column": ("r.jsonl", b'{"txt": "a", "label": 1}\n{"b": 2}\n', "it has 'txt', 'label', 'b' (near: 'txt')"),
    "column twice": ("r.csv", b"text,text,label\na,b,c\n", "column 'text' occurs more than once"),
    "header not utf-8": ("r.csv", b"text,labe\xe9\na,b\n", "the header is not UTF-8"),
    "tsv header not utf-8": ("r.tsv", b"text\tlabe\xe9\na\tb\n", "the header is not UTF-8"),
    "utf-16": ("r.csv", "text,label\na,b\n".encode("utf-16"), "UTF-16 text; set data.encoding=utf-16, or save"),
    "broken json array": ("r.json", b'[{"text": "a", "label": 1},\n{"text": ', "begins as a JSON array, but is none"),
    "json without names": ("r.json", b'[["a", 1], ["b", 2]]', "a list of lists, whose columns have no names"),
    "json without rows": ("r.json", b'{"a": {"b": 1},\n"c": 2}', "no column 'text', 'label'"),
    "empty json array": ("r.json", b"[]", "empty file"),
    "semicolons": ("r.csv", b'text;label\n"a, b";1\n', "set data.delimiter=';'"),
    "tabs in a csv": ("r.csv", b"text\tlabel\na\t1\n", "set data.delimiter=tab"),
    "commas in a tsv": ("r.tsv", b"text,label\na,1\n", "set data.format=csv and data.delimiter=','"),
    "csv without header": ("r.csv", b"good,1\nbad,0\n", "name all columns of the file in data.header"),
    "no gzip": ("r.csv.gz", b"text,label\na,b\n", "damaged gzip file"),
    "cut gzip": ("r.jsonl.gz", gzip.compress(b'{"text": "a", "label": 1}\n' * 99)[:-12], "damaged gzip file"),
    "no parquet": ("r.parquet", b"text,label\na,b\n", "damaged or of another format"),
    "empty parquet": ("r.parquet", b"", "damaged or of another format"),
    "no arrow": ("r.arrow", b"text,label\na,b\n", "damaged or of another format"),
    "no arrow file": ("r.arrow", b"ARROW1\0\0 and nothing that follows", "damaged or of another format"),
}  # fmt: skip


@pytest.mark.parametrize("case", WHOLE_FILES)
@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_files_that_cannot_be_used_whatever_is_skipped(case: str, on_bad_row: str, tmp_path: Path) -> None:
    name, content, reason = WHOLE_FILES[case]
    (tmp_path / name).write_bytes(content)
    message = failure(tmp_path / name, on_bad_row=on_bad_row)
    assert message.startswith(f"data.train: {tmp_path / name}: ")
    assert reason in message
    assert "\n" not in message


@pytest.mark.parametrize("kind", ["parquet", "arrow file", "arrow stream", "dataset"])
def test_missing_columns_of_columnar_formats(kind: str, tmp_path: Path) -> None:
    name, write = FORMATS[kind]
    write(tmp_path / name, [{"sentence": "a", "label": 0}])
    assert "no column 'text'; it has 'sentence', 'label'" in failure(tmp_path / name)


@pytest.mark.parametrize("kind", ["parquet", "arrow file", "arrow stream"])
def test_columnar_files_without_rows(kind: str, tmp_path: Path) -> None:
    path = tmp_path / FORMATS[kind][0]
    schema = pa.schema([("text", pa.string()), ("label", pa.int64())])
    if kind == "parquet":
        pq.write_table(schema.empty_table(), path)
    else:
        new = pa.ipc.new_file if kind == "arrow file" else pa.ipc.new_stream
        new(str(path), schema).close()
    assert failure(path) == f"data.train: {path}: no rows"


def test_a_cut_parquet_file_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "r.parquet", [{"text": "a", "label": 0}] * 50)
    whole = (tmp_path / "r.parquet").read_bytes()
    (tmp_path / "r.parquet").write_bytes(whole[: len(whole) // 2])
    assert "damaged or of another format" in failure(tmp_path / "r.parquet")


def test_a_cut_arrow_stream_is_named(tmp_path: Path) -> None:
    write_arrow_stream(tmp_path / "r.arrow", [{"text": "a", "label": i} for i in range(50)])
    whole = (tmp_path / "r.arrow").read_bytes()
    (tmp_path / "r.arrow").write_bytes(whole[: len(whole) // 2])
    assert "damaged or of another format" in failure(tmp_path / "r.arrow")


def test_missing_file_names_the_key_and_the_absolute_path(tmp_path: Path) -> None:
    assert failure(tmp_path / "no.csv") == f"data.train: no such file or folder: {tmp_path / 'no.csv'}"


def test_a_source_that_is_not_set_is_an_error_of_the_config() -> None:
    with pytest.raises(ConfigError, match=r"data\.eval is not set"):
        load_rows(DataConfig(), "eval", build_task(ClassificationConfig()))


def test_one_class_is_too_few_for_training_only(tmp_path: Path) -> None:
    write_csv(tmp_path / "r.csv", [{"text": "a", "label": "x"}, {"text": "b", "label": "x"}])
    message = failure(tmp_path / "r.csv")
    assert "all 2 rows have the label 'x' (column 'label'); training needs two classes" in message
    assert "all 2 rows have the label 'x'" in failure(tmp_path / "r.csv", task_labels=("x", "y"))
    assert column(load(tmp_path / "r.csv", "eval", Labels(("w", "x"))), "label") == [1, 1]


def test_a_column_of_ids_is_no_label(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "r.jsonl", [{"text": "a", "label": f"id-{i}"} for i in range(1500)])
    assert "1500 different values in 1500 rows; is it the label?" in failure(tmp_path / "r.jsonl")

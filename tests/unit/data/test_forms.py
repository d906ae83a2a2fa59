"""Files in the forms that other programs write: spreadsheets, pandas, SQuAD, and labels as floats or truth values."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from raybrew.config import ClassificationConfig, Columns, DataConfig, Experiment, QAConfig
from raybrew.config.base import identity_of
from raybrew.config.loading import build_experiment
from raybrew.data.readers import lines
from raybrew.data.readers.sources import open_source, resolve_source
from raybrew.data.rows import load_rows
from raybrew.errors import ConfigError
from raybrew.tasks.base import Labels, build_task
from unit.data.test_formats import column, failure, load, write_jsonl

ROWS = [{"text": 'a; "b", c', "label": "neg"}, {"text": "é\tx", "label": "pos"}, {"text": "last", "label": "neg"}]
KNOWN = Labels(("neg", "pos"))


def csv_of(delimiter: str, header: bool = True) -> str:
    cells = [["text", "label"]] * header + [list(row.values()) for row in ROWS]
    return "\r\n".join(delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells) + "\r\n"


FILES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "semicolons": ("r.csv", csv_of(";"), {"delimiter": ";"}),
    "semicolons by name of format": ("r.data", csv_of(";"), {"delimiter": ";", "format": "csv"}),
    "tabs with quotes": ("r.csv", csv_of("\t"), {"delimiter": "tab"}),
    "excel's own line": ("r.csv", "sep=;\r\n" + csv_of(";"), {}),
    "excel's own line after a mark": ("r.csv", "\ufeff" + '"sep=|"\r\n' + csv_of("|"), {}),
    "no header": ("r.csv", csv_of(",", header=False), {"header": ["text", "label"]}),
    "no header, semicolons": ("r.csv", csv_of(";", header=False), {"header": ["text", "label"], "delimiter": ";"}),
    "array in a line": ("r.jsonl", json.dumps(ROWS), {}),
    "array over lines": ("r.json", "\ufeff" + json.dumps(ROWS, indent=1), {}),
    "array in an object": ("r.json", json.dumps({"version": "1", "data": ROWS}, indent=1), {}),
    "pandas, default": (
        "r.json",
        json.dumps({name: {str(place): row[name] for place, row in enumerate(ROWS)} for name in ROWS[0]}),
        {},
    ),
    "pandas, index": ("r.json", json.dumps({str(place): row for place, row in enumerate(ROWS)}), {}),
    "pandas, split": (
        "r.json",
        json.dumps({"columns": ["text", "label"], "index": [0, 1, 2], "data": [list(row.values()) for row in ROWS]}),
        {},
    ),
    "pandas, table": ("r.json", json.dumps({"schema": {"fields": [{"name": "text"}]}, "data": ROWS}), {}),
}


@pytest.mark.parametrize("case", FILES)
def test_rows_of_other_programs(case: str, tmp_path: Path) -> None:
    name, content, options = FILES[case]
    (tmp_path / name).write_bytes(content.encode())
    found = load(tmp_path / name, **options)
    texts = [row["text"] for row in ROWS]
    assert column(found, "text") == texts
    assert [found.labels.names[label] for label in column(found, "label")] == [row["label"] for row in ROWS]


def test_a_line_number_counts_the_line_that_declares_the_delimiter(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("sep=;\ntext;label\na;x\nonly\n", encoding="utf-8")
    assert "row 2 (line 4): 1 fields" in failure(tmp_path / "r.csv")


def test_what_is_no_object_in_a_document_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps([ROWS[0], 3, ROWS[1]], indent=1), encoding="utf-8")
    assert "row 2: a JSON object expected, got a number" in failure(tmp_path / "r.json")
    assert len(load(tmp_path / "r.json", on_bad_row="skip")) == 2


def test_one_row_is_a_row_whatever_it_holds(tmp_path: Path) -> None:
    """A single line of question answering has objects and lists in it, as documents have."""
    row = {"question": "Who?", "context": "Anna met Bob.", "answers": {"text": ["Bob"], "answer_start": [9]}}
    write_jsonl(tmp_path / "r.jsonl", [row])
    found = load_rows(DataConfig(train=str(tmp_path / "r.jsonl")), "train", build_task(QAConfig()))
    assert column(found, "label") == [[9, 12]]


def test_squads_nested_articles(tmp_path: Path) -> None:
    answer = {"text": "Bob", "answer_start": 9}
    asked = [
        {"id": "1", "question": "Who?", "answers": [answer, answer], "is_impossible": False},
        {"id": "2", "question": "What?", "answers": [], "is_impossible": True, "plausible_answers": [answer]},
    ]
    articles = [{"title": "A", "paragraphs": [{"context": "Anna met Bob.", "qas": asked}, {"context": "x", "qas": []}]}]
    for indent in (None, 1):
        (tmp_path / "r.json").write_text(json.dumps({"version": "v2.0", "data": articles}, indent=indent))
        found = load_rows(DataConfig(train=str(tmp_path / "r.json")), "train", build_task(QAConfig(no_answer=True)))
        assert column(found, "question") == ["Who?", "What?"]
        assert column(found, "context") == ["Anna met Bob."] * 2
        assert column(found, "label") == [[9, 12, 9, 12], []]


@pytest.mark.parametrize(
    ("values", "names", "numbers"),
    [
        (["0.0", "1.0"], ("neg", "pos"), [0, 1]),
        ([0.0, 1.0], ("neg", "pos"), [0, 1]),
        (["True", "False"], ("neg", "pos"), [1, 0]),
        ([True, False], ("neg", "pos"), [1, 0]),
        ([True, False], ("True", "False"), [0, 1]),
        (["0", "1.0"], ("1", "0"), [1, 0]),
        ([1, 0], ("0.0", "1.0"), [1, 0]),
        ([-1, 1], ("-1", "1"), [0, 1]),
    ],
)
def test_labels_as_floats_and_truth_values(
    values: list[Any], names: tuple[str, ...], numbers: list[int], tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "r.jsonl", [{"text": "a", "label": value} for value in values])
    found = load(tmp_path / "r.jsonl", labels=Labels(names))
    assert column(found, "label") == numbers
    assert found.numbered == (names == ("neg", "pos"))


def test_truth_values_are_no_numbers_of_more_than_two_labels(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "r.jsonl", [{"text": "a", "label": True}, {"text": "b", "label": False}])
    assert "unknown label 'true'" in failure(tmp_path / "r.jsonl", labels=Labels(("a", "b", "c")))


@pytest.mark.parametrize("rows", [[{"text": "a"}, {"text": "b"}], [{"text": "a", "label": -1}, {"text": "b"}]])
def test_rows_without_labels_are_sent_to_data_unlabeled(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "r.jsonl", rows)
    assert "data.unlabeled" in failure(tmp_path / "r.jsonl", labels=KNOWN)
    for split in ("eval", "test"):
        message = failure(tmp_path / "r.jsonl", labels=KNOWN, split=split)
        assert "data.unlabeled" not in message
        assert f"data.{split} out" in message
    write_jsonl(tmp_path / "mixed.jsonl", [*rows, {"text": "c", "label": "pos"}])
    assert "data.unlabeled" not in failure(tmp_path / "mixed.jsonl", labels=KNOWN)


def experiment_of(folder: Path, **distill: float) -> Experiment:
    data = {"train": str(folder / "r.jsonl")}
    student = {"model": "a/b"}
    task = {"labels": ["neg", "pos"]}
    sections = {"data": data, "teacher": {"model": "a/b"}, "student": student, "distill": distill}
    return build_experiment({"name": "x", "task": task, **sections})


def test_one_class_is_enough_where_labels_teach_nothing(tmp_path: Path) -> None:
    from raybrew.pipeline.resolve import resolve  # brings torch along, which no other test here needs
    from raybrew.pipeline.rows import read_rows

    write_jsonl(tmp_path / "r.jsonl", [{"text": "a", "label": "pos"}, {"text": "b", "label": "pos"}])
    heard: list[str] = []
    alone = experiment_of(tmp_path, kd_weight=1.0, hard_label_weight=0.0)
    assert read_rows(resolve(alone).tasks[0], None, heard.append).num_labelled == 2
    for reads, with_unlabeled in ((experiment_of(tmp_path, hard_label_weight=0.5), True), (alone, False)):
        with pytest.raises(Exception, match="training needs two classes"):
            read_rows(resolve(reads).tasks[0], None, heard.append, with_unlabeled=with_unlabeled)


def test_a_source_may_have_another_name_in_messages(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "secret-name.jsonl", [{"text": ""}, {"text": 3}])
    data, task = DataConfig(unlabeled=str(tmp_path / "secret-name.jsonl")), build_task(QAConfig(), Columns())
    with pytest.raises(Exception, match="standard input") as caught:
        load_rows(data, "unlabeled", task, name="standard input")
    assert "secret-name" not in str(caught.value)
    (tmp_path / "secret-name.jsonl").write_bytes('{"text": "a"}'.encode("utf-16"))
    with pytest.raises(Exception, match="standard input: UTF-16") as caught:
        load_rows(data, "unlabeled", task, name="standard input")
    assert "secret-name" not in str(caught.value)


@pytest.mark.parametrize("value", ["", ";;", '"', "\n", "é"])
def test_a_delimiter_is_one_character(value: str) -> None:
    with pytest.raises(ValueError, match="one character"):
        DataConfig(delimiter=value)


def test_delimiter_and_header_are_for_their_formats() -> None:
    for options in ({"delimiter": ";", "format": "jsonl"}, {"header": ["a"], "format": "hub"}):
        key = next(iter(options))
        with pytest.raises(ConfigError, match=rf"data\.{key}: given with data\.format"):
            build_experiment({"name": "x", "data": {"train": "a/b", **options}, "student": {"model": "a/b"}})


def test_what_is_not_given_is_no_part_of_the_identity() -> None:
    assert not {"delimiter", "header"} & set(identity_of(DataConfig(train="a.csv")))
    assert {"delimiter", "header"} < set(identity_of(DataConfig(train="a.csv", delimiter=";", header=("a", "b"))))


ENCODED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "csv": ("r.csv", "text,label\r\ncafé – ß,neg\r\nb,pos\r\n", {}),
    "csv, declared": ("r.csv", "sep=;\r\ntext;label\r\ncafé – ß;neg\r\nb;pos\r\n", {}),
    "tsv": ("r.tsv", "text\tlabel\ncafé – ß\tneg\nb\tpos\n", {}),
    "json lines": ("r.jsonl", '{"text": "café – ß", "label": "neg"}\n{"text": "b", "label": "pos"}\n', {}),
    "json array": ("r.json", '[{"text": "café – ß",\n "label": "neg"}, {"text": "b", "label": "pos"}]', {}),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize("case", ENCODED)
def test_text_in_another_encoding(
    case: str, encoding: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, content, options = ENCODED[case]
    path = tmp_path / (f"{name}.gz" if packed else name)
    data = content.encode(encoding)
    path.write_bytes(gzip.compress(data) if packed else data)
    if encoding == "cp1252":
        assert "data.encoding" in failure(path, **options)
    for size in (lines._BUFFER_BYTES, 17):  # also where a character lies across two buffers
        monkeypatch.setattr(lines, "_BUFFER_BYTES", size)
        found = load(path, encoding=encoding, **options)
        assert column(found, "text") == ["café – ß", "b"]


def test_a_row_that_is_not_utf8_is_one_bad_row_also_the_first(tmp_path: Path) -> None:
    rows = [b'{"text": "caf\xe9", "label": "neg"}', b'{"text": "a", "label": "neg"}', b'{"text": "b", "label": "pos"}']
    (tmp_path / "r.jsonl").write_bytes(b"\n".join(rows))
    assert column(load(tmp_path / "r.jsonl", on_bad_row="skip"), "text") == ["a", "b"]


def test_conll_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "r.conll").write_bytes("Łódź B-LOC\nist O\n".encode("iso-8859-2"))
    (source,) = open_source(resolve_source(str(tmp_path / "r.conll"), "auto", "train"), encoding="iso-8859-2")
    ((_, _, row),) = source.rows(("tokens", "tags"))
    assert row == {"tokens": ["Łódź", "ist"], "tags": ["B-LOC", "O"]}


def test_bytes_that_are_not_of_the_encoding_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_bytes(b"text,label\na\x81,neg\n")
    message = failure(tmp_path / "r.csv", encoding="cp1252")
    assert str(tmp_path / "r.csv") in message
    assert "not cp1252" in message
    assert "data.encoding" in message


@pytest.mark.parametrize("given", ["windows", "base64", "undefined", ""])
def test_an_encoding_is_one_that_python_knows(given: str) -> None:
    with pytest.raises(ValueError, match="such as cp1252"):
        DataConfig(encoding=given)


def test_an_encoding_is_for_text_and_part_of_a_run_where_it_is_set(tmp_path: Path) -> None:
    values = {"name": "x", "data": {"train": "a/b", "encoding": "cp1252", "format": "parquet"}}
    with pytest.raises(ConfigError, match=r"data\.encoding: given with data\.format=parquet"):
        build_experiment({**values, "student": {"model": "a/b"}})
    assert "encoding" not in identity_of(DataConfig(train="a.csv", encoding="UTF8"))
    assert identity_of(DataConfig(train="a.csv", encoding="windows-1252"))["encoding"] == "cp1252"


def test_rows_that_were_kept_are_of_their_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raybrew.data.rows.cache._WORTH_BYTES", 0)
    (tmp_path / "r.csv").write_bytes(b"text,label\n\xe9,neg\nb,pos\n")
    task = build_task(ClassificationConfig(), Columns())
    for encoding, letter in (("cp1252", "é"), ("cp1251", "й"), ("cp1252", "é")):
        data = DataConfig(train=str(tmp_path / "r.csv"), encoding=encoding)
        assert column(load_rows(data, "train", task, cache=tmp_path / "cache"), "text") == [letter, "b"]

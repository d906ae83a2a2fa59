"""Rows of tagging, question answering, multi-label and regression: forms that are read, and bad rows by their rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest

from raybrew.config import TASK_CONFIGS, Columns, DataConfig
from raybrew.data.rows import RowSet, load_rows
from raybrew.errors import DataError
from raybrew.tasks.base import Labels, build_task
from raybrew.tasks.schemes import Span, bio_of_iob1, broken_rule, spans_of


def load(path: Path, task: dict[str, Any], split: str = "train", labels: Labels | None = None, **data: Any) -> RowSet:
    config = TASK_CONFIGS[task["kind"]].model_validate(task)
    columns = Columns(**data.pop("columns", {}))
    source = DataConfig(**{split: str(path), "columns": columns, **data})
    return load_rows(source, split, build_task(config, columns), labels)  # type: ignore[arg-type]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


TAGGED = {"tokens": ["Ann", "saw", "New", "York"], "tags": ["B-PER", "O", "B-LOC", "I-LOC"]}


def test_tags_of_jsonl_get_all_labels_of_their_types(tmp_path: Path) -> None:
    rows = load(write(tmp_path / "r.jsonl", TAGGED), {"kind": "tagging"})
    assert rows.labels.names == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert rows.table.column("label").to_pylist() == [[3, 0, 1, 2]]
    assert rows.table.column("tokens").to_pylist() == [TAGGED["tokens"]]


@pytest.mark.parametrize("form", ["parquet", "dataset"])
def test_numbered_tags_are_named_by_their_source(form: str, tmp_path: Path) -> None:
    names = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    features = datasets.Features(
        {"tokens": datasets.List(datasets.Value("string")), "tags": datasets.List(datasets.ClassLabel(names=names))}
    )
    dataset = datasets.Dataset.from_dict({"tokens": [TAGGED["tokens"]], "tags": [[1, 0, 3, 4]]}, features=features)
    path = tmp_path / ("r.parquet" if form == "parquet" else "folder")
    dataset.to_parquet(path) if form == "parquet" else dataset.save_to_disk(path)
    rows = load(path, {"kind": "tagging"})
    assert rows.labels.names == tuple(names)
    assert rows.table.column("label").to_pylist() == [[1, 0, 3, 4]]


CONLL = """-DOCSTART- -X- O O

EU NNP I-NP I-ORG
rejects VBZ I-VP O

Peter NNP I-NP I-PER
Blackburn NNP I-NP I-PER
"""


def test_conll_files_by_column_and_scheme(tmp_path: Path) -> None:
    path = tmp_path / "eng.conll"
    path.write_text(CONLL)
    rows = load(path, {"kind": "tagging", "scheme": "iob1"})
    names = rows.labels.names
    tags = [[names[number] for number in row] for row in rows.table.column("label").to_pylist()]
    assert tags == [["B-ORG", "O"], ["B-PER", "I-PER"]]
    assert rows.table.column("tokens").to_pylist() == [["EU", "rejects"], ["Peter", "Blackburn"]]
    parts = load(path, {"kind": "tagging", "scheme": "none", "metric": "accuracy"}, columns={"tags": 1})
    assert parts.labels.names == ("NNP", "VBZ")
    only_words = load(path, {"kind": "tagging"}, split="unlabeled", labels=Labels(("O", "B-X")))
    assert only_words.table.column("label").to_pylist() == [[-1, -1], [-1, -1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a O\nb\n", "row 1 (line 2): 1 columns, the sentence began with 2"),
        ("a O\n\nb I-PER\n", "row 2 (line 3), column 'tags': BIO: word 1 (I-PER) must follow B-PER or I-PER"),
        ("a\nb\n", "row 1 (line 1): one column only; a word and its tag are needed"),
        ("", "empty file"),
    ],
)
def test_bad_conll_files_name_row_and_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "r.conll"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        load(path, {"kind": "tagging"})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("tags", "scheme", "rule"),
    [
        ("O I-PER", "bio", "BIO: word 2 (I-PER) must follow B-PER or I-PER, not O"),
        ("B-LOC I-PER", "bio", "BIO: word 2 (I-PER) must follow B-PER or I-PER, not B-LOC"),
        ("B-PER E-PER", "bio", "tag 'E-PER' of word 2 is none of BIO (B-TYPE, I-TYPE, O)"),
        ("PER", "bio", "tag 'PER' of word 1 is none of BIO"),
        ("B-", "bio", "tag 'B-' of word 1 is none of BIO"),
        ("B-PER O", "bioes", "BIOES: B-PER must be followed by I-PER or E-PER, not by word 2 (O)"),
        ("B-PER", "bioes", "BIOES: B-PER must be followed by I-PER or E-PER, not by the end"),
        ("I-PER E-PER", "bioes", "BIOES: word 1 (I-PER) must follow B-PER or I-PER, not the start"),
        ("B-PER E-LOC", "bioes", "BIOES: B-PER must be followed by I-PER or E-PER, not by word 2 (E-LOC)"),
        ("S-PER E-PER", "bioes", "BIOES: word 2 (E-PER) must follow B-PER or I-PER, not S-PER"),
    ],
)
def test_broken_schemes(tags: str, scheme: str, rule: str) -> None:
    assert (broken_rule(tags.split(), scheme) or "").startswith(rule)


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        ("O B-PER I-PER B-PER O B-LOC", "bio"),
        ("S-PER B-LOC E-LOC B-LOC I-LOC E-LOC O", "bioes"),
        ("I-PER I-PER B-PER I-LOC O", "iob1"),
    ],
)
def test_whole_schemes(tags: str, scheme: str) -> None:
    assert broken_rule(tags.split(), scheme) is None


def test_iob1_becomes_bio_with_the_same_spans() -> None:
    tags = ["I-PER", "I-PER", "B-PER", "I-LOC", "I-LOC", "O", "I-LOC", "B-LOC"]
    bio = bio_of_iob1(tags)
    assert bio == ("B-PER", "I-PER", "B-PER", "B-LOC", "I-LOC", "O", "B-LOC", "B-LOC")
    assert broken_rule(bio, "bio") is None
    assert spans_of(bio) == [Span("PER", 0, 2), Span("PER", 2, 3), Span("LOC", 3, 5), Span("LOC", 6, 7),
                             Span("LOC", 7, 8)]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tags": ["B-PER", "O"]}, "column 'tags': 2 tags for 4 words; each word needs one"),
        ({"tags": ["I-PER", "O", "O", "O"]}, "BIO: word 1 (I-PER) must follow B-PER or I-PER, not the start"),
        ({"tags": None}, "column 'tags': no label"),
        ({"tags": [1, 0, 0, 0]}, "tags are numbers, and nothing names them"),
        ({"tags": "B-PER O O O"}, "a list of tags expected, got str"),
        ({"tokens": "Ann saw New York"}, "column 'tokens': a list of words expected, got str"),
        ({"tokens": ["Ann", "", "New", "York"]}, "word 2 is empty"),
        ({"tokens": [], "tags": []}, "column 'tokens': empty"),
        ({"tokens": ["Ann", 3, "New", "York"]}, "word 2 is no text but int"),
    ],
)
def test_bad_tagging_rows(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", TAGGED, {**TAGGED, **change})
    with pytest.raises(DataError) as caught:
        load(path, {"kind": "tagging"})
    assert f"{path}, row 2 (line 2), column" in str(caught.value)
    assert message in str(caught.value)
    rows = load(path, {"kind": "tagging"}, on_bad_row="skip")
    assert (len(rows), len(rows.skipped)) == (1, 1)


def test_tags_outside_the_set_name_it(tmp_path: Path) -> None:
    other = {**TAGGED, "tags": ["B-ORG", "O", "B-LOC", "I-LOC"]}
    path = write(tmp_path / "r.jsonl", TAGGED, other)
    task = {"kind": "tagging", "labels": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")}
    with pytest.raises(DataError) as caught:
        load(path, task)
    shown = "column 'tags': unknown label 'B-ORG'; known labels: O, B-PER, I-PER, B-LOC, I-LOC"
    assert f"{path}, row 2 (line 2), {shown}" in str(caught.value)
    rows = load(path, task, on_bad_row="skip")
    assert (len(rows), len(rows.skipped)) == (1, 1)


ASKED = {
    "question": "where?",
    "context": "Ann lives in Rome. Bob saw Rome in May.",
    "answers": {"text": ["Rome"], "answer_start": [13]},
}


def test_answers_in_both_forms_and_those_to_score_with(tmp_path: Path) -> None:
    listed = {**ASKED, "answers": [{"text": "Rome", "answer_start": 13}], "official": ["Rome", "in Rome"]}
    path = write(tmp_path / "r.jsonl", ASKED, listed)
    rows = load(path, {"kind": "qa"}, columns={"scored_answers": "official"})
    assert rows.table.column("label").to_pylist() == [[13, 17], [13, 17]]
    assert rows.table.column("scored").to_pylist() == [["Rome"], ["Rome", "in Rome"]]
    table = pa.table({name: [row[name] for row in (ASKED, ASKED)] for name in ASKED})
    pa.parquet.write_table(table, tmp_path / "r.parquet")  # has no column `official`
    rows = load(tmp_path / "r.parquet", {"kind": "qa"}, columns={"scored_answers": "official"})
    assert rows.table.column("scored").to_pylist() == [["Rome"], ["Rome"]]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"text": ["Rome"], "answer_start": [12]}, "'Rome') does not stand at 12, where the context has ' Rom'; it "
         "stands at 13"),
        ({"text": ["Rome"], "answer_start": [25]}, "stands at 27"),
        ({"text": ["Rome"], "answer_start": [-26]}, "answer 1 ('Rome') does not stand at -26"),
        ({"text": ["rome"], "answer_start": [13]}, "is not in the context; 'Rome' stands at 13"),
        ({"text": ["Oslo"], "answer_start": [13]}, "answer 1 ('Oslo') is not in the context"),
        ({"text": ["Rome", "May"], "answer_start": [13, 34]}, "answer 2 ('May') does not stand at 34"),
        ({"text": [], "answer_start": []}, "holds no answer; if questions may have none, set task.no_answer=true"),
        ({"text": ["Rome"], "answer_start": []}, "of equal lengths expected"),
        ({"text": ["Rome"], "answer_start": ["13"]}, "answer_start of answer 1 is no whole number but '13'"),
        ({"text": [" "], "answer_start": [3]}, "text of answer 1 is empty"),
        ("Rome", "expected, got str"),
        (None, "no label"),
    ],
)  # fmt: skip
def test_bad_answers_name_row_and_nearest_fit(answers: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", ASKED, {**ASKED, "answers": answers})
    with pytest.raises(DataError) as caught:
        load(path, {"kind": "qa"})
    assert f"{path}, row 2 (line 2), column 'answers': " in str(caught.value)
    assert message in str(caught.value)
    rows = load(path, {"kind": "qa"}, on_bad_row="skip")
    assert (len(rows), len(rows.skipped)) == (1, 1)


def test_questions_without_an_answer_where_the_task_allows_them(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", ASKED, {**ASKED, "answers": {"text": [], "answer_start": []}})
    rows = load(path, {"kind": "qa", "no_answer": True})
    assert rows.table.column("label").to_pylist() == [[13, 17], []]
    assert load(path, {"kind": "qa"}, split="unlabeled").table.column("label").to_pylist() == [[-1], [-1]]


def test_multilabel_rows(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.jsonl",
        {"text": "a", "label": ["y", "x"]},
        {"text": "b", "label": "x; z ;"},
        {"text": "c", "label": []},
    )
    rows = load(path, {"kind": "multilabel", "separator": ";"})
    assert rows.labels.names == ("x", "y", "z")
    assert rows.table.column("label").to_pylist() == [[1, 0], [0, 2], []]
    assert load(path, {"kind": "multilabel"}, split="unlabeled").table.column("label").to_pylist() == [[-2]] * 3


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("multilabel", None, "no label"),
        ("multilabel", 3, "a list of labels, or text with ',' between them, expected, got int"),
        ("multilabel", ["x", ""], "one of the labels is empty"),
        ("multilabel", ["w"], "unknown label 'w'; known labels: x, y"),
        ("regression", None, "no label"),
        ("regression", "", "no label"),
        ("regression", "high", "a number expected, got 'high'"),
        ("regression", True, "a number expected, got bool"),
        ("regression", "inf", "a finite number"),
        ("regression", [1], "a number expected, got list"),
    ],
)
def test_bad_labels(kind: str, value: Any, message: str, tmp_path: Path) -> None:
    good = {"multilabel": ["x"], "regression": 1.5}[kind]
    path = write(tmp_path / "r.jsonl", {"text": "a", "label": good}, {"text": "b", "label": value})
    labels = Labels(("x", "y")) if kind == "multilabel" else None
    with pytest.raises(DataError) as caught:
        load(path, {"kind": kind}, split="eval", labels=labels)
    assert f"{path}, row 2 (line 2), column 'label': {message}" in str(caught.value)


def test_regression_rows(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("text,label\na,1.5\nb,-2\nc,3e2\n")
    rows = load(path, {"kind": "regression"})
    assert rows.table.column("label").to_pylist() == [1.5, -2.0, 300.0]
    assert rows.labels.names == ("score",)
    path.write_text("text,label\na,1\nb,1.0\n")
    with pytest.raises(DataError, match="all 2 rows have the number 1"):
        load(path, {"kind": "regression"})

"""Contradictory, repeated, shared and skipped rows, and labels that look alike, against plain counts of the rows."""

from __future__ import annotations

import collections
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybrew.config.loading import build_experiment
from raybrew.pipeline.resolve import resolve
from raybrew.pipeline.rows import read_rows
from raybrew.records.cautions import caution_of
from unit.data.test_formats import write_jsonl

Row = dict[str, Any]


def cautions_of(
    folder: Path, train: list[Row], evaluation: list[Row] | None = None, task: dict[str, Any] | None = None, **data: Any
) -> dict[str, list[Any]]:
    """Kind -> the cautions that reading these rows gives; each is told in a line and survives JSON."""
    write_jsonl(folder / "train.jsonl", train)
    given: dict[str, Any] = {"train": str(folder / "train.jsonl"), **data}
    if evaluation is not None:
        write_jsonl(folder / "eval.jsonl", evaluation)
        given["eval"] = str(folder / "eval.jsonl")
    values = {"name": "x", "data": given, "task": task or {"kind": "classification"}, "teacher": {"model": "none"}}
    lines: list[str] = []
    rows = read_rows(resolve(build_experiment(values, check_files=False)).tasks[0], None, lines.append)
    found: dict[str, list[Any]] = collections.defaultdict(list)
    for caution in rows.cautions:
        found[caution.kind].append(caution)
        assert any(caution.text() in line for line in lines)
        again = caution_of(json.loads(json.dumps(caution.plain())))
        assert again is not None
        assert again.text() == caution.text()
    assert len(set(lines)) == len(lines)
    return found


def rows_of(*pairs: tuple[str, Any]) -> list[Row]:
    return [{"text": text, "label": label} for text, label in pairs]


CLEAN = [(f"text {number}", "yes" if number % 2 else "no") for number in range(40)]


def test_clean_rows_have_no_cautions(tmp_path: Path) -> None:
    assert not cautions_of(tmp_path, rows_of(*CLEAN[:20]), rows_of(*CLEAN[20:]))


def test_contradictory_and_repeated_rows(tmp_path: Path) -> None:
    pairs = [("same", "no"), ("same", "no"), ("both", "no"), ("x", "yes"), ("both", "yes"), ("both", "yes")]
    found = cautions_of(tmp_path, rows_of(*pairs, ("two", "yes"), ("two", "no")))
    (contradictory,) = found["contradictory rows"]
    assert (contradictory.examples, contradictory.rows, contradictory.lost, contradictory.of) == (2, 5, 2, 8)
    assert contradictory.places == [
        ["train.jsonl row 3", "train.jsonl row 5"],
        ["train.jsonl row 7", "train.jsonl row 8"],
    ]
    assert contradictory.serious
    (repeated,) = found["repeated rows"]
    assert (repeated.rows, repeated.of, repeated.serious) == (4, 8, True)


def test_few_doubtful_rows_are_told_and_left_out_of_reports(tmp_path: Path) -> None:
    pairs = [(f"t{number}", "yes" if number % 2 else "no") for number in range(1000)]
    found = cautions_of(
        tmp_path,
        rows_of(*pairs, ("t1", "no")),
        rows_of(*[(f"e{text}", label) for text, label in pairs], ("t5", "yes")),
    )
    assert {kind: [each.serious for each in each_kind] for kind, each_kind in found.items()} == {
        "contradictory rows": [False], "repeated rows": [False], "shared rows": [False]
    }  # fmt: skip


def test_rows_shared_with_training_and_unlabelled_rows(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "more.jsonl", [{"text": "text 30"}, {"text": "text 2"}])
    evaluation = rows_of(("text 1", "yes"), ("text 2", "yes"), ("new", "no"), ("text 30", "no"), ("text 1", "yes"))
    found = cautions_of(tmp_path, rows_of(*CLEAN[:20]), evaluation, unlabeled=str(tmp_path / "more.jsonl"))
    training, unlabelled = found["shared rows"]
    assert (training.split, training.other, training.rows, training.relabelled, training.of) == (
        "data.eval", "data.train", 3, 1, 5
    )  # fmt: skip
    assert training.places == [["eval.jsonl row 1", "train.jsonl row 2"], ["eval.jsonl row 2", "train.jsonl row 3"]]
    assert (unlabelled.other, unlabelled.rows, unlabelled.relabelled) == ("data.unlabeled", 2, 0)


@pytest.mark.parametrize(
    ("labels", "groups"),
    [
        ([1, "1.0", 0, 1.0, "1.0"], [[("1", 2), ("1.0", 2)]]),
        ([True, "True", False, "true", "TRUE"], [[("TRUE", 1), ("True", 1), ("true", 2)]]),
        (["yes", "Yes", "no", "YES ", " no"], [[("YES", 1), ("Yes", 1), ("yes", 1)]]),
        (["not_same", "not same", "same", "not-same"], [[("not same", 1), ("not-same", 1), ("not_same", 1)]]),
        (["1", "10", "-1", "a", "b", "1e"], []),
        ([" yes ", "yes", "no"], []),
    ],
)
def test_labels_that_differ_in_form(labels: list[Any], groups: list[Any], tmp_path: Path) -> None:
    found = cautions_of(tmp_path, rows_of(*[(f"t{number}", label) for number, label in enumerate(labels)]))
    assert [each.groups for each in found["alike labels"]] == ([groups] if groups else [])


def test_label_forms_that_the_configuration_lists_are_meant(tmp_path: Path) -> None:
    task = {"kind": "classification", "labels": ["a", "A"]}
    assert not cautions_of(tmp_path, rows_of(("x", "a"), ("y", "A")), task=task)


def test_skipped_rows(tmp_path: Path) -> None:
    bad = [{"text": f"bad {number}", "label": None} for number in range(79)]
    kept = rows_of(*CLEAN[:21])
    found = cautions_of(tmp_path, [*bad, *kept], on_bad_row="skip")
    (skipped,) = found["skipped rows"]
    assert (skipped.rows, skipped.of, skipped.column, skipped.serious) == (79, 100, "label", True)
    # A subset does not change what was read.
    (skipped,) = cautions_of(tmp_path, [*bad[:3], *CLEAN_ROWS], on_bad_row="skip", train_rows=10)["skipped rows"]
    assert (skipped.rows, skipped.of, skipped.serious) == (3, 43, False)


CLEAN_ROWS = rows_of(*CLEAN)


def test_a_majority_label_matters_where_accuracy_is_the_metric(tmp_path: Path) -> None:
    evaluation = rows_of(*[(f"e{number}", "yes" if number < 2 else "no") for number in range(20)])
    (majority,) = cautions_of(tmp_path, CLEAN_ROWS, evaluation)["majority label"]
    assert (majority.label, majority.rows, majority.of) == ("no", 18, 20)
    task = {"kind": "classification", "metric": "macro_f1"}
    assert not cautions_of(tmp_path, CLEAN_ROWS, evaluation, task=task)


def test_numbers_read_as_positions(tmp_path: Path) -> None:
    """Training rows have names, evaluation rows numbers: 0 is then the first name."""
    evaluation = rows_of(("a", 0), ("b", "1"), ("c", "no"))
    (numbered,) = cautions_of(tmp_path, CLEAN_ROWS, evaluation)["numbered labels"]
    assert (numbered.split, tuple(numbered.names)) == ("data.eval", ("no", "yes"))
    # With task.labels the order is what the user wrote.
    task = {"kind": "classification", "labels": ["no", "yes"]}
    assert not cautions_of(tmp_path, CLEAN_ROWS, evaluation, task=task)
    numbers = rows_of(*[(text, int(label == "yes")) for text, label in CLEAN])
    assert not cautions_of(tmp_path, numbers, rows_of(("a", "0"), ("b", 1)))


def test_numbers_of_tags_read_as_positions(tmp_path: Path) -> None:
    train = [{"tokens": ["a", str(n)], "tags": ["O", "B-X"]} for n in range(4)]
    evaluation = [{"tokens": ["c", "d"], "tags": [0, 1]}]
    found = cautions_of(tmp_path, train, evaluation, {"kind": "tagging"})
    assert [tuple(each.names) for each in found["numbered labels"]] == [("O", "B-X", "I-X")]


def test_other_tasks(tmp_path: Path) -> None:
    words = [{"tokens": ["a", "b"], "tags": tags} for tags in (["O", "O"], ["O", "B-X"], ["O", "O"])]
    (found,) = cautions_of(tmp_path, words, task={"kind": "tagging"})["contradictory rows"]
    assert (found.examples, found.rows, found.lost) == (1, 3, 1)
    # The order of the labels of a text means nothing.
    sets = [{"text": "t", "label": ["a", "b"]}, {"text": "t", "label": ["b", "a"]}, {"text": "u", "label": ["a"]}]
    found = cautions_of(tmp_path, sets, task={"kind": "multilabel"})
    assert set(found) == {"repeated rows"}
    numbers = [{"text": "t", "label": 1.5}, {"text": "t", "label": 1.5}, {"text": "t", "label": 2}]
    (found,) = cautions_of(tmp_path, numbers, task={"kind": "regression"})["contradictory rows"]
    assert (found.examples, found.rows, found.lost) == (1, 3, 0)
    texts = [{"text": "t"}, {"text": "t"}, {"text": "u"}]
    assert set(cautions_of(tmp_path, texts, [{"text": "u"}], {"kind": "masked_lm"})) == {"repeated rows", "shared rows"}
    context = "Ann lives in Rome, Bob in Oslo."
    answers = [{"text": ["Rome"], "answer_start": [13]}, {"text": ["Oslo"], "answer_start": [26]}]
    asked = [{"id": "1", "question": "Where?", "context": context, "answers": each} for each in answers]
    (found,) = cautions_of(tmp_path, asked, task={"kind": "qa"})["contradictory rows"]
    assert found.places == [["train.jsonl row 1", "train.jsonl row 2"]]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_counts_are_those_of_plain_dictionaries(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    pairs = st.lists(st.tuples(st.integers(0, 8).map(str), st.sampled_from("abc")), min_size=2, max_size=30)
    train = [*data.draw(pairs), ("first", "a"), ("second", "b"), ("third", "c")]
    evaluation = data.draw(pairs)
    found = cautions_of(tmp_path_factory.mktemp("rows"), rows_of(*train), rows_of(*evaluation))
    for split, rows in (("data.train", train), ("data.eval", evaluation)):
        labels: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for text, label in rows:
            labels[text][label] += 1
        several = [counts for counts in labels.values() if len(counts) > 1]
        contradictory = [each for each in found["contradictory rows"] if each.split == split]
        assert [(each.examples, each.rows, each.lost) for each in contradictory] == (
            [(
                len(several),
                sum(sum(counts.values()) for counts in several),
                sum(sum(counts.values()) - max(counts.values()) for counts in several),
            )] if several else []
        )  # fmt: skip
        repeated = [each.rows for each in found["repeated rows"] if each.split == split]
        assert repeated == ([len(rows) - len(labels)] if len(rows) > len(labels) else [])
    known: dict[str, set[str]] = collections.defaultdict(set)
    for text, label in train:
        known[text].add(label)
    shared = [(text, label) for text, label in evaluation if text in known]
    assert [(each.rows, each.relabelled) for each in found["shared rows"]] == (
        [(len(shared), sum(label not in known[text] for text, label in shared))] if shared else []
    )


@pytest.mark.parametrize(
    ("name", "shared", "relabelled"), [("trec", 10, 0), ("tnews", 1099, 161), ("chnsenticorp", 338, 8), ("sst2", 0, 0)]
)
def test_known_overlaps_of_real_data(shared_data: Path, name: str, shared: int, relabelled: int) -> None:
    files = {
        split: str(shared_data / name / f"{part}.jsonl.gz") for split, part in (("train", "train"), ("eval", "dev"))
    }
    values = {"name": "x", "data": files, "teacher": {"model": "none"}}
    rows = read_rows(resolve(build_experiment(values, check_files=False)).tasks[0], None, lambda line: None)
    found = [(each.rows, each.relabelled) for each in rows.cautions if each.kind == "shared rows"]  # type: ignore[attr-defined]
    assert found == ([(shared, relabelled)] if shared else [])
    with gzip.open(files["train"], "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    repeated = [each.rows for each in rows.cautions if each.kind == "repeated rows" and each.split == "data.train"]  # type: ignore[attr-defined]
    assert repeated == [len(texts) - len(set(texts))]

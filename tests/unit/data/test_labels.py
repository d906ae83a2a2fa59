"""Label names and their order of precedence; splits and slices of saved datasets; the hub out of reach."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from raybrew.config import ClassificationConfig, DataConfig
from raybrew.data.rows import load_rows
from raybrew.tasks.base import Labels, build_task
from unit.data.test_formats import column, failure, load, write_csv, write_jsonl


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["pos", "neg"], ("neg", "pos")),
        ([10, 9, 2], ("2", "9", "10")),
        (["10", "9", "2"], ("2", "9", "10")),
        (["1.5", "-2", "1e1"], ("-2", "1.5", "1e1")),
        (["10", "9", "b"], ("10", "9", "b")),
        ([True, False], ("false", "true")),
        ([1, "1", 0], ("0", "1")),
        (["nan", "2", "10"], ("10", "2", "nan")),
        (["B", "a", "A"], ("A", "B", "a")),
    ],
)
def test_labels_of_the_training_rows_are_sorted(values: list[Any], names: tuple[str, ...], tmp_path: Path) -> None:
    write_jsonl(tmp_path / "r.jsonl", [{"text": "x", "label": value} for value in values])
    rows = load(tmp_path / "r.jsonl")
    assert rows.labels.names == names
    expected = [names.index(str(value).lower() if isinstance(value, bool) else str(value)) for value in values]
    assert column(rows, "label") == expected


def write_classes(path: Path, names: Sequence[str], labels: Sequence[int], kind: str = "dataset") -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(names))})
    texts = [f"text {index}" for index in range(len(labels))]
    dataset = datasets.Dataset.from_dict({"text": texts, "label": list(labels)}, features=features)
    if kind == "dataset":
        dataset.save_to_disk(str(path))
    elif kind == "parquet":
        dataset.to_parquet(str(path))
    else:
        with pa.ipc.new_stream(str(path), dataset.data.table.schema) as writer:
            writer.write_table(dataset.data.table)


@pytest.mark.parametrize(("kind", "name"), [("dataset", "r"), ("parquet", "r.parquet"), ("arrow", "r.arrow")])
def test_order_of_precedence_of_label_names(kind: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write_classes(path, ("good", "bad", "unused"), [0, 1, 0], kind)
    # The source's own names, in its order, also of classes without rows.
    rows = load(path)
    assert rows.labels.names == ("good", "bad", "unused")
    assert column(rows, "label") == [0, 1, 0]
    # A teacher's names come before them, and are matched by name, not by number.
    teacher = Labels(("bad", "good"))
    assert column(load(path, labels=teacher), "label") == [1, 0, 1]
    # The configuration's come before the teacher's.
    rows = load(path, labels=teacher, task_labels=("unused", "good", "bad"))
    assert rows.labels.names == ("unused", "good", "bad")
    assert column(rows, "label") == [1, 2, 1]


def test_hidden_labels_of_a_class_column_are_no_labels(tmp_path: Path) -> None:
    write_classes(tmp_path / "r", ("no", "yes"), [0, -1, 1])
    rows = load(tmp_path / "r", on_bad_row="skip")
    assert [(bad.row, bad.column, bad.reason) for bad in rows.skipped] == [(2, "label", "no label")]


def test_an_unknown_label_is_a_bad_row(tmp_path: Path) -> None:
    write_csv(tmp_path / "r.csv", [{"text": "a", "label": "good"}, {"text": "b", "label": "god"}])
    message = failure(tmp_path / "r.csv", labels=Labels(("bad", "good")))
    assert "row 2 (line 3), column 'label': unknown label 'god'; known labels: bad, good" in message


def test_evaluation_rows_take_the_names_of_the_training_rows(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", [{"text": t, "label": t} for t in ("a", "b", "c")])
    write_csv(tmp_path / "dev.csv", [{"text": "z", "label": "c"}, {"text": "y", "label": "b"}])
    data = DataConfig(train=str(tmp_path / "train.csv"), eval=str(tmp_path / "dev.csv"))
    rows = load_rows(data, "eval", build_task(ClassificationConfig()))
    assert rows.labels.names == ("a", "b", "c")
    assert column(rows, "label") == [2, 1]


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    import datasets

    def part(*labels: str) -> datasets.Dataset:
        return datasets.Dataset.from_dict({"text": [f"{i}" for i in range(len(labels))], "label": list(labels)})

    folder = tmp_path / "splits"
    parts = {"train": part(*"abababab"), "validation": part("b", "a"), "extra": part("a", "b", "b")}
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    return folder


@pytest.mark.parametrize(
    ("split", "suffix", "texts"),
    [
        ("train", "", [*"01234567"]),
        ("eval", "", [*"01"]),
        ("unlabeled", "", [*"01234567"]),
        ("eval", ":extra", [*"012"]),
        ("train", ":train[2:5]", [*"234"]),
        ("train", ":train[:25%]", [*"01"]),
        ("train", ":train[-2:]+extra[:2]", [*"6701"]),
    ],
)
def test_splits_and_slices_of_a_saved_dataset(split: str, suffix: str, texts: list[str], splits: Path) -> None:
    assert column(load(f"{splits}{suffix}", split), "text") == texts


def test_unknown_splits_name_the_known_ones(splits: Path) -> None:
    message = failure(f"{splits}:test")
    assert "cannot take split 'test'" in message
    assert "it has train, validation, extra" in message


def test_slices_of_a_dataset_without_splits(splits: Path) -> None:
    assert column(load(f"{splits / 'train'}:train[1:3]"), "text") == ["1", "2"]
    assert len(load(splits / "train")) == 8


def test_a_reordered_dataset_is_read_in_its_own_order(tmp_path: Path) -> None:
    import datasets

    dataset = datasets.Dataset.from_dict({"text": [*"abcd"], "label": [0, 1, 0, 1]}).select([3, 0, 2])
    dataset.save_to_disk(str(tmp_path / "r"))
    assert column(load(tmp_path / "r"), "text") == ["d", "a", "c"]


def test_a_damaged_saved_dataset_is_named(splits: Path) -> None:
    (splits / "train" / "state.json").write_text("{", encoding="utf-8")
    assert f"{splits}: no readable save_to_disk folder" in failure(splits)


def test_an_unreachable_hub_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    if not datasets.config.HF_HUB_OFFLINE:
        pytest.skip("needs HF_HUB_OFFLINE=1, which tests/conftest.py sets unless the network is asked for")
    monkeypatch.chdir(tmp_path)
    message = failure("raybrew-tests/no-such-dataset/subset", split="eval", labels=Labels(("a", "b")))
    assert "\n" not in message
    name = "raybrew-tests/no-such-dataset, subset subset, split validation"
    assert message.startswith(f"data.eval: cannot load {name} from the Hugging Face hub: ")
    assert str(tmp_path / "raybrew-tests/no-such-dataset/subset") in message

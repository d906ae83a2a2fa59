"""Encoded rows: what is stored, when it is stored anew, and that only whole folders are ever read."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, BertTokenizerFast, PreTrainedTokenizerFast

from raybrew.config import ClassificationConfig, Columns
from raybrew.data import encoded
from raybrew.data.encoded import EncodedRows, encode_rows, open_encoded, tokenizer_fingerprint
from raybrew.errors import DataError, EnvironmentProblem
from raybrew.tasks.base import Task, build_task
from raybrew.tasks.values import example_id

ROOT = Path(__file__).resolve().parents[3]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("a", "film", "of", "great", "dull", "charm", "##s", "##ing", "it", "was", ",", ".")
TEXTS = ["A film of great charm.", "it was dull", "great, great, great", "unknown words", "Charms of charming films ."]


def bert(words: tuple[str, ...] = WORDS, **options: Any) -> BertTokenizerFast:
    vocabulary = {token: index for index, token in enumerate((*SPECIAL, *words))}
    return BertTokenizerFast(vocab=vocabulary, **{"do_lower_case": True, **options})


@pytest.fixture
def tokenizer() -> BertTokenizerFast:
    return bert()


def table_of(texts: list[str], labels: list[int] | None = None, pairs: list[str] | None = None) -> pa.Table:
    columns = [texts] if pairs is None else [texts, pairs]
    ids = [example_id(content) for content in zip(*columns, strict=True)]
    named = {"text": texts} if pairs is None else {"text": texts, "text_pair": pairs}
    numbers = pa.array(labels if labels is not None else [index % 2 for index in range(len(texts))], pa.int32())
    return pa.table({"id": pa.array(ids, pa.binary(16)), **named, "label": numbers})


def task_of(max_length: int = 128, pair: bool = False) -> Task:
    return build_task(ClassificationConfig(max_length=max_length), Columns(text_pair="text_pair" if pair else None))


class Progress:
    """Counts the calls: none means that the folder was there."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def __call__(self, done: int, total: int) -> None:
        self.calls.append((done, total))


# --- what is stored ---


@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("shard_rows", [1, 2, 100])
def test_stored_tokens_are_those_of_the_tokenizer(
    pair: bool, shard_rows: int, tokenizer: BertTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoded, "_BATCH_ROWS", 2)
    monkeypatch.setattr(encoded, "_SHARD_ROWS", shard_rows)
    pairs = list(reversed(TEXTS)) if pair else None
    table = table_of(TEXTS, [3, -1, 0, 2, 1], pairs)
    rows = encode_rows(table, task_of(8, pair), tokenizer, tmp_path)
    expected = tokenizer(TEXTS, pairs, truncation=True, max_length=8)
    assert len(rows) == rows.num_rows == 5
    assert rows.folder == tmp_path / rows.key
    assert rows.token_columns == ("input_ids", "token_type_ids")
    assert rows.labels.tolist() == [3, -1, 0, 2, 1]
    assert rows.labels.dtype == rows.lengths.dtype == np.int32
    assert rows.lengths.tolist() == [len(tokens) for tokens in expected["input_ids"]]
    assert max(rows.lengths) == 8
    assert [bytes(row) for row in rows.ids] == table.column("id").to_pylist()
    order = [4, 0, 0, 3]
    for name in rows.token_columns:
        flat, lengths = rows.gather(order)[name]
        assert flat.tolist() == [token for index in order for token in expected[name][index]]
        assert lengths.tolist() == [len(expected[name][index]) for index in order]
    assert len(list(rows.folder.glob("*.arrow"))) == {1: 3, 2: 3, 100: 1}[shard_rows]


def test_padded_batches_equal_those_of_the_tokenizer(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    tokenizer.pad_token = "[MASK]"  # not zero, so that padding shows
    rows = encode_rows(table_of(TEXTS), task_of(), tokenizer, tmp_path)
    order = np.array([2, 4, 1])
    expected = tokenizer([TEXTS[index] for index in order], padding=True, return_tensors="np")
    batch = rows.gather_padded(order, tokenizer.pad_token_id)
    assert batch.keys() == expected.keys()
    for name, values in batch.items():
        assert values.dtype == np.int64
        np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_tokenizers_without_token_types(tmp_path: Path) -> None:
    rows = encode_rows(table_of(TEXTS), task_of(), bert(model_input_names=["input_ids", "attention_mask"]), tmp_path)
    assert rows.token_columns == ("input_ids",)
    assert rows.gather_padded([0], 0).keys() == {"input_ids", "attention_mask"}


def test_datasets_opens_the_folder(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    import datasets

    rows = encode_rows(table_of(TEXTS), task_of(), tokenizer, tmp_path)
    dataset = datasets.load_from_disk(str(rows.folder))
    assert dataset["input_ids"][1] == tokenizer(TEXTS[1])["input_ids"]


def test_pickles_are_small_and_open_again(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    rows = encode_rows(table_of(TEXTS * 500), task_of(), tokenizer, tmp_path)
    assert rows.labels.shape == (2500,)  # loaded, and yet not pickled
    data = pickle.dumps(rows)
    assert len(data) < 1000
    again: EncodedRows = pickle.loads(data)
    np.testing.assert_array_equal(again.lengths, rows.lengths)
    np.testing.assert_array_equal(open_encoded(rows.folder).ids, rows.ids)


def test_progress_ends_at_the_number_of_rows(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    progress = Progress()
    encode_rows(table_of(TEXTS * 500), task_of(), tokenizer, tmp_path, progress)
    assert progress.calls == [(1024, 2500), (2048, 2500), (2500, 2500)]


# --- when it is stored anew ---


def test_the_same_rows_are_encoded_once(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    first = encode_rows(table_of(TEXTS), task_of(), tokenizer, tmp_path)
    chunked = pa.concat_tables([table_of(TEXTS).slice(0, 2), table_of(TEXTS).slice(2)])
    tokenizer(TEXTS, padding="max_length", truncation=True, max_length=9)  # leaves its settings in the backend
    progress = Progress()
    for table, same in ((chunked, tokenizer), (table_of(TEXTS), bert())):
        assert encode_rows(table, task_of(), same, tmp_path, progress).key == first.key
    assert progress.calls == []


CHANGES: dict[str, Callable[[], tuple[pa.Table, Task, Any]]] = {
    "vocabulary": lambda: (table_of(TEXTS), task_of(), bert((*WORDS[::-1],))),
    "case": lambda: (table_of(TEXTS), task_of(), bert(do_lower_case=False)),
    "truncation side": lambda: (table_of(TEXTS), task_of(), bert(truncation_side="left")),
    "token types": lambda: (table_of(TEXTS), task_of(), bert(model_input_names=["input_ids"])),
    "max_length": lambda: (table_of(TEXTS), task_of(9), bert()),
    "label": lambda: (table_of(TEXTS, [0, 1, 0, 1, 1]), task_of(), bert()),
    "order": lambda: (table_of(TEXTS[::-1], [0, 1, 0, 1, 0]), task_of(), bert()),
    "text": lambda: (table_of([*TEXTS[:-1], "other"]), task_of(), bert()),
    "row less": lambda: (table_of(TEXTS[:-1]), task_of(), bert()),
    "pair": lambda: (table_of(TEXTS, pairs=TEXTS), task_of(pair=True), bert()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_the_tokens_changes_the_key(change: str, tmp_path: Path) -> None:
    first = encode_rows(table_of(TEXTS), task_of(), bert(), tmp_path)
    table, task, tokenizer = CHANGES[change]()
    progress = Progress()
    second = encode_rows(table, task, tokenizer, tmp_path, progress)
    assert second.key != first.key
    assert progress.calls
    assert open_encoded(first.folder).num_rows == 5


def test_fingerprint_of_a_tokenizer_is_that_of_its_content(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    before = tokenizer_fingerprint(tokenizer)
    tokenizer("a film", padding="max_length", truncation=True, max_length=12)
    assert tokenizer_fingerprint(tokenizer) == before
    for name in ("here", "there"):
        tokenizer.save_pretrained(tmp_path / name)
        assert tokenizer_fingerprint(AutoTokenizer.from_pretrained(tmp_path / name)) == before
    tokenizer.add_special_tokens({"additional_special_tokens": ["[NEW]"]})
    assert tokenizer_fingerprint(tokenizer) != before


# --- only whole folders are read ---


def test_a_failure_leaves_nothing(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_rows(table_of(TEXTS), task_of(), tokenizer, tmp_path, fail)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    assert encode_rows(table_of(TEXTS), task_of(), tokenizer, tmp_path).num_rows == 5


def test_a_kill_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    code = (
        "import os, sys, signal\n"
        "from pathlib import Path\n"
        "sys.path[:0] = ['tests']\n"
        "import unit.data.test_encoded as here\n"
        "here.encoded._BATCH_ROWS = here.encoded._SHARD_ROWS = 2\n"
        "def kill(done, total):\n"
        "    if done >= 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "here.encode_rows(here.table_of(here.TEXTS), here.task_of(), here.bert(), Path(sys.argv[1]), kill)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    (left,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(list(left.glob("*.arrow"))) == 2  # it was killed in the middle indeed
    with pytest.raises(DataError, match="no complete folder"):
        open_encoded(left)
    rows = encode_rows(table_of(TEXTS), task_of(), bert(), tmp_path)
    assert rows.num_rows == 5
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [rows.folder]


@pytest.mark.parametrize("damage", ["shard cut", "shard gone", "marker gone", "marker cut", "marker of another"])
def test_a_damaged_folder_is_made_anew(damage: str, tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    rows = encode_rows(table_of(TEXTS), task_of(), tokenizer, tmp_path)
    shard, marker = rows.folder / "data-00000.arrow", rows.folder / "encoded.json"
    if damage == "shard cut":
        shard.write_bytes(shard.read_bytes()[:-8])
    elif damage == "shard gone":
        shard.unlink()
    elif damage == "marker gone":
        marker.unlink()
    elif damage == "marker cut":
        marker.write_text(marker.read_text(encoding="utf-8")[:20], encoding="utf-8")
    else:
        marker.write_text(json.dumps({**json.loads(marker.read_text(encoding="utf-8")), "key": "x"}), encoding="utf-8")
    with pytest.raises(DataError, match="no complete folder"):
        open_encoded(rows.folder)
    progress = Progress()
    again = encode_rows(table_of(TEXTS), task_of(), tokenizer, tmp_path, progress)
    assert progress.calls == [(5, 5)]
    assert again.lengths.tolist() == [len(tokens) for tokens in tokenizer(TEXTS)["input_ids"]]


def test_of_several_at_once_one_encodes(tmp_path: Path) -> None:
    progress = Progress()
    keys: list[str] = []
    ready = threading.Barrier(3)

    def work() -> None:
        own = bert()  # a tokenizer serves one thread at a time
        ready.wait()
        keys.append(encode_rows(table_of(TEXTS), task_of(), own, tmp_path, progress).key)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert progress.calls == [(5, 5)]


def test_a_whole_folder_is_read_without_the_lock(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    rows = encode_rows(table_of(TEXTS), task_of(), tokenizer, tmp_path)
    (tmp_path / f"{rows.key}.lock").unlink(missing_ok=True)
    encode_rows(table_of(TEXTS), task_of(), tokenizer, tmp_path)
    assert not (tmp_path / f"{rows.key}.lock").exists()


# --- errors ---


def test_a_folder_that_cannot_be_written_names_the_setting(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentProblem, match=r"cannot write encoded rows to .*data\.cache"):
        encode_rows(table_of(TEXTS), task_of(), tokenizer, tmp_path / "file")


def test_a_row_without_tokens_is_named(tmp_path: Path) -> None:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Replace("x", "")
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")
    with pytest.raises(DataError, match=r"row 2 of those in use has no tokens: 'xx'"):
        encode_rows(table_of(["a", "xx"]), task_of(), tokenizer, tmp_path)


def test_no_rows_at_all(tokenizer: BertTokenizerFast, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no rows to encode"):
        encode_rows(table_of([]), task_of(), tokenizer, tmp_path)

"""Whatever a file of rows holds: rows, or one DataError. What Arrow would read beyond a file is found before."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz import FIXED, broken_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from raybrew.config import DataConfig
from raybrew.config.task import TASK_CONFIGS
from raybrew.data.readers import lines as reading
from raybrew.data.rows import load_rows
from raybrew.errors import DataError
from raybrew.tasks.base import build_task

ROWS: list[dict[str, Any]] = [
    {
        "text": f"text number {number}, ünï 你好",
        "label": "ab"[number % 2],
        "tokens": ["w"] * (number % 3 + 1),
        "tags": ["B-X"] + ["O"] * (number % 3),
        "question": f"question {number}?",
        "context": f"the context {number} holds it",
        "answers": {"text": ["context"], "answer_start": [4]},
    }
    for number in range(20)
]
TABLE = pa.Table.from_pylist(ROWS)
PLAIN = TABLE.select(["text", "label"])
#: What stands where a value was: numbers that are none, halves of characters, nests, marks of other formats.
PIECES = (
    *(b"NaN", b"Infinity", b"1e999", b"null", b"true", b"-1", b"9" * 400, b"9" * 5000, b"[", b"{" * 50, b"[" * 5000),
    *(
        b'"',
        b'""',
        b",",
        b"\t",
        b"\n",
        b"\r\n",
        b"\r",
        b"\0",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\x1f\x8b",
    ),
    *(b'"\\ud800"', b'{"a": 1}', b'"label": {"a": 1}', "\u2028".encode()),
)


def stream(table: pa.Table, new: Callable[..., Any]) -> bytes:
    sink = pa.BufferOutputStream()
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=8)
    return bytes(sink.getvalue())


def parquet(**options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(TABLE, sink, **options)
    return bytes(sink.getvalue())


def lines(join: Callable[[dict[str, Any]], str]) -> bytes:
    return "".join(f"{join(row)}\n" for row in ROWS).encode()


FILES: dict[str, bytes] = {
    "a.csv": b"text,label\n" + lines(lambda row: f'"{row["text"]}",{row["label"]}'),
    "a.tsv": b"text\tlabel\n" + lines(lambda row: f"{row['text']}\t{row['label']}"),
    "a.jsonl": lines(lambda row: json.dumps(row, ensure_ascii=False)),
    "a.conll": lines(lambda row: "".join(f"{a}\t{b}\n" for a, b in zip(row["tokens"], row["tags"], strict=True))),
    "a.jsonl.gz": gzip.compress(lines(json.dumps), mtime=0),
    "file.arrow": stream(TABLE, pa.ipc.new_file),
    "stream.arrow": stream(TABLE, pa.ipc.new_stream),
    "dictionary.arrow": stream(
        PLAIN.set_column(1, "label", PLAIN.column("label").dictionary_encode()), pa.ipc.new_file
    ),
    "views.arrow": stream(
        PLAIN.cast(pa.schema([("text", pa.large_string()), ("label", pa.string_view())])), pa.ipc.new_file
    ),
    "a.parquet": parquet(),
    "plain.parquet": parquet(compression="none", use_dictionary=False),
}


def read(path: Path, kind: str, skip: bool = False) -> int:
    task = build_task(TASK_CONFIGS[kind](), DataConfig().columns)  # type: ignore[arg-type]
    data = DataConfig(train=str(path), on_bad_row="skip" if skip else "error")
    return len(load_rows(data, "train", task))


@pytest.mark.parametrize("name", FILES)
def test_whole_files_are_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    assert read(tmp_path / name, "tagging" if name == "a.conll" else "classification") == len(ROWS)


@settings(FIXED, max_examples=2000)
@given(
    name=st.sampled_from(sorted(FILES)), kind=st.sampled_from(sorted(TASK_CONFIGS)), skip=st.booleans(), data=st.data()
)
def test_broken_files(name: str, kind: str, skip: bool, data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data.draw(broken_bytes(FILES[name], PIECES)))
    try:
        read(path, kind, skip)
    except DataError as error:
        assert len(str(error)) < 5000  # noqa: PT017 (it need not fail)


def with_bad_offset(kind: pa.DataType) -> bytes:
    """An Arrow file whose text at the second row lies a gigabyte behind the file's end."""
    nested, width = pa.types.is_list(kind), 8 if pa.types.is_large_string(kind) else 4
    texts: list[Any] = [f"a longer text than a view holds in itself {number}" for number in range(4)]
    table = pa.table({"text": pa.array([[one] for one in texts] if nested else texts, kind), "label": list("abab")})
    data = bytearray(stream(table, pa.ipc.new_file))
    first = next(buffer for buffer in table.column("text").chunk(0).buffers() if buffer is not None)
    start = data.find(bytes(first)[:12]) + (8 if pa.types.is_string_view(kind) else width)
    data[start : start + width] = (2**30).to_bytes(width, "little")
    return bytes(data)


def test_offsets_that_lead_out_of_an_arrow_file_are_errors_and_no_signals(tmp_path: Path) -> None:
    """Read in another process, which Arrow itself would end here (SIGBUS, SIGSEGV)."""
    kinds = (pa.string(), pa.large_string(), pa.list_(pa.string()), pa.string_view())
    for number, kind in enumerate(kinds):
        (tmp_path / f"{number}.arrow").write_bytes(with_bad_offset(kind))
    program = (
        "import sys\nfrom pathlib import Path\nfrom raybrew.data.readers.columnar import ArrowFile\n"
        "from raybrew.errors import DataError\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try:\n        list(ArrowFile(path).rows(['text', 'label']))\n"
        "    except DataError:\n        print(path.stem, flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["0", "1", "2", "3"]), done.stderr


def test_undecodable_text_in_a_sound_file_stays_a_bad_row(tmp_path: Path) -> None:
    texts = pa.array([b"good", b"b\xffd", b"good too"], pa.binary()).view(pa.string())
    path = tmp_path / "a.arrow"
    path.write_bytes(stream(pa.table({"text": texts, "label": ["a", "b", "a"]}), pa.ipc.new_file))
    with pytest.raises(DataError, match=r"1 of the 3 rows.*\n.*row 2, column 'text': not UTF-8: byte 0xff"):
        read(path, "classification")


def test_undecodable_text_within_lists_is_a_bad_row_too(tmp_path: Path) -> None:
    tokens = pa.array([[b"good"], [b"b\xffd"], [b"x"]], pa.list_(pa.binary())).view(pa.list_(pa.string()))
    path = tmp_path / "a.arrow"
    path.write_bytes(stream(pa.table({"tokens": tokens, "tags": [["B-X"], ["O"], ["O"]]}), pa.ipc.new_file))
    with pytest.raises(DataError, match="row 2, column 'tokens': not UTF-8: byte 0xff at character 2"):
        read(path, "tagging")


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.jsonl.gz", "a.conll"])
def test_a_line_without_end_does_not_fill_the_memory(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_LINE_LIMIT", 1 << 20)
    data = FILES["a.csv"] + b"x" * (1 << 21) if name == "a.csv" else b"x" * (1 << 21)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(DataError, match=r"line \d+ is longer than 1 MiB"):
        read(tmp_path / name, "tagging" if name == "a.conll" else "classification")


@pytest.mark.parametrize("number", ["9" * 400, "-" + "9" * 400])
def test_a_label_of_too_many_digits_is_a_bad_row(number: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "a", "label": {number}}}\n{{"text": "b", "label": 1}}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"row 1 .*column 'label': a number expected"):
        read(path, "regression")

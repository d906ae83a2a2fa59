"""Rows of a file are parsed once for all processes, and again as soon as the file or a setting is another."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raybrew.config.data import DataConfig
from raybrew.config.task_kinds import ClassificationConfig
from raybrew.data.rows import Split, load_rows
from raybrew.data.rows import cache as row_cache
from raybrew.data.rows import load as loading
from raybrew.data.rows.row_set import RowSet
from raybrew.tasks.base import build_task

Read = Callable[..., RowSet]


@pytest.fixture(autouse=True)
def _keep_small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_cache, "_WORTH_BYTES", 0)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the sources that were parsed, in order."""
    found: list[str] = []
    parse = loading._parsed

    def counted(data: DataConfig, split: Split, source: Any, *rest: Any) -> RowSet:
        found.append(split)
        return parse(data, split, source, *rest)

    monkeypatch.setattr(loading, "_parsed", counted)
    return found


@pytest.fixture
def read(tmp_path: Path) -> Read:
    lines = [{"text": f"row {number}", "label": ["bad", "good"][number % 2]} for number in range(40)]
    content = "".join(json.dumps(line) + "\n" for line in lines) + '{"text": 3}\n'
    (tmp_path / "rows.jsonl").write_text(content, encoding="utf-8")

    def load(split: Split = "train", task: dict[str, Any] | None = None, **values: Any) -> RowSet:
        given = {split: str(tmp_path / "rows.jsonl"), "on_bad_row": "skip", **values}
        config = DataConfig.model_validate(given)
        kind = build_task(
            ClassificationConfig.model_validate({"kind": "classification", **(task or {})}), config.columns
        )
        return load_rows(config, split, kind, cache=tmp_path / "cache")

    return load


def same(one: RowSet, other: RowSet) -> bool:
    facts = [(each.labels, each.skipped, each.source, each.num_read, each.numbered) for each in (one, other)]
    return facts[0] == facts[1] and one.table.equals(other.table) and np.array_equal(one.set_aside, other.set_aside)


def test_rows_are_parsed_once_and_come_back_whole(read: Read, parsed: list[str]) -> None:
    first = read(test="10%")
    again = read(test="10%")
    assert parsed == ["train"]
    assert first.skipped
    assert len(first.set_aside)
    assert same(first, again)
    assert first.table.schema == again.table.schema


def test_other_settings_have_rows_of_their_own(read: Read, parsed: list[str]) -> None:
    full = read()
    assert len(read(train_rows=7)) == 7
    assert len(read(test="30%")) < len(full)
    assert read(task={"labels": ["good", "bad"]}).labels.names == ("good", "bad")
    assert read("unlabeled").labels.names == ()
    assert len(parsed) == 5
    assert same(read(), full)
    assert len(parsed) == 5


def test_changed_bytes_are_parsed_again_whatever_the_times_say(read: Read, parsed: list[str], tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    stat, first = path.stat(), read()
    path.write_bytes(path.read_bytes().replace(b"row 7", b"row X"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = read()
    assert len(parsed) == 2
    assert "row X" in second.table.column("text").to_pylist()
    assert "row X" not in first.table.column("text").to_pylist()


def test_damaged_kept_rows_are_parsed_and_kept_again(read: Read, parsed: list[str], tmp_path: Path) -> None:
    first = read()
    (kept,) = (tmp_path / "cache").glob("*.arrow")
    for damage in (lambda content: content.replace(b"row 7", b"row 8"), lambda content: content[:-100]):
        kept.write_bytes(damage(kept.read_bytes()))
        assert same(read(), first)
    kept.with_suffix(".json").write_text("{", encoding="utf-8")
    assert same(read(), first)
    assert len(parsed) == 4
    assert same(read(), first)
    assert len(parsed) == 4


def test_rows_of_small_files_and_without_a_folder_are_not_kept(
    read: Read, parsed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_cache, "_WORTH_BYTES", 1 << 20)
    read()
    read()
    assert len(parsed) == 2
    assert not (tmp_path / "cache").exists()

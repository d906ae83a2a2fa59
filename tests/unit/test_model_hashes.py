"""A teacher is loaded and hashed once for its files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tiny_teacher import make_teacher

from raybrew.models.loading import ModelSource, load_model
from raybrew.store import fingerprint
from raybrew.store.fingerprint import hashes_of, known_hashes


def test_model_is_loaded_once_for_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, cache = tmp_path / "teacher", tmp_path / ".cache"
    make_teacher(teacher)
    loads: list[str] = []

    def counted(source: ModelSource, kind: str, **given: object) -> object:
        loads.append(kind)
        return load_model(source, kind, **given)

    monkeypatch.setattr(fingerprint, "load_model", counted)
    source = ModelSource(str(teacher))
    first = known_hashes(source, "classification", cache)
    assert first == hashes_of(load_model(source, "classification"))
    assert [known_hashes(source, "classification", cache) for _ in range(3)] == [first] * 3
    assert loads == ["classification"]
    # Changed weights of the same size and modification time are noticed.
    weights = teacher / "model.safetensors"
    stat, content = weights.stat(), bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    changed = known_hashes(source, "classification", cache)
    assert changed.weights != first.weights
    assert len(loads) == 2
    # A damaged note is written again.
    for path in cache.iterdir():
        path.write_text("{", encoding="utf-8")
    assert known_hashes(source, "classification", cache) == changed
    assert len(loads) == 3

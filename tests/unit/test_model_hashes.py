"""A teacher is loaded and hashed once for its files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from tiny_teacher import make_teacher

from raybrew.data import hashes
from raybrew.errors import ModelError
from raybrew.models import cache as model_cache
from raybrew.models import loading
from raybrew.models.loading import ModelSource, load_finished, load_model
from raybrew.store.fingerprint import hashes_of, known_hashes


def test_model_is_loaded_once_for_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, cache = tmp_path / "teacher", tmp_path / ".cache"
    make_teacher(teacher)
    loads: list[str] = []

    def counted(source: ModelSource, kind: str, seed: int) -> object:
        loads.append(kind)
        return load_finished(source, kind, seed)

    monkeypatch.setattr(model_cache, "load_finished", counted)
    monkeypatch.setattr(hashes, "_FRESH_SECONDS", -1.0)
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
    # A damaged note is written again, also one that is JSON still.
    for count, damage in enumerate((lambda text: "{", lambda text: text.replace(changed.weights, "0" * 32)), start=3):
        for path in cache.iterdir():
            path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
        assert known_hashes(source, "classification", cache) == changed
        assert len(loads) == count


@pytest.fixture
def downloaded(tmp_path: Path) -> Path:
    """A model in the hub's cache: files are links to blobs, large ones are named by their SHA-256."""
    made, cache = tmp_path / "made", tmp_path / "models--owner--name"
    make_teacher(made)
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for path in made.iterdir():
        large = path.suffix == ".safetensors"
        blob = (
            cache
            / "blobs"
            / (hashlib.sha256(path.read_bytes()).hexdigest() if large else hashlib.sha1(path.read_bytes()).hexdigest())
        )
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(blob)
    return snapshot


def test_changed_bytes_of_a_download_are_noticed(downloaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ModelSource("owner/name")
    monkeypatch.setattr(loading, "try_to_load_from_cache", lambda *given, **more: str(downloaded / "config.json"))
    assert source.snapshot == downloaded
    loading._load("model", lambda *given, **more: None, source)
    load_model(ModelSource(str(downloaded)), "classification")
    blob = (downloaded / "model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    for given in (source, ModelSource(str(downloaded))):
        with pytest.raises(ModelError, match=blob.name):
            loading._load("model", lambda *given, **more: None, given)

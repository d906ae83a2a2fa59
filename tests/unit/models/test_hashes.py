"""A teacher is loaded and hashed once for its files."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub._local_folder import write_download_metadata
from tiny_teacher import make_teacher

from raybrew.data import hashes
from raybrew.errors import ModelError
from raybrew.models import cache as model_cache
from raybrew.models import loading
from raybrew.models.loading import ModelSource, load_config, load_finished, load_model, load_tokenizer, model_labels
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


def hub_name(path: Path) -> str:
    """The name that the hub gives to the bytes of a file: SHA-256 for large files, git's hash for small ones."""
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        return hashlib.sha256(content).hexdigest()
    return subprocess.run(
        ["git", "hash-object", "--no-filters", str(path)], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.fixture
def downloaded(tmp_path: Path) -> Path:
    """A model in the hub's cache: files are links to blobs."""
    made, cache = tmp_path / "made", tmp_path / "models--owner--name"
    make_teacher(made)
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for path in made.iterdir():
        blob = cache / "blobs" / hub_name(path)
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(blob)
    return snapshot


def damage(path: Path) -> Path:
    """Another last byte of the file behind `path`, which stays as old as it was."""
    path = path.resolve()
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return path


@pytest.mark.parametrize(
    ("name", "load"),
    [
        ("model.safetensors", lambda source: load_model(source, "classification")),
        ("config.json", load_config),
        ("config.json", lambda source: load_model(source, "classification")),
        ("tokenizer.json", load_tokenizer),
        ("tokenizer_config.json", load_tokenizer),
    ],
)
def test_changed_bytes_of_a_download_are_noticed(
    name: str, load: Callable[[ModelSource], object], downloaded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = ModelSource("owner/name")
    monkeypatch.setattr(loading, "try_to_load_from_cache", lambda *given, **more: str(downloaded / "config.json"))
    assert hub.snapshot == downloaded
    load(ModelSource(str(downloaded)))
    blob = damage(downloaded / name)
    for source in (hub, ModelSource(str(downloaded))):
        with pytest.raises(ModelError, match=blob.name) as caught:
            load(source)
        assert "no such local folder" not in str(caught.value)


def test_weights_may_change_while_only_the_tokenizer_is_read(downloaded: Path) -> None:
    damage(downloaded / "model.safetensors")
    load_tokenizer(ModelSource(str(downloaded)))


@pytest.fixture
def local_dir(tmp_path: Path) -> Path:
    """A model as `hf download --local-dir` leaves it: files with a note of hash and time for each."""
    folder = tmp_path / "local"
    make_teacher(folder)
    for path in [*folder.iterdir()]:
        write_download_metadata(folder, path.name, "0" * 40, hub_name(path))
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_changed_bytes_of_a_local_download_are_noticed(name: str, local_dir: Path) -> None:
    source = ModelSource(str(local_dir))
    load_model(source, "classification")
    digest = hub_name(local_dir / name)
    damage(local_dir / name)
    with pytest.raises(ModelError, match=digest):
        load_model(source, "classification")


def test_a_local_download_may_be_edited(local_dir: Path) -> None:
    """What is changed later than it was downloaded is the user's own."""
    path = local_dir / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"id2label": {"0": "bad", "1": "good"}}), encoding="utf-8")
    os.utime(path, (time.time() + 60, time.time() + 60))
    assert model_labels(load_config(ModelSource(str(local_dir)))) == ("bad", "good")

"""What a command has loaded: once for each place, as it was where it is saved, and nothing of it in other processes."""

from __future__ import annotations

import pickle
from pathlib import Path

import psutil
import pytest
import torch
from tiny_teacher import make_teacher
from transformers import BertModel

from raybrew.errors import ModelError
from raybrew.models import cache as module
from raybrew.models.cache import ModelCache
from raybrew.models.loading import ModelSource


@pytest.fixture
def teacher(tmp_path: Path) -> ModelSource:
    return make_teacher(tmp_path / "teacher")


def test_all_names_of_a_folder_share_what_is_loaded(
    teacher: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = ModelCache()
    monkeypatch.chdir(tmp_path)
    assert models.tokenizer(teacher) is models.tokenizer(ModelSource("teacher"))
    first = models.model(teacher, "classification")
    assert models.model(ModelSource("./teacher"), "classification", seed=3) is first
    models.release()
    assert models.model(teacher, "classification") is not first


def test_a_tokenizer_is_saved_as_it_was_loaded(teacher: ModelSource, tmp_path: Path) -> None:
    models = ModelCache()
    models.own_tokenizer(teacher).save_pretrained(tmp_path / "before")
    models.tokenizer(teacher)(["kola mane"] * 2, truncation=True, max_length=3, padding="max_length")
    models.own_tokenizer(teacher).save_pretrained(tmp_path / "after")
    before, after = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("before", "after"))
    assert before == after


def test_heads_that_are_made_up_depend_on_the_seed(teacher: ModelSource, tmp_path: Path) -> None:
    BertModel.from_pretrained(teacher.model).save_pretrained(teacher.model)
    models = ModelCache()
    assert not models.has_head(teacher, "classification")
    heads = [
        models.model(teacher, "classification", needs_head=False, seed=seed).classifier.weight.clone()  # type: ignore[operator]
        for seed in (0, 1, 1)
    ]
    assert torch.equal(heads[1], heads[2])
    assert not torch.equal(heads[0], heads[1])
    with pytest.raises(ModelError, match="is not trained for classification"):
        models.model(teacher, "classification")


def test_other_processes_and_full_memories_keep_nothing(teacher: ModelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    models = ModelCache()
    first = models.model(teacher, "classification")
    assert not pickle.loads(pickle.dumps(models))._models
    full = psutil.virtual_memory()._replace(available=0)
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: full)
    models.model(teacher, "regression", needs_head=False)
    assert models.model(teacher, "classification") is not first

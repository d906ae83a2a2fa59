"""What is refused when a tokenizer or a model is loaded, before anything is computed with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_teacher import make_teacher

from raybrew.demo.tokenizer import build_tokenizer
from raybrew.errors import ModelError
from raybrew.models.loading import ModelSource, load_tokenizer


@pytest.fixture
def teacher(tmp_path: Path) -> ModelSource:
    return make_teacher(tmp_path / "teacher")


def test_a_tokenizer_that_fits_is_loaded(teacher: ModelSource) -> None:
    assert "kola" in load_tokenizer(teacher).get_vocab()


def test_a_folder_without_tokenizer_is_refused(teacher: ModelSource) -> None:
    """transformers would make one in which every word is unknown."""
    for path in Path(teacher.model).glob("*token*"):
        path.unlink()
    with pytest.raises(ModelError, match=r"the tokenizer of .*teacher has no vocabulary; are its files"):
        load_tokenizer(teacher)


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(teacher: ModelSource, tmp_path: Path) -> None:
    build_tokenizer(["zebra quokka wombat " * 3], tmp_path / "other", max_length=64)
    larger = " ".join(f"{a}{b}{c}" for a in ("za", "zo", "zu", "ze") for b in "bdfgklm" for c in ("ra", "ro", "ri"))
    build_tokenizer([larger], tmp_path / "larger", max_length=64)
    for name, fits in (("other", True), ("larger", False)):
        for path in (tmp_path / name).iterdir():
            shutil.copy(path, teacher.model)
        if fits:
            load_tokenizer(teacher)
            continue
        with pytest.raises(ModelError, match=r"does not fit its model: token ids up to \d+, but \d+ embeddings"):
            load_tokenizer(teacher)

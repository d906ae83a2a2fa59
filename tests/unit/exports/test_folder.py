"""Exported students: usable by transformers alone, and whole at any moment."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, BertConfig, BertForSequenceClassification, BertTokenizerFast, pipeline

from raybrew.errors import EnvironmentProblem, ModelError, RunError
from raybrew.exports import folder as export
from raybrew.exports.folder import recover_student, save_student, write_card

LABELS = ("bad", "good", "so-so")
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "day")


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizerFast:
    return BertTokenizerFast(vocab={word: index for index, word in enumerate(WORDS)}, model_max_length=16)


def model_of(bias: float) -> BertForSequenceClassification:
    """A tiny model that can be told by its output bias."""
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
        id2label=dict(enumerate(LABELS)),
        label2id={name: index for index, name in enumerate(LABELS)},
    )
    model = BertForSequenceClassification(config).eval()
    nn.init.constant_(model.classifier.bias, bias)
    return model


def saved_bias(folder: Path) -> float:
    assert (folder / "config.json").is_file()
    assert (folder / "tokenizer.json").is_file()
    return float(load_file(folder / "model.safetensors")["classifier.bias"][0])


def beside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir() if path != folder)


def test_a_pipeline_runs_on_the_folder_alone(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    model = model_of(0.5)
    folder = save_student(model, tokenizer, tmp_path / "deep" / "student", "# A card\n")
    assert folder == tmp_path / "deep" / "student"
    found = pipeline("text-classification", model=str(folder), device="cpu", top_k=None)(["a fine day"])[0]
    with torch.inference_mode():
        expected = model(**tokenizer("a fine day", return_tensors="pt")).logits.softmax(-1)[0]
    scores = {row["label"]: row["score"] for row in found}
    assert scores == pytest.approx(dict(zip(LABELS, expected.tolist(), strict=True)), abs=1e-6)
    assert AutoConfig.from_pretrained(folder).label2id == {"bad": 0, "good": 1, "so-so": 2}
    assert (folder / "README.md").read_text() == "# A card\n"
    assert not list(folder.glob("*.bin"))
    assert beside(folder) == []


def test_files_have_the_rights_that_the_umask_leaves(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    umask = os.umask(0o027)
    try:
        folder = save_student(model_of(0.0), tokenizer, tmp_path / "student", "card")
    finally:
        os.umask(umask)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    rights = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert "model.safetensors" in rights
    assert rights == dict.fromkeys(rights, 0o640)


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_new_student_replaces_the_old_one(
    can_exchange: bool, tmp_path: Path, tokenizer: BertTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_exchange:
        monkeypatch.setattr(export, "_exchange", lambda first, second: False)
    folder = tmp_path / "student"
    save_student(model_of(1.0), tokenizer, folder, "old card")
    save_student(model_of(2.0), tokenizer, folder, "")
    assert saved_bias(folder) == 2.0
    assert not (folder / "README.md").exists()
    assert beside(folder) == []


def test_a_reader_finds_a_whole_student_at_any_moment(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    folder = tmp_path / "student"
    save_student(model_of(0.0), tokenizer, folder, "card")
    if not export._exchange(folder, folder):
        pytest.skip("this file system cannot exchange two names in one step")
    stop = threading.Event()
    looks = []

    def look() -> None:
        while not stop.is_set():
            looks.append((folder / "config.json").exists() and (folder / "model.safetensors").exists())

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for turn in range(10):
            save_student(model_of(float(turn)), tokenizer, folder, "card")
    finally:
        stop.set()
        reader.join()
    assert len(looks) > 10
    assert all(looks)


class Breaks:
    """Stands in for a tokenizer; saving it fails half-way."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{")
        raise self.error


@pytest.mark.parametrize(
    ("error", "raised"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left on device"), EnvironmentProblem)],
)
def test_an_interrupted_save_leaves_the_old_student_whole(
    error: BaseException, raised: type[BaseException], tmp_path: Path, tokenizer: BertTokenizerFast
) -> None:
    folder = tmp_path / "student"
    save_student(model_of(1.0), tokenizer, folder, "card")
    broken: Any = Breaks(error)
    with pytest.raises(raised) as caught:
        save_student(model_of(2.0), broken, folder, "card")
    if raised is EnvironmentProblem:
        assert "No space left on device" in str(caught.value)
        assert str(folder) in str(caught.value)
    assert saved_bias(folder) == 1.0
    assert beside(folder) == []


def test_a_failed_rename_puts_the_old_student_back(
    tmp_path: Path, tokenizer: BertTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "student"
    save_student(model_of(1.0), tokenizer, folder, "card")
    monkeypatch.setattr(export, "_exchange", lambda first, second: False)
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if ".new-" in path.name:
            raise PermissionError("refused")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(EnvironmentProblem, match="refused"):
        save_student(model_of(2.0), tokenizer, folder, "card")
    assert saved_bias(folder) == 1.0
    assert beside(folder) == []


def test_what_a_killed_save_left_is_cleared(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    folder = tmp_path / "student"
    save_student(model_of(1.0), tokenizer, folder, "card")
    # Killed while writing, with file names that another student's leftovers must not share.
    for name in (".student.new-0a1b2c3d", ".student2.new-0a1b2c3d"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    recover_student(folder)
    assert saved_bias(folder) == 1.0
    assert beside(folder) == [".student2.new-0a1b2c3d"]
    # Killed between two renames: the only whole student has the old one's name.
    folder.rename(tmp_path / ".student.old-0a1b2c3d")
    (tmp_path / ".student.new-0a1b2c3d").mkdir()
    recover_student(folder)
    assert saved_bias(folder) == 1.0
    assert beside(folder) == [".student2.new-0a1b2c3d"]
    recover_student(tmp_path / "never" / "saved")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("file", ["thesis.txt", "config.json/x", ".git/config"])
def test_a_folder_that_is_no_student_is_not_replaced(file: str, tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    folder = tmp_path / "mine"
    if file == ".git/config":
        save_student(model_of(1.0), tokenizer, folder, "card")
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text("dear")
    with pytest.raises(RunError, match="is no student's folder"):
        save_student(model_of(2.0), tokenizer, folder, "card")
    assert (folder / file).read_text() == "dear"


def test_an_empty_folder_is_taken_and_a_file_is_not(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    (tmp_path / "empty").mkdir()
    save_student(model_of(1.0), tokenizer, tmp_path / "empty", "card")
    assert saved_bias(tmp_path / "empty") == 1.0
    (tmp_path / "file").write_text("dear")
    with pytest.raises(RunError, match="is a file"):
        save_student(model_of(1.0), tokenizer, tmp_path / "file", "card")


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    (tmp_path / "big_disk").mkdir()
    link = tmp_path / "student"
    link.symlink_to(tmp_path / "big_disk")
    for bias in (1.0, 2.0):
        save_student(model_of(bias), tokenizer, link, "card")
    assert link.is_symlink()
    assert saved_bias(tmp_path / "big_disk") == 2.0


def test_other_models_are_refused(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    with pytest.raises(ModelError, match="got Linear"):
        save_student(nn.Linear(2, 2), tokenizer, tmp_path / "student", "card")
    assert list(tmp_path.iterdir()) == []


def test_the_card_of_a_saved_student_is_replaced(tmp_path: Path, tokenizer: BertTokenizerFast) -> None:
    folder = save_student(model_of(1.0), tokenizer, tmp_path / "student", "")
    for card in ("# One\n", "# Two: ü 中\n"):
        write_card(folder, card)
        assert (folder / "README.md").read_text(encoding="utf-8") == card
    assert beside(folder) == []
    with pytest.raises(EnvironmentProblem, match=r"README\.md"):
        write_card(tmp_path / "missing", "card")

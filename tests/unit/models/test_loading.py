"""What is refused when a tokenizer or a model is loaded, before anything is computed with it."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_teacher import make_teacher

import raybrew
from raybrew.config.loading import build_experiment
from raybrew.demo.tokenizer import build_tokenizer
from raybrew.errors import DataError, EnvironmentProblem, ModelError
from raybrew.models.cache import ModelCache
from raybrew.models.loading import ModelSource, load_config, load_model, load_tokenizer


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


def test_a_teacher_without_a_head_is_refused_where_its_logits_count(teacher: ModelSource, tmp_path: Path) -> None:
    """transformers would make a random one, which a student would then imitate."""
    whole = load_model(teacher, "classification")
    assert ModelCache().has_head(teacher, "classification")
    whole.base_model.save_pretrained(tmp_path / "encoder")
    encoder = ModelSource(str(tmp_path / "encoder"))
    assert not ModelCache().has_head(encoder, "classification")
    with pytest.raises(ModelError, match=r"encoder is not trained for classification: it lacks classifier\.bias"):
        load_model(encoder, "classification")

    # What reads hidden states alone gets the same model each time, and other draws are not touched.
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    models = [load_model(encoder, "classification", needs_head=False, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(2), wanted)
    heads = [model.classifier.weight for model in models]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert load_model(encoder, "classification", ("a", "b", "c")).classifier.out_features == 3


def test_a_missing_gpu_is_said_before_the_teacher_runs(
    teacher: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = [json.dumps({"text": f"kola mane {number}", "label": number % 3}) for number in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    values = {
        "name": "no-gpu",
        "data": {"train": str(tmp_path / "rows.jsonl")},
        "teacher": {"model": teacher.model},
        "student": {"shape": {"layers": 1}},
        "train": {"device": "cuda", "max_steps": 1, "batch_size": 2},
        "store": {"storage_path": str(tmp_path / "runs"), "launcher": "local"},
    }
    with pytest.raises(EnvironmentProblem, match=r"train\.device: cuda was asked for"):
        raybrew.distill(build_experiment(values))
    assert not (tmp_path / "runs" / "store").exists()
    # The same rows do train where no GPU is asked for.
    values["train"] = {"device": "cpu", "max_steps": 1, "batch_size": 2, "threads": 1}
    assert raybrew.distill(build_experiment(values)).student.is_dir()
    assert (tmp_path / "runs" / "store").is_dir()


def test_a_hub_that_does_not_answer_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub = logging.getLogger("huggingface_hub.utils._http")

    def offline(*_: Any, **__: Any) -> None:
        for number in range(5):
            hub.warning(f"'Name or service not known' thrown while requesting HEAD https://example.org, {number}")
            hub.warning(f"Retrying in {number}s")
        hub.warning("Rate limited")
        raise OSError("We couldn't connect")

    monkeypatch.setattr("raybrew.models.loading.AutoConfig.from_pretrained", offline)
    caplog.set_level("WARNING")
    logging.getLogger("huggingface_hub").propagate, before = True, logging.getLogger("huggingface_hub").propagate
    try:
        with pytest.raises(ModelError, match=r"cannot load the config of owner/name .*: We couldn't connect"):
            load_config(ModelSource("owner/name"))
        told = [record.getMessage() for record in caplog.records]
        assert told == ["no answer of the Hugging Face hub; trying again for up to half a minute", "Rate limited"]
        hub.warning("another matter")
        assert caplog.records[-1].getMessage() == "another matter"
    finally:
        logging.getLogger("huggingface_hub").propagate = before


def test_rows_to_predict_that_are_not_there_are_no_fault_of_the_file(teacher: ModelSource, tmp_path: Path) -> None:
    experiment = build_experiment({"name": "p", "teacher": {"model": teacher.model}, "student": {"shape": "T3"}})
    with pytest.raises(DataError, match=r"^no such file or folder: .*missing\.jsonl"):
        raybrew.predict(experiment, str(tmp_path / "missing.jsonl"), model=teacher.model)

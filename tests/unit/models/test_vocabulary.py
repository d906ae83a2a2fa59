"""Vocabularies trimmed to a corpus: the same pieces as before, their rows of the embeddings, and the same student."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_models import FAMILY_MODELS, TEXTS, make_tokenizer, rows_of, without_latency
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import raybrew
from raybrew.config import Experiment
from raybrew.config.loading import build_experiment
from raybrew.demo.tokenizer import build_tokenizer
from raybrew.errors import ConfigError, ModelError
from raybrew.models.inspection import count_parameters
from raybrew.models.loading import ModelSource, load_model, load_tokenizer
from raybrew.models.vocabulary import find_vocabulary, trim_tokenizer
from unit.models.test_families import experiment_of

KINDS = ("wordpiece", "bytes", "unigram")
RELAXED = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WORDS = sorted({word for text in TEXTS for word in text.split()} | {"Zürich", "北京", "😀", "unheard-of", "1999"})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    without_latency(monkeypatch)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {kind: make_tokenizer(kind, folder / kind, 200) for kind in KINDS}


def counted(tokenizer: Any, texts: list[str]) -> np.ndarray:
    counts = np.zeros(len(tokenizer), np.int64)
    for text in texts:
        np.add.at(counts, tokenizer(text)["input_ids"], 1)
    return counts


@pytest.mark.parametrize("kind", KINDS)
@RELAXED
@given(
    corpus=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6), min_size=1, max_size=4),
    new=st.lists(st.sampled_from(WORDS), min_size=1, max_size=6),
    min_count=st.integers(1, 3),
)
def test_a_corpus_keeps_its_pieces_and_other_texts_get_some(
    kind: str, corpus: list[list[str]], new: list[str], min_count: int, tokenizers: dict[str, Any]
) -> None:
    whole = tokenizers[kind]
    texts = [" ".join(words) for words in corpus]
    counts = counted(whole, texts)
    cut, kept = trim_tokenizer(whole, counts, min_count)
    assert list(kept) == sorted(set(kept.tolist()))
    assert len(cut) == len(kept) <= len(whole)
    pieces = whole.convert_ids_to_tokens(kept.tolist())
    assert cut.convert_ids_to_tokens(list(range(len(kept)))) == pieces
    assert set(np.flatnonzero(counts >= min_count)) <= set(kept.tolist())
    if min_count == 1:
        for text in texts:
            assert kept[cut(text)["input_ids"]].tolist() == whole(text)["input_ids"]
            one, other = (each(text, text, return_offsets_mapping=True) for each in (cut, whole))
            assert kept[one["input_ids"]].tolist() == other["input_ids"]
            assert one["offset_mapping"] == other["offset_mapping"]
            assert one.get("token_type_ids") == other.get("token_type_ids")
    text = " ".join(new)
    ids = cut(text)["input_ids"]
    assert (ids[0], ids[-1]) == (cut.cls_token_id, cut.sep_token_id)
    assert [pieces[cut.cls_token_id], pieces[cut.pad_token_id]] == ["[CLS]", "[PAD]"]
    if kind == "bytes":
        assert cut.unk_token_id not in ids
        before = whole(text)["input_ids"]
        assert cut.decode(ids, skip_special_tokens=True) == whole.decode(before, skip_special_tokens=True)


def test_rare_pieces_fall_apart_into_letters(tmp_path: Path) -> None:
    whole = build_tokenizer(["the rain train"], tmp_path, 64)
    cut, kept = trim_tokenizer(whole, counted(whole, ["the the rain train"]), 2)
    assert "train" in whole.get_vocab()
    assert "train" not in cut.get_vocab()
    assert len(kept) < 20
    assert cut.tokenize("het") == ["h", "##e", "##t"]
    assert cut.tokenize("train") == ["[UNK]"], "no kept piece has its letters"
    kept_too, _ = trim_tokenizer(whole, counted(whole, ["the the rain train"]), 2, ["train"])
    assert kept_too.tokenize("train") == ["train"]
    assert kept_too.tokenize("rain") == ["r", "##a", "##i", "##n"]
    with pytest.raises(ConfigError, match=r"student\.vocabulary\.keep: no piece .*'trainn'; did you mean 'train'"):
        trim_tokenizer(whole, counted(whole, ["the"]), 1, ["trainn"])


def test_other_kinds_of_tokenizers_are_refused() -> None:
    class Slow:
        pass

    with pytest.raises(ModelError, match="of kind Slow cannot be trimmed; known: WordPiece, BPE, Unigram, WordLevel"):
        trim_tokenizer(Slow(), np.zeros(3, np.int64), 1)


def trimmed(experiment: Experiment, **changes: Any) -> Experiment:
    values = experiment.plain()
    values["student"] = {**values["student"], "vocabulary": {}, **changes.pop("student", {})}
    return build_experiment({**values, "name": "trimmed", **changes})


@pytest.mark.parametrize(
    ("family", "task", "source"),
    [
        ("bert", "classification", "store"),
        ("bert", "tagging", "live"),
        ("roberta", "tagging", "store"),
        ("deberta-v3", "qa", "store"),
        ("electra", "qa", "live"),
        ("modernbert", "classification", "live"),
    ],
)
def test_a_trimmed_student_learns_what_the_whole_one_learns(
    family: str, task: str, source: str, tmp_path: Path
) -> None:
    """Rows of pieces that never come up change nothing: all else ends up with the same numbers."""
    whole = experiment_of(tmp_path, family, task)
    if source == "live":
        whole = build_experiment(whole.plain() | {"teacher": {**whole.plain()["teacher"], "source": "live"}})
    small = trimmed(whole)
    runs = {name: raybrew.distill(experiment) for name, experiment in (("whole", whole), ("small", small))}
    assert runs["small"].summary["distill"]["source"] == source
    models = {name: load_model(ModelSource(str(run.student)), task) for name, run in runs.items()}
    tokenizers = {name: load_tokenizer(ModelSource(str(run.student))) for name, run in runs.items()}
    pieces = tokenizers["small"].convert_ids_to_tokens(list(range(len(tokenizers["small"]))))
    rows = tokenizers["whole"].convert_tokens_to_ids(pieces)
    assert len(pieces) < len(tokenizers["whole"])
    weights = {name: dict(model.named_parameters()) for name, model in models.items()}
    different = 0
    for name, tensor in weights["whole"].items():
        ours = weights["small"][name]
        if ours.shape != tensor.shape:
            different += 1
            tensor = tensor[rows]
        torch.testing.assert_close(ours, tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert different == 1
    saved = count_parameters(models["whole"]) - count_parameters(models["small"])
    assert f"{saved:,} parameters saved" in (runs["small"].path / "metrics.jsonl").read_text()
    assert models["small"].config.vocab_size == len(pieces)
    assert raybrew.inspect(small, latency=False)["student"].facts["parameters"] == count_parameters(models["small"])
    assert raybrew.evaluate(small).metrics == pytest.approx(runs["small"].metrics)
    new = rows_of(task, tmp_path / "new.jsonl", 3)
    assert len(raybrew.predict(small, new)) == 3
    stores = list((tmp_path / "runs" / "store").iterdir()) if source == "store" else []
    assert len([path for path in stores if path.is_dir()]) == (source == "store"), "one store for both"


def test_a_folder_that_transformers_loads_alone(tmp_path: Path) -> None:
    experiment = trimmed(experiment_of(tmp_path, "bert", "classification"))
    folder = raybrew.distill(experiment).student
    code = (
        "import sys\n"
        "sys.modules['raybrew'] = None\n"
        "from transformers import pipeline\n"
        "print(pipeline('text-classification', model=sys.argv[1])('Anna met Peter in Oslo')[0]['label'])"
    )
    command = [sys.executable, "-c", code, str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert found.stdout.split()[-1] in ("no", "yes"), found.stderr
    assert AutoTokenizer.from_pretrained(folder)("Anna")["input_ids"][0] == 2


def test_rows_in_other_pieces_align_by_rows_and_words_but_not_by_tokens(tmp_path: Path) -> None:
    whole = experiment_of(tmp_path, "bert", "tagging")
    few = trimmed(whole, student={"vocabulary": {"min_count": 8}})
    with pytest.raises(ModelError, match=r"token by token.*student\.vocabulary\.min_count=1 keeps|min_count=1, which"):
        raybrew.distill(few)
    words = trimmed(whole, student={"vocabulary": {"min_count": 8}}, distill={"temperature": 2.0})
    assert raybrew.distill(words).metrics
    values = words.plain()
    live = build_experiment(values | {"name": "x", "teacher": {**values["teacher"], "source": "live"}})
    with pytest.raises(ModelError, match=r"teacher\.source: live feeds both models the same tokens"):
        raybrew.distill(live)


def test_answers_in_other_pieces_align_by_characters(tmp_path: Path) -> None:
    whole = experiment_of(tmp_path, "bert", "qa")
    few = trimmed(whole, student={"vocabulary": {"min_count": 12}}, distill={"temperature": 2.0})
    run = raybrew.distill(few)
    assert run.summary["distill"]["source"] == "store"
    assert raybrew.evaluate(few).metrics == pytest.approx(run.metrics)
    folders = list((tmp_path / "runs" / ".cache").glob("vocabulary-*/"))
    assert [find_vocabulary(folder).exact for folder in folders] == [False]


def test_what_is_kept_does_not_depend_on_the_order_of_rows_and_is_part_of_the_runs_name(tmp_path: Path) -> None:
    experiment = experiment_of(tmp_path, "bert", "classification")
    small = trimmed(experiment)
    assert small.run_id("distill") != trimmed(experiment, student={"vocabulary": {"min_count": 2}}).run_id("distill")
    found = []
    for turn in range(2):
        lines = Path(str(small.data.train)).read_text().splitlines()
        path = tmp_path / f"train-{turn}.jsonl"
        path.write_text("\n".join(lines[::-1] if turn else lines) + "\n")
        part = build_experiment({**small.plain(), "data": {"train": str(path)}, "name": f"turn-{turn}"})
        raybrew.inspect(part, latency=False)
    for path in sorted((tmp_path / "runs" / ".cache").glob("vocabulary-*/")):
        vocabulary = find_vocabulary(path)
        assert vocabulary is not None
        assert vocabulary.exact
        found.append((vocabulary.kept.tolist(), (path / "tokenizer.json").read_bytes()))
    assert len(found) == 2
    assert found[0] == found[1]


def test_further_texts_and_pieces_are_kept(tmp_path: Path) -> None:
    experiment = experiment_of(tmp_path, "bert", "classification")
    sizes = []
    (tmp_path / "more.txt").write_text("never late again\nsuperb weather\n")
    Path(str(experiment.data.train)).write_text(
        "".join(
            json.dumps({"text": f"the sea {number}", "label": ("no", "yes")[number % 2]}) + "\n" for number in range(6)
        )
    )
    for vocabulary in ({}, {"texts": str(tmp_path / "more.txt")}, {"keep": ["fi"]}):
        part = trimmed(experiment, student={"vocabulary": vocabulary})
        sizes.append(raybrew.inspect(part, latency=False)["student"].facts["vocabulary"])
    assert sizes[0] < sizes[2] < sizes[1]


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"task": {"kind": "masked_lm"}}, r"student\.vocabulary: given for task.kind 'masked_lm'"),
        ({"distill": {"theseus": {}}}, r"student\.vocabulary: given with distill\.theseus"),
        ({"student": {"vocabulary": {}}}, r"student\.vocabulary: given without a student"),
        ({"student": {"shape": "T3", "vocabulary": {"min_count": 0}}}, r"student\.vocabulary\.min_count: .*at least 1"),
    ],
)
def test_what_cannot_be_is_refused_by_validate(section: dict[str, Any], words: str) -> None:
    values = {"name": "x", "teacher": {"model": "a/b"}, "student": {"shape": "T3", "vocabulary": {}}, **section}
    with pytest.raises(ConfigError, match=words):
        build_experiment(values)


def test_every_family_has_a_kind_that_can_be_trimmed() -> None:
    assert {kind for _, kind, _ in FAMILY_MODELS.values()} == set(KINDS)

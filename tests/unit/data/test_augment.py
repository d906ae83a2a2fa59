"""`data.augment`: new rows by rules and by a masked language model, again after a kill, and in a distillation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_teacher import make_teacher
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

import raybrew
import raybrew.pipeline.augment as verb
from raybrew.config import ClassificationConfig, Columns, TaggingConfig
from raybrew.config.augment import AugmentConfig
from raybrew.config.loading import build_experiment
from raybrew.data.augmentation.rows import Draw, joined, pieces_of, replaced, word_spans
from raybrew.demo.tokenizer import build_tokenizer
from raybrew.errors import ConfigError, ModelError
from raybrew.models.word_candidates import WordCandidates
from raybrew.pipeline.resolve import resolve
from raybrew.pipeline.rows import read_rows
from raybrew.tasks.base import Task, build_task
from raybrew.tasks.values import example_id
from tests.told import told

WORDS = ("red", "green", "blue", "big", "small", "tree", "house", "road")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A masked LM that guesses in every place the words that are nearest to `red`, whatever stands around."""
    folder = tmp_path_factory.mktemp("augment") / "mlm"
    tokenizer = build_tokenizer([" ".join(WORDS)], folder, max_length=32)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    network = BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **sizes))
    with torch.no_grad():
        network.cls.predictions.bias.zero_()
        for rank, word in enumerate(WORDS):
            network.cls.predictions.bias[tokenizer.convert_tokens_to_ids(word)] = 100.0 - 10 * rank
        network.cls.predictions.bias[tokenizer.convert_tokens_to_ids("##a")] = 200.0
    network.save_pretrained(folder)
    return str(folder)


def rows_of(task: Task, rows: list[dict[str, Any]]) -> pa.Table:
    parsed = [task.parse(row) for row in rows]
    columns: dict[str, list[Any]] = {"id": [example_id(task.content(row)) for row in parsed]}
    for row in parsed:
        for name, value in {**row, "label": task.no_label(row)}.items():
            columns.setdefault(name, []).append(value)
    schema = pa.schema([pa.field("id", pa.binary(16)), *task.schema()])
    return pa.table(columns, schema)


def made(folder: Path, task: Task, rows: list[dict[str, Any]], **options: Any) -> list[dict[str, Any]]:
    config = AugmentConfig(**options)
    found = verb.augmented_rows(rows_of(task, rows), task, config, folder, "cpu", lambda line: None)
    return found.to_pylist()


@given(st.text(alphabet="ab 中日'’-_,.1\n", max_size=30))
def test_words_cover_letters_and_replacing_none_changes_nothing(text: str) -> None:
    spans = word_spans(text)
    inside = "".join(text[start:end] for start, end in spans)
    assert [char for char in inside if char.isalnum()] == [char for char in text if char.isalnum()]
    assert replaced(text, spans, Draw((), ()), {})[0] == text
    assert pieces_of(joined(pieces_of(text))) == pieces_of(text)
    assert all(len(text[start:end]) == 1 for start, end in spans if text[start] in "中日")


def test_pieces_are_joined_as_their_script_is_written() -> None:
    assert joined(["the", "cat", "在", "家", "!"]) == "the cat在家!"
    text, words = replaced("The cat, the dog.", word_spans("The cat, the dog."), Draw((1, 3), (0.0, 0.99)),
                           {1: ["cow", "ox"], 3: ["bee", "ant"]})  # fmt: skip
    assert text == "The cow, the ant."
    assert words == ["The", "cow", "the", "ant"]


def test_a_masked_model_guesses_words_of_one_token_and_neighbours_stand_for_others(model: str) -> None:
    from raybrew.models.loading import ModelSource, load_model, load_tokenizer

    network, tokenizer = load_model(ModelSource(model), "masked_lm"), load_tokenizer(ModelSource(model))
    with torch.no_grad():  # the neighbours of the pieces of `zq`, whose embeddings are made those of `house`
        table = network.get_input_embeddings().weight
        for piece in ("z", "##q"):
            table[tokenizer.convert_tokens_to_ids(piece)] = table[tokenizer.convert_tokens_to_ids("house")]
    text = "Big tree zq red"
    spans = dict(enumerate(word_spans(text)))
    (found,) = WordCandidates(network, tokenizer, 3)([text], [spans])
    assert found[0] == ["Red", "Green", "Blue"], "capital as the word had; no piece of a word, however likely"
    assert found[1] == ["red", "green", "blue"]
    assert set(found[2][:2]) == {"z", "house"}
    assert found[3] == ["green", "blue", "big"], "never the word itself"


@pytest.mark.parametrize(
    "kind", ["masked_lm", "masking", "deleting", "short_disorder", "long_disorder", "n_gram_sampling"]
)
def test_copies_follow_from_seed_and_content(model: str, tmp_path: Path, kind: str) -> None:
    pair = build_task(ClassificationConfig(), Columns(text_pair="text_pair"))
    rows = [{"text": f"red {word} tree, big {word}", "text_pair": f"small {word} road"} for word in WORDS]
    options: dict[str, Any] = {"kind": kind, "copies": 3, "seed": 1}
    if kind == "masked_lm":
        options |= {"model": model, "top_k": 6}
    if kind == "long_disorder":
        options |= {"span": 2, "p": 0.5}
    first = made(tmp_path / "a", pair, rows, **options)
    assert 8 <= len(first) <= 24
    assert {row["label"] for row in first} == {-1}
    assert all(row["id"] == example_id((row["text"], row["text_pair"])) for row in first)
    assert not {(row["text"], row["text_pair"]) for row in rows} & {(row["text"], row["text_pair"]) for row in first}
    backwards = made(tmp_path / "b", pair, rows[::-1], **options)
    assert {row["id"] for row in backwards} == {row["id"] for row in first}
    assert {row["id"] for row in made(tmp_path / "a", pair, rows, **{**options, "seed": 2})} != {
        row["id"] for row in first
    }
    one_side = made(tmp_path / "a", pair, rows, **options, sides="text")
    assert {row["text_pair"] for row in one_side} <= {row["text_pair"] for row in rows}
    if kind == "masked_lm":
        changed = [row for row in first if row["text"].count(",") == 1]
        assert len(changed) == len(first), "what is no word stays"
        words = {word for row in first for word in row["text"].replace(",", "").split()}
        assert words <= set(WORDS)


def test_rows_of_tagging_keep_their_number_of_words(model: str, tmp_path: Path) -> None:
    task = build_task(TaggingConfig(labels=("O", "B-X", "I-X")))
    rows = [{"tokens": ["red", "tree", ",", "big", "house"]}, {"tokens": ["(", "zq", ")"]}]
    found = made(tmp_path, task, rows, kind="masked_lm", model=model, copies=5, p=0.9)
    assert found
    for row in found:
        assert row["label"] == [-1] * len(row["tokens"])
        assert [word for word in row["tokens"] if not word.isalnum()] in ([","], ["(", ")"])
        assert len(row["tokens"]) in (5, 3)


def test_what_was_made_is_read_again_and_a_kill_costs_one_shard(model: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(verb, "_SHARD_ROWS", 3)
    task = build_task(ClassificationConfig())
    rows = [{"text": f"red {word} tree {number}"} for number, word in enumerate(WORDS)]
    whole = made(tmp_path / "whole", task, rows, kind="masked_lm", model=model, copies=2)
    calls: list[int] = []
    real = verb._by_model

    def dies(part: Any, *rest: Any) -> Any:
        calls.append(len(part))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(part, *rest)

    monkeypatch.setattr(verb, "_by_model", dies)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "killed", task, rows, kind="masked_lm", model=model, copies=2)
    assert made(tmp_path / "killed", task, rows, kind="masked_lm", model=model, copies=2) == whole
    assert calls == [3, 3, 3, 2], "the first shard was there"
    assert made(tmp_path / "killed", task, rows, kind="masked_lm", model=model, copies=2) == whole
    assert len(calls) == 4
    assert not made(tmp_path / "none", task, rows, kind="deleting", p=0.0), "copies that equal their rows are left out"


@pytest.mark.parametrize(
    ("augment", "rest", "problem"),
    [
        ({"kind": "masked_lm"}, {}, "data.augment.model: required"),
        ({"kind": "deleting", "top_k": 3}, {}, "data.augment.top_k: unused"),
        (
            {"kind": "deleting", "sides": "text_pair"},
            {},
            "data.augment.sides: unused",
        ),
        ({"kind": "deleting", "of": "both"}, {}, "data.augment.of: required"),
        ({"kind": "short_disorder", "probabilities": [1.0]}, {}, "data.augment.probabilities: value"),
        ({"kind": "deleting"}, {"task": {"kind": "qa"}}, "data.augment: conflict"),
        ({"kind": "deleting"}, {"task": {"kind": "masked_lm"}}, "data.augment: conflict"),
        (
            {"kind": "deleting"},
            {"distill": {"kd_weight": 0, "hard_label_weight": 1}},
            "data.augment: unused",
        ),
        ({"kind": "swap"}, {}, "data.augment.kind: unknown"),
    ],
)
def test_problems_are_named(augment: dict[str, Any], rest: dict[str, Any], problem: str) -> None:
    values = {"name": "x", "teacher": {"model": "some/model"}, "data": {"train": "a/b", "augment": augment}, **rest}
    with pytest.raises(ConfigError) as caught:
        build_experiment(values, check_files=False)
    assert problem in told(caught.value), caught.value


def test_a_model_that_guesses_no_words_is_named_with_its_key(tmp_path: Path) -> None:
    encoder = make_teacher(tmp_path / "encoder").model
    with pytest.raises(ModelError, match=r"^data\.augment\.model: .*encoder is not trained for masked_lm"):
        made(
            tmp_path / "out",
            build_task(ClassificationConfig()),
            [{"text": "red blue"}],
            kind="masked_lm",
            model=encoder,
        )


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("task", "row"),
    [
        ({"kind": "tagging", "labels": ["O", "B-X", "I-X"]}, {"tokens": ["a", "b"]}),
        ({"kind": "qa"}, {"question": "who?", "context": "Ann."}),
        ({"kind": "multilabel", "labels": ["x", "y"]}, {"text": "a"}),
        ({"kind": "regression"}, {"text": "a"}),
    ],
)
def test_rows_without_labels_are_enough_for_every_task(
    task: dict[str, Any], row: dict[str, Any], tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", [row])
    values = {"name": "x", "task": task, "teacher": {"model": "some/model"}, "data": {"unlabeled": path}}
    rows = read_rows(resolve(build_experiment(values)).tasks[0], None, lambda line: None)
    assert (rows.num_labelled, rows.num_unlabeled) == (0, 1)
    nothing = {**values, "data": {}}
    with pytest.raises(ConfigError, match=r"data\.train: required by this command"):
        read_rows(resolve(build_experiment(nothing)).tasks[0], None, lambda line: None)


def test_a_distillation_without_labels_and_with_copies(model: str, tmp_path: Path) -> None:
    tokenizer = build_tokenizer([" ".join(WORDS)], tmp_path / "teacher", max_length=32)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(1)
    names = {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **sizes, **names)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "teacher")
    texts = [{"text": f"{one} {other} road"} for one in WORDS for other in WORDS]
    values = {
        "name": "free",
        "data": {
            "unlabeled": write(tmp_path / "texts.jsonl", texts),
            "augment": {"kind": "masked_lm", "model": model, "copies": 2, "of": "unlabeled"},
        },
        "task": {"max_length": 16},
        "teacher": {"model": str(tmp_path / "teacher")},
        "student": {"shape": {"layers": 1}},
        "train": {"epochs": 2, "threads": 1},
        "store": {"storage_path": str(tmp_path / "runs"), "launcher": "local"},
    }
    planned = raybrew.plan(build_experiment(values))
    run = raybrew.distill(build_experiment(values))
    rows = run.summary["rows"]
    assert rows["train"] == 0
    assert rows["unlabeled"] == 64 + rows["augmented"]
    assert 32 < rows["augmented"] <= 128
    assert planned.training is not None
    assert planned.training.rows == pytest.approx(rows["unlabeled"], rel=0.2)
    found = raybrew.predict(build_experiment(values), str(tmp_path / "texts.jsonl"))
    assert {row["label"] for row in found} <= {"no", "yes"}
    # The control has neither.
    with pytest.raises(ConfigError, match="given 1, but there is no data"):
        build_experiment({**values, "distill": {"hard_label_weight": 1.0}})
    with pytest.raises(ConfigError, match="controls: given true, but there is no data"):
        build_experiment({**values, "sweep": {"space": {"distill.temperature": [1, 2]}}})
    alone = {**values, "data": {"unlabeled": values["data"]["unlabeled"], "augment": {"kind": "deleting"}}}  # type: ignore[index]
    with pytest.raises(ConfigError, match=r"data.augment.of: given 'train', but data.train names no source"):
        raybrew.distill(build_experiment(alone))

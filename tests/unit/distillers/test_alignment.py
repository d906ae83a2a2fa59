"""Labels through alignment and windows: each survives the way there and back, for any text, and nothing else counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from raybrew.config import QAConfig, TaggingConfig
from raybrew.demo.tokenizer import build_tokenizer
from raybrew.errors import DataError
from raybrew.tasks.base import build_task
from raybrew.tasks.heads import ItemHead, SpanHead
from tests.task_helpers import byte_level_tokenizer, encoded_units

RELAXED = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
#: Text as it comes: Latin, Chinese, marks, odd spaces, emoji, what tokenizers drop.
CHARACTERS = st.sampled_from(list("abcdexyz019.,-!'的北京上海 \u3000\u200bé😀ß"))
WORDS = st.lists(st.text(CHARACTERS.filter(lambda c: c != " "), min_size=1, max_size=12), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """WordPiece with few words, and byte-level BPE."""
    folder = tmp_path_factory.mktemp("tokenizers")
    return build_tokenizer(["abc xyz 北 京"], folder, max_length=512), byte_level_tokenizer(folder)


def tagged(sentences: list[list[str]]) -> pa.Table:
    """Rows whose labels count the words, so that a lost or moved one shows."""
    labels = [list(range(len(words))) for words in sentences]
    return pa.table(
        {
            "id": pa.array([bytes(16)] * len(sentences), pa.binary(16)),
            "tokens": pa.array(sentences, pa.list_(pa.string())),
            "label": pa.array(labels, pa.list_(pa.int32())),
        }
    )


@RELAXED
@given(sentences=st.lists(WORDS, min_size=1, max_size=3), max_length=st.integers(8, 24))
def test_every_tag_survives_units_and_alignment(
    sentences: list[list[str]], max_length: int, tokenizers: tuple[Any, Any]
) -> None:
    task = build_task(TaggingConfig(max_length=max_length))
    for own, other in (tokenizers, tokenizers[::-1]):
        units, encoded = encoded_units(task, tagged(sentences), own, other)
        back: list[list[int]] = [[] for _ in sentences]
        for row, labels in zip(encoded["row"], encoded["label"], strict=True):
            back[row] += labels
        assert back == [list(range(len(words))) for words in sentences]
        for ids, items, words in zip(encoded["input_ids"], encoded["items"], encoded["tokens"], strict=True):
            assert len(ids) <= max_length
            assert len(items) == len(words), "an item for each word, whatever the tokenizer"
            pieces = [max(1, len(own.tokenize(f" {word}"))) for word in words]
            assert items == [1 + sum(pieces[:word]) for word in range(len(words))], "the first piece of each word"
            special = {place for place, token in enumerate(ids) if token in (own.cls_token_id, own.sep_token_id)}
            assert not special & set(items)
        assert encoded_units(task, tagged(sentences), other, own)[0].equals(units), "both models see the same units"


def test_words_of_a_byte_level_tokenizer_do_not_run_together(tokenizers: tuple[Any, Any]) -> None:
    tokenizer = tokenizers[1]
    _, encoded = encoded_units(build_task(TaggingConfig()), tagged([["old", "man"]]), tokenizer)
    assert tokenizer.decode(encoded["input_ids"][0], skip_special_tokens=True) == " old man"


def asked(context: str, start: int, end: int, question: str = "who?") -> pa.Table:
    return pa.table(
        {
            "id": pa.array([bytes(16)], pa.binary(16)),
            "question": [question],
            "context": [context],
            "scored": pa.array([[context[start:end]]], pa.list_(pa.string())),
            "label": pa.array([[start, end]], pa.list_(pa.int32())),
        }
    )


def test_a_question_is_not_cut_within_a_character(tokenizers: tuple[Any, Any]) -> None:
    """A byte-level tokenizer has several tokens for one character: the last of twelve are in the middle of it."""
    config = QAConfig(max_length=40, stride=10, max_question=12)
    for tokenizer in tokenizers:
        _, encoded = encoded_units(build_task(config), asked("a b c d " * 20, 0, 1, "00000000ß\u200b"), tokenizer)
        assert len(tokenizer(encoded["question"][0], add_special_tokens=False)["input_ids"]) <= 12
        for window, ids, spans in zip(encoded["window"], encoded["input_ids"], encoded["spans"], strict=True):
            assert len(ids) <= config.max_length
            assert spans[-1][1] == len(window.rstrip()), "the end of a window is not cut off"


@RELAXED
@given(words=WORDS, place=st.integers(0, 39), count=st.integers(1, 4), question=st.text(CHARACTERS, min_size=1))
def test_every_answer_survives_windows_and_alignment(
    words: list[str], place: int, count: int, question: str, tokenizers: tuple[Any, Any]
) -> None:
    words = words * 3
    start_word = place % len(words)
    context = " ".join(words)
    start = len(" ".join(words[:start_word])) + (start_word > 0)
    end = start + len(" ".join(words[start_word : start_word + count]))
    config = QAConfig(max_length=100, stride=40, max_question=12)
    task = build_task(config)
    for tokenizer in tokenizers:
        pieces = tokenizer(context[start:end], add_special_tokens=False)["input_ids"]
        assume(0 < len(pieces) < config.stride)
        assume(len(tokenizer(question)["input_ids"]) > 2)
        _, encoded = encoded_units(task, asked(context, start, end, question), tokenizer)
        covered = set()
        found = []
        for unit, (first, last) in enumerate(encoded["label"]):
            items, spans, offset = encoded["items"][unit], encoded["spans"][unit], encoded["start"][unit]
            ids = encoded["input_ids"][unit]
            assert len(ids) <= config.max_length
            assert items[0] == 0
            assert ids[0] == tokenizer.cls_token_id
            assert not any(ids[item] == tokenizer.sep_token_id for item in items)
            assert all(item > ids.index(tokenizer.sep_token_id) for item in items[1:]), "a token of the question"
            covered |= {offset + at for span in spans[1:] for at in range(*span)}
            if first > 0 and last > 0:
                found.append((offset + spans[first][0], offset + spans[last][1]))
        assert found, "no window holds the answer"
        for left, right in found:
            # Tokens may be wider than the answer, or leave characters at its borders that make no token.
            exact = context[start:end].strip("\u3000\u200b ")
            assert exact.strip() in context[left:right] or context[left:right] in context[start:end]
        whole = {at for span in tokenizer(context, add_special_tokens=False, return_offsets_mapping=True,
                                          )["offset_mapping"] for at in range(*span)}  # fmt: skip
        assert whole <= covered, "windows leave out a part of the context"


def test_answers_map_back_exactly_at_word_borders(tokenizers: tuple[Any, Any]) -> None:
    words = [f"abc{number} xyz," for number in range(60)]
    context = " ".join(words)
    task = build_task(QAConfig(max_length=80, stride=24, max_question=8))
    start = context.index("abc41")
    for tokenizer in tokenizers:
        _, encoded = encoded_units(task, asked(context, start, start + 9), tokenizer)
        assert len(encoded["label"]) > 2
        spans = [
            (encoded["start"][unit] + encoded["spans"][unit][first][0],
             encoded["start"][unit] + encoded["spans"][unit][last][1])
            for unit, (first, last) in enumerate(encoded["label"]) if last > 0
        ]  # fmt: skip
        assert {context[left:right] for left, right in spans} == {"abc41 xyz"}


def test_a_window_with_a_part_of_an_answer_has_no_label(tokenizers: tuple[Any, Any]) -> None:
    context = " ".join(f"abc{number}" for number in range(60))
    task = build_task(QAConfig(max_length=80, stride=8, max_question=8))
    end = context.index("abc50")
    _, encoded = encoded_units(task, asked(context, context.index("abc20"), end), tokenizers[0])
    assert len(encoded["label"]) > 2
    for unit, label in enumerate(encoded["label"]):
        start = encoded["start"][unit]
        overlaps = start < end and start + encoded["spans"][unit][-1][1] > context.index("abc20")
        assert label == ([-1, -1] if overlaps else [0, 0])


def test_tokenizers_that_cannot_align_are_refused() -> None:
    class Slow:
        is_fast = False
        name_or_path = "models/slow"

        def num_special_tokens_to_add(self, pair: bool = False) -> int:
            return 3

    with pytest.raises(DataError, match="models/slow: Slow has no offsets"):
        build_task(TaggingConfig()).units(tagged([["a"]]), (Slow(),))
    with pytest.raises(DataError, match="models/slow: Slow has no offsets"):
        build_task(QAConfig()).units(asked("a b", 0, 1), (Slow(),))


@RELAXED
@given(counts=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_padded_items_reach_no_loss(counts: list[int], seed: int) -> None:
    """Whatever stands where there is no item, NaN included: sums, counts and gradients are those of the items."""
    random = np.random.default_rng(seed)
    most, classes = max(counts) + 2, 3
    mask = torch.from_numpy(np.arange(most) < np.array(counts)[:, None]).float()
    labels = torch.from_numpy(random.integers(-1, classes, (len(counts), most)))
    logits = torch.from_numpy(random.normal(size=(len(counts), most, classes)))
    for filling in (0.0, 1e6, float("nan")):
        padded = logits.masked_fill(mask[..., None] == 0, filling).requires_grad_()
        batch = {"item_mask": mask, "logits_mask": torch.ones(len(counts)), "labels": labels}
        term = ItemHead().label_loss(padded, batch)
        expected = sum(
            -logits[row, item].log_softmax(-1)[labels[row, item]]
            for row, count in enumerate(counts)
            for item in range(count)
            if labels[row, item] >= 0
        )
        assert term.sum.item() == pytest.approx(float(expected), rel=1e-5, abs=1e-5)
        assert term.count.item() == float(ItemHead().num_labelled(batch))
        (gradient,) = torch.autograd.grad(term.sum, padded)
        assert bool((gradient[mask == 0] == 0).all())

        spans = torch.from_numpy(np.array([[random.integers(count), random.integers(count)] for count in counts]))
        ends = padded[..., :2]
        batch["labels"] = spans
        term = SpanHead().label_loss(ends, batch)
        expected = sum(
            -logits[row, :count, side].log_softmax(-1)[spans[row, side]]
            for row, count in enumerate(counts)
            for side in range(2)
        )
        assert term.sum.item() == pytest.approx(float(expected), rel=1e-5, abs=1e-5)
        assert term.count.item() == float(SpanHead().num_labelled(batch)) == 2 * len(counts)
        (gradient,) = torch.autograd.grad(term.sum, padded)
        assert bool((gradient[mask == 0] == 0).all())

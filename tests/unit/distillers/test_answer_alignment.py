"""Answers between tokenizers that cut a text differently: common windows, and starts and ends by their characters."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from family_models import TEXTS, make_tokenizer, rows_of, save_family_teacher, without_latency
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from task_helpers import encoded_units
from torch import Tensor

import raybrew
from raybrew.config import QAConfig
from raybrew.config.loading import build_experiment
from raybrew.data.encoded import encode_rows
from raybrew.distillers.alignment import AlignedAnswers, align_answers
from raybrew.errors import ModelError
from raybrew.signals import LOGITS
from raybrew.tasks.base import build_task
from unit.distillers.test_alignment import asked
from unit.models.test_families import experiment_of

RELAXED = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KINDS = ("wordpiece", "bytes", "unigram")
WORDS = sorted(
    {word for text in TEXTS for word in text.split()} | {"北京上海", "😀", "é", "unheard-of-and-very-long-word"}
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {kind: make_tokenizer(kind, folder / kind) for kind in KINDS}


@RELAXED
@given(
    words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=60),
    question=st.lists(st.sampled_from(WORDS), min_size=1, max_size=20),
    place=st.integers(0, 59),
    count=st.integers(1, 3),
    pair=st.sampled_from([("wordpiece", "bytes"), ("bytes", "unigram"), ("unigram", "wordpiece")]),
)
def test_windows_fit_both_tokenizers_and_keep_every_answer(
    words: list[str], question: list[str], place: int, count: int, pair: tuple[str, str], tokenizers: dict[str, Any]
) -> None:
    config = QAConfig(max_length=100, stride=40, max_question=20)
    task = build_task(config)
    context = " ".join(words)
    first = place % len(words)
    start = len(" ".join(words[:first])) + (first > 0)
    end = start + len(" ".join(words[first : first + count]))
    both = [tokenizers[kind] for kind in pair]
    row = asked(context, start, end, " ".join(question))
    for tokenizer in both:
        pieces = tokenizer(context[start:end], add_special_tokens=False)["input_ids"]
        assume(0 < len(pieces) < config.stride)
    units, encoded = encoded_units(task, row, both[0], both[1])
    assert encoded_units(task, row, both[1], both[0])[0].equals(units), "both models see the same windows"
    covered: set[int] = set()
    held = 0
    for offset, window, asks in zip(encoded["start"], encoded["window"], encoded["question"], strict=True):
        assert context[offset : offset + len(window)] == window
        covered |= set(range(offset, offset + len(window)))
        held += offset <= start and offset + len(window) >= end
        for tokenizer in both:
            assert len(tokenizer(asks, window)["input_ids"]) <= config.max_length, "a window would be cut off"
    assert covered == set(range(len(context)))
    assert held, "no window holds the answer whole"


@RELAXED
@given(data=st.data(), rows=st.integers(1, 3))
def test_probabilities_move_to_the_tokens_that_hold_their_characters(data: st.DataObject, rows: int) -> None:
    def spans() -> np.ndarray:
        edges = sorted({0, 30} | set(data.draw(st.lists(st.integers(1, 29), min_size=1, max_size=12))))
        return np.array([[0, 0], *itertools.pairwise(edges)])

    theirs, ours = [spans() for _ in range(rows)], [spans() for _ in range(rows)]
    most = max(map(len, theirs))
    logits = torch.from_numpy(np.random.default_rng(rows).normal(size=(rows, most, 2)) * 3).float()
    found = align_answers(logits, theirs, ours)
    assert found.shape == (rows, max(map(len, ours)), 2)
    for row in range(rows):
        for side in range(2):
            shares = logits[row, : len(theirs[row]), side].softmax(0)
            expected = torch.zeros(len(ours[row]))
            for item, share in enumerate(shares):
                if item == 0:
                    expected[0] += share
                    continue
                character = theirs[row][item][0] if side == 0 else theirs[row][item][1] - 1
                for token, (left, right) in enumerate(ours[row]):
                    if left <= character < right:
                        expected[token] += share
            torch.testing.assert_close(found[row, : len(ours[row]), side].softmax(0), expected)
    torch.testing.assert_close(
        align_answers(logits, theirs, theirs).softmax(1)[0, : len(theirs[0])],
        logits[0, : len(theirs[0])].softmax(0)[None][0],
    )


@pytest.mark.parametrize("pair", [("wordpiece", "bytes"), ("bytes", "wordpiece"), ("unigram", "bytes")])
def test_a_sure_teacher_points_at_the_students_own_label(
    pair: tuple[str, str], tokenizers: dict[str, Any], tmp_path: Path
) -> None:
    """Logits that are sure of the label in the teacher's tokens become sure of it in the student's."""
    task = build_task(QAConfig(max_length=60, stride=16, max_question=12))
    context = " ".join(TEXTS)
    words = ["Lisbon", "Peter in Paris", "a hundred and twenty minutes", "Siemens", "Oslo", "Clara"]
    starts = [context.index(word) for word in words]
    table = pa.concat_tables(
        [asked(context, start, start + len(word), f"where {start}?") for word, start in zip(words, starts, strict=True)]
    )
    ours, theirs = (
        encode_rows(table, task, tokenizers[one], tmp_path, others=[tokenizers[other]])
        for one, other in (pair, pair[::-1])
    )
    assert ours.num_rows == theirs.num_rows > len(words)
    assert np.array_equal(ours.ids, theirs.ids)

    def stored(rows: np.ndarray, length: int | None) -> dict[Any, Tensor]:
        batch = theirs.targets(rows)
        logits = torch.zeros(len(rows), batch["items"].shape[1], 2)
        for row, label in enumerate(batch["labels"]):
            for side in range(2):
                logits[row, max(label[side], 0), side] = 20.0
        return {LOGITS: logits}

    rows = np.arange(ours.num_rows)
    found = AlignedAnswers(stored, theirs, ours)(rows, None)[LOGITS]
    labels = ours.targets(rows)["labels"]
    answered = 0
    for row in rows[(labels >= 0).all(axis=1)]:
        assert found[row].argmax(dim=0).tolist() == labels[row].tolist()
        answered += bool(labels[row][0])
    assert answered >= len(words)


def test_a_student_with_another_tokenizer_answers_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_latency(monkeypatch)
    experiment = experiment_of(tmp_path, "bert", "qa", distill={"temperature": 4.0})
    student = save_family_teacher("roberta", tmp_path / "student", "qa", ("LABEL_0", "LABEL_1"), seed=1)
    values = experiment.plain() | {
        "student": {"model": student},
        "train": {**experiment.plain()["train"], "max_steps": 6},
    }
    other = build_experiment(values)
    store = raybrew.capture(other)
    run = raybrew.distill(other)
    assert run.summary["teacher"]["fingerprint"] == store.fingerprint, "what capture kept is what the student reads"
    assert run.summary["distill"]["source"] == "store"
    records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if record["kind"] == "train"]
    assert losses
    assert all(np.isfinite(losses))
    assert raybrew.evaluate(other).metrics == pytest.approx(run.metrics)
    assert len(raybrew.predict(other, rows_of("qa", tmp_path / "new.jsonl", 2))) == 2

    hidden = build_experiment(values | {"name": "h", "distill": {"matches": [{"loss": "hidden_mse"}]}})
    with pytest.raises(ModelError, match=r"token by token.*pooled_mse and pooled_cos compare rows instead"):
        raybrew.distill(hidden)
    squares = build_experiment(values | {"name": "s", "distill": {"kd_loss": {"kind": "mse"}}})
    with pytest.raises(ModelError, match=r"distill\.kd_loss\.kind: given 'mse', but start and end.*: auto, ce, kl"):
        raybrew.distill(squares)

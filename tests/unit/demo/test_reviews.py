"""The demo's reviews: deterministic, balanced, disjoint, and not solvable by single words."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from raybrew.demo.recipe import NUM_EVAL, NUM_LABELLED
from raybrew.demo.reviews import CONSTRUCTS, Review, build_splits, generate_reviews, write_splits
from raybrew.demo.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def splits() -> object:
    return build_splits(0, NUM_LABELLED, 3000, NUM_EVAL)


def test_the_same_everywhere() -> None:
    found = generate_reviews(200, seed=3)
    digest = hashlib.sha256("\n".join(f"{r.label} {r.text}" for r in found).encode()).hexdigest()
    assert digest == "64e96f3f206fc41bef851d8fd41a4481c32648b20baabee9bea7a447c2524888"
    assert found == generate_reviews(200, seed=3)
    assert found != generate_reviews(200, seed=4)


def test_balanced_disjoint_and_of_every_construct(splits: object) -> None:
    parts = [splits.labelled, splits.unlabelled, splits.eval]  # type: ignore[attr-defined]
    texts = [review.text for part in parts for review in part]
    assert len(set(texts)) == len(texts)
    for part in parts:
        assert sum(review.label for review in part) * 2 == len(part)
        assert {review.construct for review in part} == set(CONSTRUCTS)


def test_single_words_do_not_tell(splits: object) -> None:
    """Naive Bayes over words, trained on the labelled reviews, stays far below what the demo's models reach."""

    def words(review: Review) -> set[str]:
        return set(re.findall(r"\w+", review.text.lower()))

    counts = (Counter[str](), Counter[str]())
    for review in splits.labelled:  # type: ignore[attr-defined]
        counts[review.label].update(words(review))
    half = NUM_LABELLED / 2

    def score(review: Review) -> float:
        return sum(
            math.log((counts[1][word] + 1) / (half + 2)) - math.log((counts[0][word] + 1) / (half + 2))
            for word in words(review)
        )

    evaluation = splits.eval  # type: ignore[attr-defined]
    accuracy = sum((score(review) > 0) == bool(review.label) for review in evaluation) / len(evaluation)
    assert 0.5 < accuracy < 0.8


def test_files_hold_no_label_of_unlabelled_reviews(tmp_path: Path) -> None:
    paths = write_splits(tmp_path, build_splits(0, 10, 6, 4))
    rows = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in paths.items()}
    assert {name: len(found) for name, found in rows.items()} == {"train": 10, "unlabeled": 6, "eval": 4}
    assert all(set(row) == {"text"} for row in rows["unlabeled"])
    assert all(set(row) == {"text", "label"} for row in rows["train"] + rows["eval"])


def test_the_tokenizer_knows_its_texts(tmp_path: Path) -> None:
    texts = [review.text for review in generate_reviews(300, seed=1)]
    build_tokenizer(texts, tmp_path, max_length=64)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    encoded = tokenizer(texts)
    assert all(tokenizer.unk_token_id not in ids for ids in encoded["input_ids"])
    assert 10 < sum(map(len, encoded["input_ids"])) / len(texts) < 40
    assert tokenizer.decode(encoded["input_ids"][0], skip_special_tokens=True).split()[0] == texts[0].lower().split()[0]
    assert tokenizer.unk_token_id not in tokenizer("unheard zyzzyva")["input_ids"]

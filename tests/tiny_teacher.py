"""A random BERT teacher of two layers, 32 wide, and rows for it: what tests of the store share."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from transformers import BertConfig, BertForSequenceClassification

from raybrew.config import ClassificationConfig, Columns, StoreConfig
from raybrew.demo.tokenizer import build_tokenizer
from raybrew.models.loading import ModelSource
from raybrew.tasks.base import Task, build_task
from raybrew.tasks.values import example_id

__all__ = ["CLASSES", "WIDTH", "make_rows", "make_teacher", "ragged_rows", "small_store", "task_of", "tree"]

WIDTH, CLASSES = 32, 3
_WORDS = tuple(f"{a}{b}" for a in ("ko", "ma", "ti", "re", "su") for b in ("la", "ne", "ro", "ti"))


def make_teacher(folder: Path, seed: int = 0, loud: float = 1.0) -> ModelSource:
    """Saves a teacher into `folder`; `loud` multiplies the weight of the embeddings' normalisation (overflow)."""
    tokenizer = build_tokenizer([" ".join(_WORDS)], folder, max_length=64)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertForSequenceClassification(
            BertConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=48,
                max_position_embeddings=64,
                num_labels=CLASSES,
            )
        )
    model.bert.embeddings.LayerNorm.weight.data.mul_(loud)
    model.save_pretrained(folder)
    return ModelSource(str(folder))


def make_rows(count: int, seed: int = 0, pair: bool = False) -> pa.Table:
    """`count` different rows of 1 to 12 words with ids; the labels must not matter to a store."""
    rng = np.random.default_rng(seed)
    texts = [f"{' '.join(rng.choice(_WORDS, rng.integers(1, 12)))} {seed} {number}" for number in range(count)]
    return ragged_rows(texts, [text[::-1] for text in texts] if pair else None)


def ragged_rows(texts: list[str], pairs: list[str] | None = None) -> pa.Table:
    """Parsed rows of the given texts, as `load_rows` gives them."""
    contents = [(text,) for text in texts] if pairs is None else list(zip(texts, pairs, strict=True))
    columns = {"id": pa.array([example_id(content) for content in contents], pa.binary(16)), "text": pa.array(texts)}
    if pairs is not None:
        columns["text_pair"] = pa.array(pairs)
    return pa.table({**columns, "label": pa.array([number % CLASSES for number in range(len(texts))], pa.int32())})


def task_of(max_length: int = 32, pair: bool = False) -> Task:
    """Classification of `text` (and `text_pair`)."""
    return build_task(ClassificationConfig(max_length=max_length), Columns(text_pair="text_pair" if pair else None))


def small_store(**changes: object) -> StoreConfig:
    """Ten rows a shard, in this process."""
    return StoreConfig(**{"rows_per_shard": 10, "batch_tokens": 64, "launcher": "local", **changes})  # type: ignore[arg-type]


def tree(root: Path) -> dict[str, str]:
    """Relative path -> hash of every file below `root`, lock and date of use left out."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in (".lock", ".readers", ".used")
    }

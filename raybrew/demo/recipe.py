"""The demo in numbers: enough labels for the teacher, and too few steps for a student that has only labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["EXPERIMENT", "NUM_EVAL", "NUM_LABELLED", "NUM_UNLABELLED", "TEACHER"]

NUM_LABELLED = 5000
NUM_UNLABELLED = 10000
NUM_EVAL = 2000

#: Sizes of the teacher, by the names of a BERT config. A wide spread of initial weights shortens training from scratch.
TEACHER: Mapping[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "num_attention_heads": 8,
    "intermediate_size": 512,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.05,
}

#: The experiment file, less its paths.
EXPERIMENT: dict[str, Any] = {
    "name": "demo",
    "data": {},
    "task": {"max_length": 64},
    "teacher": {"finetune": {"epochs": 10, "batch_size": 32, "learning_rate": 1e-3}},
    "student": {"shape": {"layers": 2, "hidden": 64, "heads": 4}, "init": "random"},
    "distill": {"temperature": 2.0, "kd_loss": {"kind": "kl"}, "matches": [{"loss": "hidden_mse", "layers": "even"}]},
    "train": {"epochs": 2, "batch_size": 32, "learning_rate": 2e-3},
    "store": {"rows_per_shard": 3000},
}

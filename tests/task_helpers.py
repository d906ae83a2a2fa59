"""What tests of tasks share: units in memory, and tokenizers of two kinds with a small vocabulary."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerBase, RobertaTokenizerFast  # type: ignore[attr-defined]

__all__ = ["InMemory", "byte_level_tokenizer", "encoded_units"]


class InMemory:
    """Columns of units, as `raybrew.tasks.base.Units` asks for them."""

    def __init__(self, **columns: Any) -> None:
        self.columns = columns

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.columns.values())))

    def values(self, name: str) -> Any:
        return self.columns[name]


def encoded_units(task: Any, rows: pa.Table, tokenizer: Any, *others: Any) -> tuple[pa.Table, dict[str, Any]]:
    """Units of source rows, and their columns for models."""
    units = task.units(rows, (tokenizer, *others))
    given = {name: units.column(name).to_pylist() for name in units.column_names if name != "id"}
    return units, {**given, **task.encode(tokenizer, given)}


def byte_level_tokenizer(folder: Any) -> PreTrainedTokenizerBase:
    """A RoBERTa tokenizer with few merges, so that words have several pieces."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(["the old man and the sea", "Paris London 北京 上海"] * 5, vocab_size=290)
    trained.save_model(str(folder))
    return RobertaTokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))

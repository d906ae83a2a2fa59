"""Masked language modelling: tokens of plain text are hidden, and the model guesses them.

Which ones is no part of a unit: `raybrew.data.masking` hides others in every epoch, as `Masking` says. Mask tokens that
stand in a text itself are its items, which is how `raybrew predict` fills them in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raybrew.config.data import Columns
from raybrew.config.task_kinds import MaskedLMConfig
from raybrew.errors import DataError
from raybrew.tasks.base import Labels, Masking, Units
from raybrew.tasks.values import example_id, text_of
from raybrew.tasks.windows import cut_windows, offsets_of

if TYPE_CHECKING:
    import pyarrow as pa

    from raybrew.tasks.heads import Head
    from raybrew.tasks.scores import RowScores

__all__ = ["MaskedLM"]

_BATCH_ROWS = 256
_NEEDS = "masked language modelling: texts cannot be cut between words"


@dataclasses.dataclass(frozen=True)
class MaskedLM:
    """Rows of text; see `raybrew.tasks.base.Task` for the contract."""

    config: MaskedLMConfig
    source: Columns = dataclasses.field(default_factory=Columns)

    kind = "masked_lm"
    names_labels = False
    keeps_rows = False
    unit_name = "texts"
    label_column = None
    content_columns = ("text",)
    optional_columns: tuple[str, ...] = dataclasses.field(default=(), init=False)

    @property
    def fixed_labels(self) -> Labels:
        return Labels((), named=False)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.source.text,)

    def schema(self) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([pa.field("text", pa.string()), pa.field("label", pa.list_(pa.int32()))])

    def parse(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        return {"text": text_of(raw, self.source.text)}

    def raw_label(self, raw: Mapping[str, Any], names: Sequence[str] | None = None) -> Any:
        raise AssertionError("a text is its own label")

    def label_id(self, value: str | int | None, labels: Labels, names_of_source: Sequence[str] | None) -> int:
        raise AssertionError("a text is its own label")

    def complete_labels(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return names

    def no_label(self, parsed: Mapping[str, Any]) -> list[int]:
        return []

    def untrainable(self, rows: pa.Table, labels: Labels) -> str | None:
        return None

    def content(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return (row["text"],)

    def units(self, rows: pa.Table, tokenizers: Sequence[Any]) -> pa.Table:
        """Whole texts or parts of them, cut between words: `text`, `label` and `row`. DataError for two tokenizers."""
        import pyarrow as pa

        if len(tokenizers) > 1:
            raise DataError(
                "masked language models are compared token by token over one vocabulary, and the tokenizers of student "
                "and teacher differ; take a student with the teacher's tokenizer"
            )
        tokenizer = tokenizers[0]
        room = self.config.max_length - tokenizer.num_special_tokens_to_add()
        columns: dict[str, list[Any]] = {name: [] for name in ("id", "text", "label", "row")}
        for first in range(0, rows.num_rows, _BATCH_ROWS):
            texts = rows.column("text").slice(first, _BATCH_ROWS).to_pylist()
            for place, (text, found) in enumerate(zip(texts, offsets_of(tokenizer, texts, _NEEDS), strict=True)):
                for start, end in cut_windows(len(text), *found, room, 0):
                    columns["id"].append(example_id((text[start:end],)))
                    columns["text"].append(text[start:end])
                    columns["label"].append([])
                    columns["row"].append(first + place)
        types = {"id": pa.binary(16), "text": pa.string(), "label": pa.list_(pa.int32())}
        return pa.table({name: pa.array(values, types.get(name, pa.int32())) for name, values in columns.items()})

    def encode(self, tokenizer: Any, units: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Token ids; `items`, the mask tokens that the text itself has; `begins`, the tokens with which words begin."""
        mask = _mask_token_id(tokenizer)
        encoded = tokenizer(
            list(units["text"]), truncation=True, max_length=self.config.max_length, return_attention_mask=False
        )
        columns = {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
        columns["items"] = [
            [place for place, token in enumerate(tokens) if token == mask] for tokens in encoded["input_ids"]
        ]
        columns["label"] = [[-1] * len(items) for items in columns["items"]]
        if self.config.whole_words:
            if tokenizer.backend_tokenizer.pre_tokenizer is None:
                raise DataError(
                    f"task.whole_words: {type(tokenizer).__name__} does not cut texts into words; set it to false"
                )
            columns["begins"] = [
                [int(place == 0 or word is None or word != words[place - 1]) for place, word in enumerate(words)]
                for words in (encoded.word_ids(place) for place in range(len(encoded["input_ids"])))
            ]
        return columns

    def lost_labels(self, units: Units, rows: pa.Table) -> dict[int, str]:
        return {}

    def encode_settings(self) -> dict[str, Any]:
        return {"max_length": self.config.max_length, "whole_words": self.config.whole_words}

    @property
    def masking(self) -> Masking:
        config = self.config
        return Masking(config.mask_rate, config.masked, config.randomised, config.whole_words)

    @property
    def head(self) -> Head:
        from raybrew.tasks.heads import VocabularyHead

        return VocabularyHead(self.config.top_k)

    def metrics(self, outputs: Any, units: Units, rows: pa.Table | None, labels: Labels) -> dict[str, float]:
        """Share of the hidden tokens that are guessed, mean log-probability of them, and perplexity."""
        guesses = np.concatenate([items[:, :2] for items in outputs]).astype(np.float64)
        if not len(guesses):
            raise DataError("data.eval: no row has a token that could be hidden")
        log_likelihood, accuracy = guesses.mean(axis=0).tolist()
        return {
            "accuracy": accuracy,
            "log_likelihood": log_likelihood,
            "perplexity": float(np.exp(min(-log_likelihood, 700.0))),
        }

    def row_scores(self, outputs: Any, units: Units, rows: pa.Table | None, labels: Labels) -> RowScores:
        """Of each text its hidden tokens, how many of them are guessed, and their summed log-probability."""
        from raybrew.tasks.scores import answers_key, mean_scores

        of_row = np.asarray(units.values("row"))
        sums = np.zeros((int(of_row[-1]) + 1, 3))  # log-probability, right guesses, hidden tokens
        for row, items in zip(of_row, outputs, strict=True):
            sums[row] += [*items[:, :2].astype(np.float64).sum(axis=0), len(items)]
        columns = {"accuracy": sums[:, 1], "log_likelihood": sums[:, 0], "tokens": sums[:, 2]}
        return mean_scores("tokens", columns, answers_key(units.values("id"), sums[:, 2]))

    def predictions(self, outputs: Any, units: Units, rows: pa.Table, labels: Labels) -> list[dict[str, Any]]:
        """`masks`: for each mask token of a text the best tokens, each with its probability. `labels`: all tokens.

        DataError if no text has a mask token.
        """
        found: list[dict[str, Any]] = [{"masks": []} for _ in range(rows.num_rows)]
        for items, row in zip(outputs, np.asarray(units.values("row")).tolist(), strict=True):
            count = (items.shape[1] - 2) // 2
            for item in items:
                best = zip(item[2 : 2 + count].tolist(), item[2 + count :].astype(int).tolist(), strict=True)
                found[row]["masks"].append(
                    [{"token": labels.names[token], "score": round(float(np.exp(score)), 6)} for score, token in best]
                )
        if not any(row["masks"] for row in found):
            raise DataError("no text holds the model's mask token ([MASK], <mask>): there is nothing to fill in")
        return found


def _mask_token_id(tokenizer: Any) -> int:
    if tokenizer.mask_token_id is None:
        raise DataError(f"{type(tokenizer).__name__} has no mask token; masked language modelling needs one")
    return int(tokenizer.mask_token_id)

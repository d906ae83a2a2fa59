"""Token classification: one tag for each word. The first piece of a word stands for it; a word is an item.

Long sentences are cut between words into units, so no word is lost, and each word of each unit is an item for any
tokenizer: outputs of a teacher fit a student with another one, word by word.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from raybrew.config.data import Columns
from raybrew.config.task_kinds import TaggingConfig
from raybrew.errors import DataError
from raybrew.tasks.base import BadValue, Labels, Units
from raybrew.tasks.schemes import all_tags, bio_of_iob1, broken_rule, spans_of
from raybrew.tasks.values import checked_text, example_id, label_id, name_or_number

if TYPE_CHECKING:
    import pyarrow as pa

    from raybrew.tasks.heads import Head
    from raybrew.tasks.scores import RowScores

__all__ = ["Tagging", "glues_words"]

_BATCH_ROWS = 1024


@dataclasses.dataclass(frozen=True)
class Tagging:
    """Rows of words with one tag each; see `raybrew.tasks.base.Task` for the contract."""

    config: TaggingConfig
    source: Columns = dataclasses.field(default_factory=Columns)

    kind = "tagging"
    names_labels = True
    keeps_rows = False
    unit_name = "sentences"
    masking = None
    optional_columns: tuple[str, ...] = dataclasses.field(default=(), init=False)

    @property
    def fixed_labels(self) -> Labels | None:
        return None if self.config.labels is None else Labels(self.config.labels)

    # Columns of CoNLL files have numbers, and the readers take what stands in the configuration.
    @property
    def columns(self) -> tuple[str, ...]:
        return (self.source.tokens,)  # type: ignore[return-value]

    @property
    def label_column(self) -> str:
        return self.source.tags  # type: ignore[return-value]

    @property
    def content_columns(self) -> tuple[str, ...]:
        return ("tokens",)

    def schema(self) -> pa.Schema:
        import pyarrow as pa

        return pa.schema([pa.field("tokens", pa.list_(pa.string())), pa.field("label", pa.list_(pa.int32()))])

    def parse(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        column = self.columns[0]
        if column not in raw:
            raise BadValue(column, f"missing; the row has {', '.join(map(repr, raw)) or 'no columns'}")
        words = raw[column]
        if not isinstance(words, list):
            raise BadValue(column, f"a list of words expected, got {type(words).__name__}")
        if not words:
            raise BadValue(column, "empty")
        for place, word in enumerate(words):
            if not isinstance(word, str):
                raise BadValue(column, f"word {place + 1} is no text but {type(word).__name__}")
            if not word:
                raise BadValue(column, f"word {place + 1} is empty")
            checked_text(word, column)
        return {"tokens": words}

    def raw_label(self, raw: Mapping[str, Any], names: Sequence[str] | None = None) -> tuple[str, ...] | None:
        column = self.label_column
        values = raw.get(column)
        if values is None:
            return None
        if not isinstance(values, list):
            raise BadValue(column, f"a list of tags expected, got {type(values).__name__}")
        words = raw[self.columns[0]]
        if len(values) != len(words):
            raise BadValue(column, f"{len(values)} tags for {len(words)} words; each word needs one")
        tags = tuple(self._tag(value, place, names) for place, value in enumerate(values))
        scheme = self.config.scheme
        if scheme == "none":
            return tags
        problem = broken_rule(tags, scheme)
        if problem is not None:
            raise BadValue(column, problem)
        return bio_of_iob1(tags) if scheme == "iob1" else tags

    def _tag(self, value: Any, place: int, names: Sequence[str] | None) -> str:
        found = name_or_number(value, self.label_column)
        if found is None:
            raise BadValue(self.label_column, f"word {place + 1} has no tag")
        if isinstance(found, str) or (self.config.scheme == "none" and names is None):
            return str(found)
        if names is None:
            raise BadValue(
                self.label_column, "tags are numbers, and nothing names them; set task.labels in the order of numbers"
            )
        if not 0 <= found < len(names):
            raise BadValue(self.label_column, f"tag number {found} of word {place + 1} is outside 0..{len(names) - 1}")
        return names[found]

    def label_id(self, value: str | int | None, labels: Labels, names_of_source: Sequence[str] | None) -> int:
        return label_id(value, labels, None, self.label_column)

    def complete_labels(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return names if self.config.scheme == "none" else all_tags(names, self.config.scheme)

    def no_label(self, parsed: Mapping[str, Any]) -> list[int]:
        return [-1] * len(parsed["tokens"])

    def untrainable(self, rows: pa.Table, labels: Labels) -> str | None:
        present = rows.column("label").combine_chunks().values.unique().to_pylist()
        if len(present) > 1:
            return None
        return f"all words have the tag {labels.names[present[0]]!r} (column {self.label_column!r}): nothing to learn"

    def content(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(row["tokens"])

    def units(self, rows: pa.Table, tokenizers: Sequence[Any]) -> pa.Table:
        """Whole sentences or parts of them: `tokens`, `label`, `row` and `start`, the row's word that is the first."""
        import pyarrow as pa

        columns: dict[str, list[Any]] = {name: [] for name in ("id", "tokens", "label", "row", "start")}
        for first in range(0, rows.num_rows, _BATCH_ROWS):
            part = rows.slice(first, _BATCH_ROWS)
            sentences, labels = part.column("tokens").to_pylist(), part.column("label").to_pylist()
            cuts = self._cuts(sentences, tokenizers)
            for place, (words, tags) in enumerate(zip(sentences, labels, strict=True)):
                for start, end in itertools.pairwise(cuts[place]):
                    unit = words[start:end]
                    columns["id"].append(example_id(tuple(unit)))
                    columns["tokens"].append(unit)
                    columns["label"].append(tags[start:end])
                    columns["row"].append(first + place)
                    columns["start"].append(start)
        types = {"id": pa.binary(16), "tokens": pa.list_(pa.string()), "label": pa.list_(pa.int32())}
        return pa.table({name: pa.array(values, types.get(name, pa.int32())) for name, values in columns.items()})

    def _cuts(self, sentences: Sequence[list[str]], tokenizers: Sequence[Any]) -> list[list[int]]:
        """For each sentence the words where a unit begins, and its length at the end."""
        sizes = [_pieces_per_word(tokenizer, sentences) for tokenizer in tokenizers]
        room = [self.config.max_length - tokenizer.num_special_tokens_to_add() for tokenizer in tokenizers]
        cuts = []
        for place, words in enumerate(sentences):
            found, filled = [0], [0] * len(tokenizers)
            for word in range(len(words)):
                needed = [min(size[place][word], limit) for size, limit in zip(sizes, room, strict=True)]
                filled = [before + more for before, more in zip(filled, needed, strict=True)]
                if any(now > limit for now, limit in zip(filled, room, strict=True)):
                    found.append(word)
                    filled = needed
            cuts.append([*found, len(words)])
        return cuts

    def encode(self, tokenizer: Any, units: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Token ids, and in `items` the position of the first piece of each word."""
        encoded, _ = _tokenize(tokenizer, units["tokens"], self.config.max_length)
        items = []
        for place, words in enumerate(units["tokens"]):
            first: dict[int, int] = {}
            for position, word in enumerate(encoded.word_ids(place)):
                if word is not None:
                    first.setdefault(word, position)
            if len(first) != len(words):
                raise DataError(f"{len(words)} words became {len(first)} in {' '.join(words)[:80]!r}")
            items.append([first[word] for word in range(len(words))])
        columns = {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
        return {**columns, "items": items}

    def lost_labels(self, units: Units, rows: pa.Table) -> dict[int, str]:
        return {}

    def encode_settings(self) -> dict[str, Any]:
        return {"max_length": self.config.max_length}

    @property
    def head(self) -> Head:
        from raybrew.tasks.heads import ItemHead

        return ItemHead()

    def metrics(self, outputs: Any, units: Units, rows: pa.Table | None, labels: Labels) -> dict[str, float]:
        """F1, precision and recall of whole spans by seqeval (micro average), accuracy of words.

        Without spans (scheme `none`): accuracy and macro-F1 of words.
        """
        best = [logits.argmax(axis=-1) for logits in outputs]
        predicted = _whole_rows(best, units, labels.names)
        truth = _whole_rows(units.values("label"), units, labels.names)
        flat_truth = [tag for row in truth for tag in row]
        flat_predicted = [tag for row in predicted for tag in row]
        from sklearn.metrics import accuracy_score, f1_score

        accuracy = float(accuracy_score(flat_truth, flat_predicted))
        macro = float(
            f1_score(flat_truth, flat_predicted, average="macro", labels=list(labels.names), zero_division=0.0)
        )
        if self.config.scheme == "none":
            return {"accuracy": accuracy, "macro_f1": macro}
        from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

        precision, recall, f1, _ = precision_recall_fscore_support(truth, predicted, average="micro", zero_division=0)
        spans = {"f1": float(f1), "precision": float(precision), "recall": float(recall)}
        return {**spans, "accuracy": accuracy, "macro_f1": macro}

    def row_scores(self, outputs: Any, units: Units, rows: pa.Table | None, labels: Labels) -> RowScores:
        """Counts of each span type, as seqeval finds spans, and of each tag; without spans of each tag alone."""
        from raybrew.tasks.scores import tag_scores

        predicted = _whole_rows([logits.argmax(axis=-1) for logits in outputs], units, labels.names)
        truth = _whole_rows(units.values("label"), units, labels.names)
        return tag_scores(truth, predicted, labels.names, spans=self.config.scheme != "none")

    def predictions(self, outputs: Any, units: Units, rows: pa.Table, labels: Labels) -> list[dict[str, Any]]:
        """`tags` of the words and, with a scheme, `spans`: type, words from `start` to `end` (exclusive), their mean
        probability of the chosen tags."""
        from scipy.special import softmax

        probabilities = [softmax(logits, axis=-1) for logits in outputs]
        tags = _whole_rows([values.argmax(axis=-1) for values in probabilities], units, labels.names)
        scores = _joined([values.max(axis=-1) for values in probabilities], units)
        if self.config.scheme == "none":
            return [{"tags": row} for row in tags]
        found = []
        for row, certain, words in zip(tags, scores, rows.column("tokens").to_pylist(), strict=True):
            spans = [
                {
                    "type": span.type,
                    "start": span.start,
                    "end": span.end,
                    "words": words[span.start : span.end],
                    "score": round(float(np.mean(certain[span.start : span.end])), 6),
                }
                for span in spans_of(row)
            ]
            found.append({"tags": row, "spans": spans})
        return found


def _joined(values: Sequence[Any], units: Units) -> list[np.ndarray]:
    """Values of the words of each source row, from those of its units, which stand one after the other."""
    of_row = np.asarray(units.values("row"))
    borders = np.flatnonzero(np.diff(of_row)) + 1
    return [np.concatenate(part) for part in _split(values, borders)]


def _split(values: Sequence[Any], borders: np.ndarray) -> list[Sequence[Any]]:
    edges = [0, *borders.tolist(), len(values)]
    return [values[start:end] for start, end in itertools.pairwise(edges)]


def _whole_rows(label_ids: Sequence[Any], units: Units, names: Sequence[str]) -> list[list[str]]:
    return [[names[number] for number in row.tolist()] for row in _joined(label_ids, units)]


def _tokenize(
    tokenizer: Any, sentences: Sequence[Sequence[str]], max_length: int | None
) -> tuple[Any, list[list[int]]]:
    """The encoding of words that all have a piece, and how many pieces each has.

    Words of which a tokenizer makes nothing (controls, odd spaces) become its unknown token. DataError for tokenizers
    that do not tell which word a piece is of.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"{tokenizer.name_or_path}: {type(tokenizer).__name__} has no offsets, so words cannot be aligned with its "
            "tokens; tagging needs a fast tokenizer (tokenizer.json)"
        )
    space = " " if glues_words(tokenizer) else ""
    written = [[space + word for word in words] for words in sentences]
    for _ in range(2):
        encoded = tokenizer(
            written,
            is_split_into_words=True,
            add_special_tokens=max_length is not None,
            truncation=max_length is not None,
            max_length=max_length,
            return_attention_mask=False,
            verbose=False,  # sentences longer than the model takes are what is being cut
        )
        counts = [_count(encoded.word_ids(place), len(words)) for place, words in enumerate(written)]
        lost = [(place, word) for place, row in enumerate(counts) for word, count in enumerate(row) if not count]
        if not lost:
            return encoded, counts
        for place, word in lost:
            if tokenizer.unk_token is None:
                raise DataError(f"the tokenizer makes no tokens of the word {sentences[place][word]!r}")
            written[place][word] = tokenizer.unk_token
    place, word = lost[0]
    raise DataError(f"the word {sentences[place][word]!r} of {' '.join(sentences[place])[:80]!r} has no token")


def _pieces_per_word(tokenizer: Any, sentences: Sequence[Sequence[str]]) -> list[list[int]]:
    return _tokenize(tokenizer, sentences, None)[1]


def _count(word_ids: Sequence[int | None], num_words: int) -> list[int]:
    counts = [0] * num_words
    for word in word_ids:
        if word is not None:
            counts[word] += 1
    return counts


def glues_words(tokenizer: Any) -> bool:
    """Whether words need a space in front: byte-level tokenizers (RoBERTa, ModernBERT) would read them as one word."""
    stages = [json.loads(tokenizer.backend_tokenizer.to_str())["pre_tokenizer"]]
    while stages:
        stage = stages.pop()
        if stage is None:
            continue
        if stage["type"] == "ByteLevel":
            return not stage["add_prefix_space"]
        stages += stage.get("pretokenizers", [])
    return False

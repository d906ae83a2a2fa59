"""Extractive question answering: start and end of the answer among the tokens of the context.

A long context is read through overlapping windows, each a unit. Items are the first token (where a window says that it
holds no answer) and the tokens of the window; those of the question and all others are none. Every step from answers
to items and back goes by characters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from raybrew.config.data import Columns
from raybrew.config.task_kinds import QAConfig
from raybrew.errors import DataError
from raybrew.tasks.answers import (
    SCORERS,
    UNLABELLED,
    answers_in,
    first_token,
    inside,
    items_of,
    spans_in,
    without_spaces,
)
from raybrew.tasks.base import BadValue, Labels, Units
from raybrew.tasks.values import example_id, text_of
from raybrew.tasks.windows import Cut, Offsets, cut_jointly, cut_windows, offsets_of, shortened

if TYPE_CHECKING:
    import pyarrow as pa

    from raybrew.tasks.heads import Head
    from raybrew.tasks.scores import RowScores

__all__ = ["QuestionAnswering"]

_BATCH_ROWS = 256
#: How often windows for several tokenizers are cut again, smaller each time.
_ATTEMPTS = 8


class _Candidate(NamedTuple):
    """A span of the context in characters, and the sum of its start and end logits."""

    score: float
    start: int
    end: int


@dataclasses.dataclass(frozen=True)
class QuestionAnswering:
    """Rows of question and context with answers; see `raybrew.tasks.base.Task` for the contract.

    The column `label` of rows holds the spans of answers in characters one after the other, [from, to, from, to, ...];
    [] for a question without an answer, [-1] for a row without labels. `scored` are the answers to score with.
    """

    config: QAConfig
    source: Columns = dataclasses.field(default_factory=Columns)

    kind = "qa"
    names_labels = False
    keeps_rows = True
    unit_name = "windows"
    masking = None

    @property
    def fixed_labels(self) -> Labels:
        return Labels(("start", "end"), named=False)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.source.question, self.source.context)

    @property
    def optional_columns(self) -> tuple[str, ...]:
        return (self.source.answers, *([self.source.scored_answers] if self.source.scored_answers else []))

    @property
    def label_column(self) -> str:
        return self.source.answers

    @property
    def content_columns(self) -> tuple[str, ...]:
        return ("question", "window")

    def schema(self) -> pa.Schema:
        import pyarrow as pa

        texts = [pa.field(name, pa.string()) for name in ("question", "context")]
        return pa.schema([*texts, pa.field("scored", pa.list_(pa.string())), pa.field("label", pa.list_(pa.int32()))])

    def parse(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        question, context = (text_of(raw, column) for column in self.columns)
        return {"question": question, "context": context, "scored": self._scored(raw)}

    def _scored(self, raw: Mapping[str, Any]) -> list[str]:
        column = self.source.scored_answers
        given = raw.get(column) if column is not None else None
        if given is None:
            # Rows to predict may have anything there; labelled ones are looked at in `raw_label`.
            try:
                return [text for text, _ in answers_in(raw.get(self.source.answers), self.source.answers)]
            except BadValue:
                return []
        if not isinstance(given, list) or not given or not all(isinstance(text, str) for text in given):
            raise BadValue(str(column), "a list of answers expected, texts all of them")
        return given

    def raw_label(self, raw: Mapping[str, Any], names: Sequence[str] | None = None) -> list[int] | None:
        column = self.source.answers
        if raw.get(column) is None:
            return None
        spans = spans_in(raw[column], column, raw[self.source.context])
        if not spans and not self.config.no_answer:
            raise BadValue(column, "holds no answer; if questions may have none, set task.no_answer=true")
        return spans

    def label_id(self, value: str | int | None, labels: Labels, names_of_source: Sequence[str] | None) -> int:
        raise AssertionError("an answer is no name")

    def complete_labels(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return names

    def no_label(self, parsed: Mapping[str, Any]) -> list[int]:
        return [UNLABELLED]

    def untrainable(self, rows: pa.Table, labels: Labels) -> str | None:
        if any(rows.column("label").to_pylist()):
            return None
        return f"not one of {rows.num_rows} questions has an answer (column {self.source.answers!r}): nothing to learn"

    def content(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return (row["question"], row["context"])

    def units(self, rows: pa.Table, tokenizers: Sequence[Any]) -> pa.Table:
        """Windows: `question`, `window`, `row`, `start`, the character of the context where it begins, and `label`.

        Its label are the spans that lie in it whole, in characters of the window; [-1] if it has a part of one only.
        Windows fit all of `tokenizers`, whatever their order.
        """
        import pyarrow as pa

        columns: dict[str, list[Any]] = {name: [] for name in ("id", "question", "window", "label", "row", "start")}
        for first in range(0, rows.num_rows, _BATCH_ROWS):
            part = rows.slice(first, _BATCH_ROWS).to_pylist()
            for place, (row, question, windows) in enumerate(self._windows(part, tokenizers)):
                for start, end in windows:
                    window = row["context"][start:end]
                    columns["id"].append(example_id((question, window)))
                    columns["question"].append(question)
                    columns["window"].append(window)
                    columns["label"].append(inside(row["label"], start, end))
                    columns["row"].append(first + place)
                    columns["start"].append(start)
        types = {"id": pa.binary(16), "question": pa.string(), "window": pa.string(), "label": pa.list_(pa.int32())}
        return pa.table({name: pa.array(values, types.get(name, pa.int32())) for name, values in columns.items()})

    def _windows(
        self, rows: Sequence[Mapping[str, Any]], tokenizers: Sequence[Any]
    ) -> list[tuple[Mapping[str, Any], str, list[tuple[int, int]]]]:
        """Each row, its question as it is asked, and the windows of its context."""
        contexts = list(dict.fromkeys(row["context"] for row in rows))  # contexts have many questions
        asked = self._questions(list(dict.fromkeys(row["question"] for row in rows)), tokenizers)
        # What is left of a question is one text for all, of which each makes its own number of tokens.
        texts = list(dict.fromkeys(asked.values()))
        cuts: list[tuple[int, dict[str, tuple[Offsets, list[int]]], dict[str, int]]] = []
        for tokenizer in tokenizers:
            limit = self.config.max_length - tokenizer.num_special_tokens_to_add(pair=True)
            found = dict(zip(contexts, offsets_of(tokenizer, contexts), strict=True))
            tokens = {text: len(each) for text, (each, _) in zip(texts, offsets_of(tokenizer, texts), strict=True)}
            cuts.append((limit, found, tokens))
        result = []
        for row in rows:
            context = row["context"]
            question = asked[row["question"]]
            if len(tokenizers) > 1:
                here = [Cut(*found[context], limit - tokens[question]) for limit, found, tokens in cuts]
                windows = self._fitting(context, here, tokenizers)
            else:
                limit, found, tokens = cuts[0]
                offsets, begins = found[context]
                windows = cut_windows(len(context), offsets, begins, limit - tokens[question], self.config.stride)
            result.append((row, question, windows))
        return result

    def _fitting(self, context: str, cuts: Sequence[Cut], tokenizers: Sequence[Any]) -> list[tuple[int, int]]:
        """Windows for several tokenizers, of each of which they have no more tokens by themselves than there is room.

        Where no word begins for all of them, a window may begin or end inside a word, which then falls into others.
        """
        smaller = list(cuts)
        for _ in range(_ATTEMPTS):
            windows = cut_jointly(len(context), smaller, self.config.stride)
            texts = [context[start:end] for start, end in windows]
            over = max(
                len(offsets) - cut.room
                for cut, tokenizer in zip(cuts, tokenizers, strict=True)
                for offsets, _ in offsets_of(tokenizer, texts)
            )
            if over <= 0:
                return windows
            smaller = [cut._replace(room=max(cut.room - over, self.config.stride + 1)) for cut in smaller]
        raise DataError(
            f"no windows of {self.config.max_length} tokens fit both tokenizers in {context[:40]!r}; a larger "
            "task.max_length or a smaller task.stride leaves more room"
        )

    def _questions(self, texts: list[str], tokenizers: Sequence[Any]) -> dict[str, str]:
        """Questions as they are asked: of no more than `max_question` tokens of any tokenizer."""
        asked = dict(zip(texts, texts, strict=True))
        for tokenizer in tokenizers:
            for text, (offsets, _) in zip(texts, offsets_of(tokenizer, texts), strict=True):
                asked[text] = min(asked[text], shortened(text, offsets, self.config.max_question), key=len)
        return asked

    def encode(self, tokenizer: Any, units: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Token ids; `items`, the first token and those of the window; `spans`, their characters; `label` in items."""
        encoded = tokenizer(
            list(units["question"]),
            list(units["window"]),
            truncation="only_second",
            max_length=self.config.max_length,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        items, spans = [], []
        for place, offsets in enumerate(encoded["offset_mapping"]):
            first = first_token(encoded["input_ids"][place], tokenizer.cls_token_id)
            # Marks of some tokenizers stand for no character; they are no place for an answer.
            tokens = [
                token
                for token, sequence in enumerate(encoded.sequence_ids(place))
                if sequence == 1 and token != first and offsets[token][1] > offsets[token][0]
            ]
            items.append([first, *tokens])
            window = units["window"][place]
            spans.append([[0, 0], *(without_spaces(window, *offsets[token]) for token in tokens)])
        columns = {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}
        columns |= {"items": items, "spans": spans}
        if "label" in units:
            columns["label"] = [items_of(label, span) for label, span in zip(units["label"], spans, strict=True)]
        return columns

    def lost_labels(self, units: Units, rows: pa.Table) -> dict[int, str]:
        """Questions whose answers no window holds whole, or which are made of characters that have no token."""
        told = {
            int(row) for row, (first, _) in zip(units.values("row"), units.values("label"), strict=True) if first > 0
        }
        config = self.config
        return {
            row: f"no window of {config.max_length} tokens holds an answer whole; neighbours share {config.stride} "
            "tokens (task.max_length, task.stride)"
            for row, label in enumerate(rows.column("label").to_pylist())
            if label and label != [UNLABELLED] and row not in told
        }

    def encode_settings(self) -> dict[str, Any]:
        return {
            "max_length": self.config.max_length,
            "stride": self.config.stride,
            "max_question": self.config.max_question,
        }

    @property
    def head(self) -> Head:
        from raybrew.tasks.heads import SpanHead

        return SpanHead()

    def metrics(self, outputs: Any, units: Units, rows: pa.Table | None, labels: Labels) -> dict[str, float]:
        """F1 and exact match in [0, 1] by the rule of `task.scoring`, mean over questions."""
        exact, f1 = np.mean(self._pairs(outputs, units, rows, labels), axis=0)
        return {"f1": float(f1), "exact_match": float(exact)}

    def row_scores(self, outputs: Any, units: Units, rows: pa.Table | None, labels: Labels) -> RowScores:
        """F1 and exact match of each question."""
        from raybrew.tasks.scores import answers_key, mean_scores

        exact, f1 = self._pairs(outputs, units, rows, labels).T
        assert rows is not None  # keeps_rows
        key = answers_key(rows.column("question").to_pylist(), rows.column("scored").to_pylist())
        return mean_scores("means", {"f1": f1, "exact_match": exact}, key)

    def _pairs(self, outputs: Any, units: Units, rows: pa.Table | None, labels: Labels) -> Any:
        """Exact match and F1 of each question, (questions, 2)."""
        assert rows is not None  # keeps_rows
        score = SCORERS[self.config.scoring]
        found = self.predictions(outputs, units, rows, labels)
        truths = rows.column("scored").to_pylist()
        return np.array([score(answer["answer"], true) for answer, true in zip(found, truths, strict=True)])

    def predictions(self, outputs: Any, units: Units, rows: pa.Table, labels: Labels) -> list[dict[str, Any]]:
        """`answer` with `start` and `end` in characters of the context, its `score`, and `n_best` answers.

        Scores are shares of the softmax over the n-best. With `task.no_answer` these have an empty answer as well,
        whose start and end are null: first if it is the prediction, else where its score puts it.
        """
        contexts = rows.column("context").to_pylist()
        candidates: list[list[_Candidate]] = [[] for _ in contexts]
        nothing = np.full(len(contexts), np.inf)
        starts, spans = units.values("start"), units.values("spans")
        for unit, row in enumerate(units.values("row").tolist()):
            candidates[row] += self._candidates(outputs[unit], spans[unit], int(starts[unit]))
            # A question has no answer if no window has one.
            nothing[row] = min(nothing[row], float(outputs[unit][0].sum()))
        return [
            self._prediction(context, found, float(none))
            for context, found, none in zip(contexts, candidates, nothing, strict=True)
        ]

    def _candidates(self, logits: Any, spans: Any, offset: int) -> list[_Candidate]:
        """The best spans of one window. The first item is no token of it."""
        config = self.config
        best_starts = 1 + np.argsort(-logits[1:, 0], kind="stable")[: config.n_best]
        best_ends = 1 + np.argsort(-logits[1:, 1], kind="stable")[: config.n_best]
        return [
            _Candidate(
                float(logits[start, 0] + logits[end, 1]), offset + int(spans[start][0]), offset + int(spans[end][1])
            )
            for start in best_starts.tolist()
            for end in best_ends.tolist()
            if start <= end < start + config.max_answer
        ]

    def _prediction(self, context: str, candidates: list[_Candidate], nothing: float) -> dict[str, Any]:
        from scipy.special import softmax

        best: dict[tuple[int, int], float] = {}
        for score, start, end in sorted(candidates, reverse=True):
            best.setdefault((start, end), score)  # windows overlap: a span may come twice
            if len(best) == self.config.n_best:
                break
        found: list[dict[str, Any]] = [
            {"answer": context[start:end], "start": start, "end": end, "score": score}
            for (start, end), score in best.items()
        ]
        if self.config.no_answer or not found:
            empty = {"answer": "", "start": None, "end": None, "score": nothing}
            first = not found or nothing - found[0]["score"] > self.config.no_answer_margin
            below = sum(answer["score"] >= nothing for answer in found)
            found.insert(0 if first else max(below, 1), empty)
        for answer, share in zip(found, softmax([answer["score"] for answer in found]), strict=True):
            answer["score"] = round(float(share), 6)
        return {**found[0], "n_best": found}

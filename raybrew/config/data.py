"""`data`: where rows come from and what happens to bad ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, InstanceOf, field_validator

from raybrew.config.augment import AugmentConfig
from raybrew.config.base import MAX_COUNT, NOT_IDENTITY, WHEN_SET, Many, Section
from raybrew.config.rows import Rows, table_name

__all__ = ["FILE_ENDINGS", "FORMATS", "SOURCES", "Columns", "DataConfig"]

#: Keys that name rows.
SOURCES = ("train", "eval", "test", "unlabeled")

#: What `data.format` may say; `auto` goes by the file name.
FORMATS = ("auto", "csv", "tsv", "jsonl", "conll", "parquet", "arrow", "dataset", "hub")

#: Ending of a file name -> its format, for `data.format=auto`; text formats may be followed by `.gz`.
FILE_ENDINGS: Mapping[str, str] = MappingProxyType(
    {
        ".csv": "csv",
        ".tsv": "tsv",
        ".jsonl": "jsonl",
        ".ndjson": "jsonl",
        ".json": "jsonl",
        ".conll": "conll",
        ".parquet": "parquet",
        ".arrow": "arrow",
    }
)


#: A file, a folder, a hub name, or rows of Python's, in whose place an experiment holds the path of their file.
if TYPE_CHECKING:
    RowSource: TypeAlias = Any
else:
    RowSource = Annotated[str | InstanceOf[Rows], BeforeValidator(Rows.of)]

_SHARE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")


class Columns(Section):
    """Names of the source columns. Each task reads some of them; one that the task does not read must not be given.

    Example:
        >>> raybrew.Columns(text="sentence", text_pair="other")
        Columns(text='sentence', text_pair='other')
    """

    text: str = "text"
    """Column of the (first) sentence; of classification, multilabel and regression."""
    text_pair: str | None = None
    """Column of the second sentence; none for single sentences."""
    label: str = "label"
    """Column of the label: a name or its number; several of them (multilabel); a number (regression)."""
    tokens: str | int = "tokens"
    """Tagging: column of the words, a list. In CoNLL files the number of their column from 0; default: the first."""
    tags: str | int = "tags"
    """Tagging: column of the tags, one per word. In CoNLL files a number, -1 for the last, which is the default."""
    question: str = "question"
    """Question answering: column of the question."""
    context: str = "context"
    """Question answering: column of the text that holds the answer."""
    answers: str = "answers"
    """Question answering: column of {text: [...], answer_start: [...]}, starts being characters of the context."""
    scored_answers: str | None = None
    """Question answering: column of a list of answers to score with, where a row has it; else those of `answers`."""


class DataConfig(Section):
    """Source rows: CSV, TSV, JSON, JSONL, CoNLL (also .gz), Parquet, Arrow, a `save_to_disk` folder or a hub name.

    From Python also rows: a `datasets.Dataset`, a pandas or Arrow table, a list of dicts. The experiment writes them to
    a file in `cache`, named by their content, which alone is their identity.

    Example:
        >>> raybrew.Data(train="train.jsonl", eval="dev.jsonl", test="10%")
        Data(train='train.jsonl', eval='dev.jsonl', test='10%')
    """

    train: RowSource | None = None
    """Labelled rows to train on: a file, a folder, or a hub name such as `glue/sst2`, optionally `:split`."""
    eval: RowSource | None = None
    """Labelled rows that choose the best checkpoint and, in a sweep, the best student."""
    test: RowSource | None = Field(default=None, json_schema_extra=WHEN_SET)
    """Labelled rows that choose nothing: teacher, students and controls are scored on them once, at the end. A source
    like `eval`, or a share of `train` such as `10%`, which nothing is trained on. The share holds the same rows for
    every seed and every order of the file, and grows with the percentage."""
    unlabeled: RowSource | None = None
    """Further rows that need no labels; the teacher's outputs are their targets. Without `train` they are
    all there is."""
    format: Literal["auto", "csv", "tsv", "jsonl", "conll", "parquet", "arrow", "dataset", "hub"] = "auto"
    """Format of all sources; `auto` decides by the name of each."""
    columns: Columns = Columns()
    """Names of the source columns."""
    delimiter: str | None = Field(default=None, json_schema_extra=WHEN_SET)
    """What separates the fields of CSV files: one character, or `tab`. Default: a comma, or what a first line `sep=;`
    says."""
    header: Many[str] = Field(default=(), json_schema_extra=WHEN_SET)
    """Names of all columns of CSV and TSV files whose first line is a row already: [id, text, label]."""
    train_rows: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Use only this many training rows: a random subset that is the same for every seed."""
    eval_rows: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Use only this many evaluation rows."""
    test_rows: int | None = Field(default=None, ge=1, le=MAX_COUNT, json_schema_extra=NOT_IDENTITY)
    """Use only this many test rows."""
    unlabeled_rows: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    """Use only this many unlabelled rows."""
    augment: AugmentConfig | None = Field(default=None, json_schema_extra=WHEN_SET)
    """Further rows without labels, made of those that are there: {kind: masked_lm, model: ..., copies: 20}."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`error` stops at bad rows, naming file, row and column; `skip` counts and lists what was left out."""
    cache: str | None = Field(default=None, json_schema_extra=NOT_IDENTITY)
    """Folder for encoded rows, and for rows that were given in Python. Default: `<store.storage_path>/.cache`."""

    @field_validator("test")
    @classmethod
    def _possible_share(cls, test: str | Rows | None) -> str | Rows | None:
        share = _share_in(test)
        if share is not None and not 0 < share < 1:
            raise ValueError("a file, a folder, a hub name, or a share of data.train above 0% and below 100%")
        return test

    @field_validator("delimiter")
    @classmethod
    def _one_character(cls, delimiter: str | None) -> str | None:
        if delimiter is None or delimiter == "tab":
            return delimiter
        if len(delimiter) != 1 or delimiter in '"\r\n' or not delimiter.isascii():
            raise ValueError("one character beside quotes and line ends, or tab")
        return delimiter

    @property
    def separator(self) -> str | None:
        """`delimiter` as a character."""
        return "\t" if self.delimiter == "tab" else self.delimiter

    @property
    def test_share(self) -> float | None:
        """The share of `train` that is set aside for `test`, in (0, 1); None where `test` is a source of its own."""
        return _share_in(self.test)

    def is_identity(self, name: str) -> bool:
        """Rows of their own that only score a model are no part of what it is; a share of `train` is."""
        return name != "test" or self.test_share is not None

    def identity_value(self, name: str) -> Any:
        """Rows that were given in Python by their content alone, wherever their file lies."""
        value = getattr(self, name)
        return (table_name(value) or value) if name in SOURCES else value


def _share_in(test: str | Rows | None) -> float | None:
    found = _SHARE.fullmatch(test) if isinstance(test, str) else None
    return float(found[1]) / 100 if found is not None else None

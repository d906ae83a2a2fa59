"""Rows as tokens: the units that models read, cut so that they fit the tokenizers of all who read the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raybrew.data.encoded import EncodedRows, encode_rows, piece_fingerprint
from raybrew.errors import ConfigError
from raybrew.files import make_storage
from raybrew.models.cache import ModelCache
from raybrew.models.loading import ModelSource, load_config, max_tokens
from raybrew.models.vocabulary import find_vocabulary
from raybrew.pipeline.resolve import ResolvedTask
from raybrew.pipeline.rows import Rows

__all__ = [
    "CapturedUnits",
    "captured_units",
    "check_lengths",
    "check_places",
    "encode",
    "evaluation_units",
    "rows_with",
    "same_tokens",
    "units_of",
]


def encode(task: ResolvedTask, table: pa.Table, tokens: ModelSource, *others: ModelSource) -> EncodedRows:
    """The units of source rows as token ids of the tokenizer of `tokens`, memory-mapped out of the task's cache.

    Units are cut so that they also fit the tokenizers of `others`, and have what those of the same pieces give beside.
    ConfigError if one is longer than the model of this tokenizer can take.
    """
    if task.data.cache is None:
        make_storage(Path(task.store.storage_path))
    (tokenizer, *alike), *rest = _by_pieces(task.models, tokens, *others)
    first_of = [group[0] for group in rest]
    encoded = encode_rows(table, task.task, tokenizer, task.cache, others=first_of, alike=alike)
    check_places(int(encoded.lengths.max()), tokens)
    return encoded


def check_places(longest: int, model: ModelSource) -> None:
    """ConfigError if a row of so many tokens is longer than a model can take."""
    places = max_tokens(load_config(model))
    if places is not None and longest > places:
        raise ConfigError(
            f"task.max_length: the longest row has {longest} tokens, but {model.model} takes at most {places}; set it "
            f"to {places} or less"
        )


def check_lengths(task: ResolvedTask, rows: Rows, teacher: ModelSource, *others: ModelSource) -> None:
    """ConfigError if training or evaluation rows are longer than a teacher can take, before it is asked about them."""
    places = max_tokens(load_config(teacher))
    if places is None or task.task.encode_settings()["max_length"] <= places:
        return
    for table in (rows.training, None if rows.evaluation is None else rows.evaluation.table):
        if table is not None:
            encode(task, table, teacher, *others)


def units_of(task: ResolvedTask, rows: pa.Table, *models: ModelSource) -> pa.Table:
    """The units of source rows, cut so that they fit the tokenizers of all these models."""
    return task.task.units(rows, [group[0] for group in _by_pieces(task.models, *models)])


def rows_with(units: pa.Table, chosen: npt.NDArray[np.bool_], num_rows: int) -> npt.NDArray[np.bool_]:
    """Which of `num_rows` source rows have one of the `chosen` (units,) units."""
    if "row" not in units.column_names:
        return chosen
    found = np.zeros(num_rows, np.bool_)
    found[units.column("row").to_numpy()[chosen]] = True
    return found


def _by_pieces(models: ModelCache, *sources: ModelSource) -> list[list[Any]]:
    """The tokenizers of `sources`, those together that cut rows into the same pieces."""
    found: dict[str, list[Any]] = {}
    for each in dict.fromkeys(sources):
        found.setdefault(_pieces_of(models, each), []).append(models.tokenizer(each))
    return list(found.values())


def same_tokens(models: ModelCache, one: ModelSource, other: ModelSource) -> bool:
    """Whether both tokenizers cut the training rows into the same pieces, whatever these are numbered."""
    return one == other or _pieces_of(models, one) == _pieces_of(models, other)


def _pieces_of(models: ModelCache, source: ModelSource) -> str:
    """A name of the pieces that a tokenizer makes: its own, or that of the one it was trimmed from."""
    vocabulary = find_vocabulary(source.model)
    if vocabulary is not None and vocabulary.exact:
        return vocabulary.base
    return piece_fingerprint(models.tokenizer(source))


class CapturedUnits(NamedTuple):
    """What a teacher is asked about: losses are computed on training and on evaluation rows."""

    training: pa.Table  #: the units of training rows
    whole: pa.Table  #: these, then those of evaluation rows; `id` and content alone


def captured_units(task: ResolvedTask, rows: Rows, *models: ModelSource) -> CapturedUnits:
    """The units that a store of a teacher must hold, cut so that they fit the tokenizers of all these models."""
    training = units_of(task, rows.training, *models)
    parts = [training]
    if rows.evaluation is not None:
        parts.append(units_of(task, rows.evaluation.table, *models))
    names = ["id", *task.task.content_columns]
    return CapturedUnits(training, pa.concat_tables([part.select(names) for part in parts]))


def evaluation_units(
    task: ResolvedTask, rows: Rows, tokens: ModelSource, others: Sequence[ModelSource]
) -> tuple[EncodedRows | None, EncodedRows | None]:
    """The evaluation rows in the student's tokens, for metrics; and in units that fit the teachers' tokenizers too, for
    losses, None where these are the same."""
    if rows.evaluation is None:
        return None, None
    alone = encode(task, rows.evaluation.table, tokens)
    fitted = encode(task, rows.evaluation.table, tokens, *others)
    if fitted.key == alone.key:
        return alone, None
    # The same units may have token types beside, which teachers read: the student can be given these as well.
    return (fitted, None) if np.array_equal(fitted.ids, alone.ids) else (alone, fitted)

"""What is computed on which rows: the units that a teacher is asked about, and those that a student is evaluated on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raybrew.config import Experiment
from raybrew.data.encoded import EncodedRows
from raybrew.models.loading import ModelSource
from raybrew.verbs.prepare import Rows, encode, task_of, units_of

__all__ = ["CapturedUnits", "captured_units", "evaluation_units"]


class CapturedUnits(NamedTuple):
    """What a teacher is asked about: losses are computed on training and on evaluation rows."""

    training: pa.Table  #: the units of training rows
    whole: pa.Table  #: these, then those of evaluation rows; `id` and content alone


def captured_units(experiment: Experiment, rows: Rows, *models: ModelSource) -> CapturedUnits:
    """The units that a store of a teacher must hold, cut so that they fit the tokenizers of all these models."""
    training = units_of(experiment, rows.training, *models)
    parts = [training]
    if rows.evaluation is not None:
        parts.append(units_of(experiment, rows.evaluation.table, *models))
    names = ["id", *task_of(experiment).content_columns]
    return CapturedUnits(training, pa.concat_tables([part.select(names) for part in parts]))


def evaluation_units(
    experiment: Experiment, rows: Rows, tokens: ModelSource, others: Sequence[ModelSource]
) -> tuple[EncodedRows | None, EncodedRows | None]:
    """The evaluation rows in the student's tokens, for metrics; and in units that fit the teachers' tokenizers too, for
    losses, None where these are the same."""
    if rows.evaluation is None:
        return None, None
    alone = encode(experiment, rows.evaluation.table, tokens)
    fitted = encode(experiment, rows.evaluation.table, tokens, *others)
    if fitted.key == alone.key:
        return alone, None
    # The same units may have token types beside, which teachers read: the student can be given these as well.
    return (fitted, None) if np.array_equal(fitted.ids, alone.ids) else (alone, fitted)

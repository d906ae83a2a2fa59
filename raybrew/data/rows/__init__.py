"""Rows of a source, checked, as one Arrow table with an id for each example."""

from __future__ import annotations

from raybrew.data.readers.records import BadRow
from raybrew.data.rows.load import load_rows
from raybrew.data.rows.places import Place, Split, contradicting_places, places_of, source_of
from raybrew.data.rows.row_set import (
    RowSet,
    in_share,
    row_ids,
    rows_beside,
    rows_fingerprint,
    rows_of_ids,
    subset_indices,
)

__all__ = [
    "BadRow",
    "Place",
    "RowSet",
    "Split",
    "contradicting_places",
    "in_share",
    "load_rows",
    "places_of",
    "row_ids",
    "rows_beside",
    "rows_fingerprint",
    "rows_of_ids",
    "source_of",
    "subset_indices",
]

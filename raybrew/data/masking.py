"""Rows as a model reads them in one epoch, where its task hides tokens: a pure function of seed, epoch and content.

Nothing of it is written down. Random numbers are hashes of (seed, epoch, example id, place of the token), so neither
the order of rows nor the number of workers nor a continued run changes which tokens are hidden.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from raybrew.data.encoded import EncodedRows
from raybrew.data.loader import TokenRows
from raybrew.tasks.base import Masking, Task

__all__ = ["EVALUATION", "MaskedRows", "as_shown"]

#: The seed and epoch of evaluation rows: the same tokens are hidden for every model and at every time.
EVALUATION = (0, -1)

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
#: Which of several draws for a token: its rank, what replaces it, and by which token.
_RANK, _KIND, _TOKEN = (np.uint64(number) for number in (1, 2, 3))


def as_shown(rows: EncodedRows, task: Task, tokenizer: Any, seed: int, epoch: int) -> TokenRows:
    """`rows` themselves, or for tasks with `masking` what a model reads of them in this epoch."""
    if task.masking is None:
        return rows
    special = set(tokenizer.all_special_ids)
    ordinary = np.array(sorted(set(tokenizer.get_vocab().values()) - special), np.int64)
    return MaskedRows(rows, task.masking, int(tokenizer.mask_token_id), ordinary, seed, epoch)


@dataclasses.dataclass(frozen=True)
class MaskedRows:
    """Rows with tokens hidden. `ordinary` are the token ids that are no special ones, ascending."""

    rows: EncodedRows
    masking: Masking
    mask_token_id: int
    ordinary: npt.NDArray[np.int64]
    seed: int
    epoch: int

    def names(self, rows: npt.ArrayLike) -> list[str]:
        """Ids of the examples of these rows, in hex."""
        return self.rows.names(rows)

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of each row, (rows,)."""
        return self.rows.lengths

    def gather_padded(
        self, rows: npt.NDArray[np.int64], pad_token_id: int, length: int | None = None
    ) -> dict[str, npt.NDArray[np.int64]]:
        """Token columns (rows, length) as the model reads them, and their `attention_mask`."""
        batch = self.rows.gather_padded(rows, pad_token_id, length)
        tokens, keys = batch["input_ids"], self._keys(rows, batch["input_ids"].shape[1])
        hidden = self._hidden(rows, batch, keys)
        share = _uniform(keys, _KIND)
        masked = hidden & (share < self.masking.masked)
        randomised = hidden & ~masked & (share < self.masking.masked + self.masking.randomised)
        drawn = (_uniform(keys, _TOKEN) * len(self.ordinary)).astype(np.int64)
        replaced = np.where(masked, self.mask_token_id, np.where(randomised, self.ordinary[drawn], tokens))
        return {**batch, "input_ids": replaced}

    def targets(self, rows: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any]]:
        """`items` (rows, most) int64, the places of hidden tokens, `item_mask`, and in `labels` what they were."""
        batch = self.rows.gather_padded(rows, 0)
        tokens = batch["input_ids"]
        hidden = self._hidden(rows, batch, self._keys(rows, tokens.shape[1]))
        counts = hidden.sum(axis=1)
        most = max(1, int(counts.max(initial=0)))  # no batch is without a place for an item
        items = np.argsort(~hidden, axis=1, kind="stable")[:, :most]
        real = np.arange(items.shape[1]) < counts[:, None]
        items = np.where(real, items, 0)
        labels = np.where(real, np.take_along_axis(tokens, items, axis=1), -1)
        return {"labels": labels, "items": items, "item_mask": real.astype(np.float32)}

    def _hidden(
        self,
        rows: npt.NDArray[np.int64],
        batch: dict[str, npt.NDArray[np.int64]],
        keys: npt.NDArray[np.uint64],
    ) -> npt.NDArray[np.bool_]:
        """Which tokens are to be guessed, (rows, length): `rate` of each row's ordinary ones, one at least.

        With whole words, words are taken in a random order until there are as many tokens.
        """
        eligible = (batch["attention_mask"] == 1) & self._is_ordinary(batch["input_ids"])
        wanted = np.maximum(1, np.rint(self.masking.rate * eligible.sum(axis=1)))[:, None]
        rank = _uniform(keys, _RANK)
        if self.masking.whole_words:
            begins = self.rows.arrow.ragged("begins").gather_padded(rows, 1, rank.shape[1])
            # Every token of a word has the number of its first one.
            first = np.maximum.accumulate(np.where(begins == 1, np.arange(rank.shape[1]), 0), axis=1)
            rank = np.take_along_axis(rank, first, axis=1)
            # A word with a token that is none of the ordinary ones (an unknown piece) stays whole.
            broken = np.zeros(rank.shape, np.bool_)
            np.logical_or.at(broken, (np.arange(len(rank))[:, None], first), ~eligible)
            eligible = eligible & ~np.take_along_axis(broken, first, axis=1)
        rank = np.where(eligible, rank, 2.0)
        order = np.argsort(rank, axis=1, kind="stable")
        ranked = np.take_along_axis(rank, order, axis=1)
        taken = np.arange(rank.shape[1]) < wanted
        if self.masking.whole_words:
            # The last word that is begun is taken to its end.
            last = np.take_along_axis(ranked, wanted.astype(np.int64) - 1, axis=1)
            taken = ranked <= last
        hidden = np.zeros(rank.shape, np.bool_)
        np.put_along_axis(hidden, order, taken & (ranked < 2.0), axis=1)
        return hidden

    def _is_ordinary(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        place = np.searchsorted(self.ordinary, tokens)
        found: npt.NDArray[np.bool_] = self.ordinary[np.minimum(place, len(self.ordinary) - 1)] == tokens
        return found

    def _keys(self, rows: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.uint64]:
        """A hash of seed, epoch, example and place for each token, (rows, length)."""
        ids = self.rows.arrow.flat("id").gather(rows).view("<u8").astype(np.uint64)
        run = np.array([self.seed & (2**64 - 1), self.epoch & (2**64 - 1)], np.uint64)
        key = np.zeros(len(rows), np.uint64)
        for part in (run[:1], run[1:], ids[:, 0], ids[:, 1]):
            key = _mixed(key ^ part)
        return _mixed(key[:, None] + np.arange(1, length + 1, dtype=np.uint64) * _GOLDEN)


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's step: a bijection whose outputs look random for any inputs."""
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = values ^ (values >> np.uint64(31))
    return mixed


def _uniform(keys: npt.NDArray[np.uint64], draw: np.uint64) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) for one of several draws with the same keys."""
    return (_mixed(_mixed(keys) ^ draw) >> np.uint64(11)).astype(np.float64) * 2.0**-53

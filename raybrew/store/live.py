"""Stored outputs against those of the teacher as it is now, next to how much that differs from itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raybrew.catalog.forms import DENSE
from raybrew.data.arrow import ArrowFolder
from raybrew.data.tables import taken
from raybrew.errors import StoreError
from raybrew.signals import Signal, sorted_signals
from raybrew.store.compute import Teacher
from raybrew.store.forms.base import StoredAs, form_of
from raybrew.store.forms.columns import StoredColumns
from raybrew.store.reader import Store

__all__ = ["LiveCheck", "compare_live"]

#: How many times its difference from itself a teacher may differ from what is stored, beyond the rounding of the type.
_TIMES_ITSELF = 8.0
#: Share of the largest value by which another machine or another version of torch may differ in float32.
_OTHER_MACHINE = 1e-5


@dataclasses.dataclass(frozen=True)
class LiveCheck:
    """One signal: largest differences over the rows that were computed again.

    `stored`: between store and teacher; `rounding`: what the element type explains of it at most; `itself`: between two
    passes of the same teacher over the same rows in other batches; `largest`: the largest value of the teacher.
    """

    signal: str
    element_type: str
    rows: int
    stored: float
    rounding: float
    itself: float
    largest: float
    agrees: bool


def compare_live(
    store: Store, teacher: Teacher, rows: int, signals: Iterable[Signal] | None = None, seed: int = 0
) -> tuple[LiveCheck, ...]:
    """Computes `rows` rows again, drawn by `seed`, and compares each signal with what is stored, in each of its types.

    `teacher` must keep float32. All signals that the store has for some of the rows by default; rows that were set
    aside are left out. StoreError if nothing can be compared.
    """
    wanted = sorted_signals(store.signals if signals is None else signals)
    aside = store.set_aside(wanted)
    examples = store.examples
    order = np.random.default_rng(seed).permutation(store.num_rows)[: rows + len(aside)]
    ids = examples.flat("id").gather(order)
    drawn = [place for place, row in zip(order.tolist(), ids, strict=True) if row.tobytes().hex() not in aside][:rows]
    places = np.sort(np.array(drawn, np.int64))
    if not len(places) or not wanted:
        raise StoreError(f"{store.location}: there is nothing to compare with the teacher")
    checks = []
    for group in _by_rows(store, wanted, places):
        here, request = group
        table = taken(examples.table(), here)
        first = teacher.compute(table, request)
        second = dataclasses.replace(teacher, batch_tokens=1, notes=[]).compute(table, request)
        for signal in request:
            form, dim, every = teacher.forms.of(signal), store.dim(signal), np.arange(len(here))
            folders = [ArrowFolder(Path(), (), (tables[signal],)) for tables in (first, second)]
            live, again = (StoredColumns(form, folder, dim).gather(every, None).to_dense() for folder in folders)
            for kept in (each for each in store.all_kept if each.signal == signal):
                reader = _reader(store, kept)
                has = reader.has_each(signal, here)
                if has.any():
                    those = torch.from_numpy(has)
                    checks.append(_compared(reader, kept, here[has], live[those], again[those]))
    return tuple(sorted(checks, key=lambda check: (check.signal, check.element_type)))


def _by_rows(
    store: Store, wanted: tuple[Signal, ...], places: npt.NDArray[np.int64]
) -> list[tuple[npt.NDArray[np.int64], tuple[Signal, ...]]]:
    """Signals with those of `places` that have them: a signal may lack rows it was never asked for."""
    groups: dict[bytes, list[Signal]] = {}
    for signal in wanted:
        has = store.has_each(signal, places)
        if has.any():
            groups.setdefault(places[has].tobytes(), []).append(signal)
    return [(np.frombuffer(key, np.int64), tuple(signals)) for key, signals in groups.items()]


def _reader(store: Store, kept: StoredAs) -> Store:
    """The store, read as `kept` says."""
    forms = {kept.signal.kind: kept.form} if kept.form != DENSE else {}
    return Store(store.storage, store.manifest, kept.element_type, forms)


def _compared(store: Store, kept: StoredAs, places: npt.NDArray[np.int64], live: Tensor, again: Tensor) -> LiveCheck:
    form = form_of(kept)
    stored = store.gather(kept.signal, places).to_dense().float()
    live, again = form.live(live).to_dense(), form.live(again).to_dense()
    rounding, largest = form.rounding(live), float(live.abs().max())
    itself = float((live - again).abs().max())
    difference = (stored - live).abs()
    allowed = rounding * (1 + 1e-3) + _TIMES_ITSELF * itself + _OTHER_MACHINE * largest
    return LiveCheck(
        kept.signal.name,
        kept.described,
        len(places),
        float(difference.max()),
        float(rounding.max()),
        itself,
        largest,
        bool((difference <= allowed).all()),
    )

"""Reading a store: which rows it has, and the teacher's outputs for any of them, from memory maps."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from raybrew.catalog.forms import DENSE
from raybrew.data.arrow import ArrowFolder, ShardInfo
from raybrew.data.columns import FlatColumn
from raybrew.errors import DataError, StoreError
from raybrew.signals import Signal, sorted_signals
from raybrew.storage.open import open_storage
from raybrew.storage.protocol import Storage
from raybrew.store.forms.base import Forms, StoredAs, form_of
from raybrew.store.forms.columns import StoredColumns
from raybrew.store.forms.dense import ELEMENT_TYPES
from raybrew.store.index import INDEX, IdIndex, index_file
from raybrew.store.layout import EXAMPLES, Shard, open_shards, problems_of, problems_of_file
from raybrew.store.manifest import read_manifest

if TYPE_CHECKING:
    from raybrew.data.loader import Payload

__all__ = ["RowPositions", "Store"]


@dataclasses.dataclass(frozen=True)
class _Stored:
    """One signal: its columns, of so many rows, and where those of each shard of the store begin (-1: not there)."""

    kept: StoredAs
    columns: StoredColumns
    num_rows: int
    starts: npt.NDArray[np.int64]


#: Ids that are looked for at once when all of them are.
_LOOKED_UP_TOGETHER = 1 << 16


class RowPositions:
    """Positions in a store of the rows of another table, by number: `positions[rows]`. Holds nothing per row."""

    def __init__(self, store: Store, ids: FlatColumn) -> None:
        self._store = store
        self._ids = ids

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, rows: npt.ArrayLike) -> npt.NDArray[np.int64]:
        return self._store.locate(self._ids.gather(rows))


class Store:
    """An open store. Rows have positions 0..num_rows-1; those stay as they are while a store grows.

    The files of a remote store are copied to this node when they are first read, once for all processes of it. Pickles
    as storage, fingerprint and how its signals are read, and is opened anew in the other process.
    """

    def __init__(
        self,
        storage: Storage,
        manifest: Mapping[str, Any],
        element_type: str | None = None,
        forms: Mapping[str, str] | None = None,
    ) -> None:
        self.storage = storage
        self.manifest = manifest
        self.element_type = element_type
        self.forms = dict(forms or {})
        self.all_kept = tuple(kept for folder in manifest["signals"] if (kept := StoredAs.parse(folder)) is not None)
        self._shards: list[Shard] = manifest["shards"]
        self._starts = np.cumsum([0, *(shard.rows for shard in self._shards)], dtype=np.int64)
        self._open: dict[Signal, _Stored] = {}
        self._reading: object = None

    @classmethod
    def open(
        cls,
        where: str | Path | Storage,
        expect_fingerprint: str | None = None,
        element_type: str | None = None,
        cache: str | None = None,
        forms: Mapping[str, str] | None = None,
    ) -> Store:
        """The store in a folder, at a URL or in a storage; `cache` is where copies of a remote one go.

        `element_type` and `forms` (by kinds of signals) choose among signals stored in several; None: the most exact.

        StoreError if there is none, it was computed from something else than `expect_fingerprint`, is of another
        version, unfinished or damaged. Sizes are checked here, hashes by `verify`.
        """
        storage = open_storage(where, cache) if isinstance(where, (str, Path)) else where
        manifest = read_manifest(storage)
        if expect_fingerprint is not None and manifest["fingerprint"] != expect_fingerprint:
            raise StoreError(
                f"{storage.location}: holds {manifest['fingerprint']}, but {expect_fingerprint} is needed: "
                "the teacher, its tokenizer, the encoding or the precision is another one; capture again"
            )
        problems = problems_of(storage, manifest["shards"], hashes=False)
        if problems:
            raise StoreError(_damage(storage.location, problems))
        return cls(storage, manifest, element_type, forms)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Store.open, (self.storage, self.fingerprint, self.element_type, None, self.forms)

    @property
    def location(self) -> str:
        """Its folder or URL."""
        return self.storage.location

    @property
    def path(self) -> Path:
        """The folder that its files are mapped from: the store itself, or the copies of a remote one on this node."""
        return self.storage.path

    @property
    def fingerprint(self) -> str:
        """Hash of everything that the outputs depend on; also the name of the folder."""
        return str(self.manifest["fingerprint"])

    @property
    def num_rows(self) -> int:
        """Rows of all shards together."""
        return int(self._starts[-1])

    @property
    def signals(self) -> tuple[Signal, ...]:
        """Signals that are stored for some rows at least, as this reader reads them."""
        return sorted_signals(kept.signal for kept in self.all_kept if self._reads(kept))

    @functools.cached_property
    def examples(self) -> ArrowFolder:
        """id, input_ids and perhaps token_type_ids of all rows."""
        return self._folder(EXAMPLES, self._shards)

    @property
    def ids(self) -> npt.NDArray[np.uint8]:
        """Example ids of all rows, (rows, 16)."""
        return self.examples.flat("id").read()

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Tokens of every row, (rows,)."""
        return self.examples.ragged("input_ids").lengths

    @functools.cached_property
    def _index(self) -> IdIndex:
        """The index that lies in the store, mapped; made anew in memory where it is gone."""
        file = index_file(self.manifest)
        try:
            folder, names = self.storage.staged(INDEX, [file])
            return IdIndex.mapped(ArrowFolder.open(folder, names))
        except DataError:
            return IdIndex.of(self.ids)

    def locate(self, ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
        """Positions (n,) of example ids (n, 16) uint8; StoreError says how many are not stored."""
        positions = self._index.find(ids)
        missing = int(((positions < 0) | (positions >= self.num_rows)).sum())
        if missing:
            raise StoreError(
                f"{self.location}: {missing} of {len(positions)} rows are not in this store; "
                "`raybrew capture` adds them"
            )
        if not np.array_equal(self.examples.flat("id").gather(positions), ids):
            raise StoreError(_damage(self.location, (f"{INDEX}/{index_file(self.manifest).file} names other rows",)))
        return positions

    def locate_all(self, ids: FlatColumn) -> RowPositions:
        """`locate` for all ids of a column, looked up again where they are used; StoreError if one is not stored."""
        for start in range(0, len(ids), _LOOKED_UP_TOGETHER):
            self.locate(ids.gather(np.arange(start, min(start + _LOOKED_UP_TOGETHER, len(ids)))))
        return RowPositions(self, ids)

    def dim(self, signal: Signal) -> int:
        """Numbers per row (logits, pooled) or per token (hidden, query, key, value); heads for attention."""
        return int(self.manifest["signals"][self.kept(signal).folder]["dim"])

    def kept(self, signal: Signal) -> StoredAs:
        """What `gather` reads of `signal`: its element type and form, and by these its folder."""
        return self._stored(signal).kept

    def files_read(self) -> dict[str, ShardInfo]:
        """Name -> size and hash of the files that this process has opened: of a remote store each node copies them."""
        folders = [EXAMPLES, *(stored.kept.folder for stored in self._open.values())]
        return {
            f"{folder}/{shard.file}": shard.files[folder]
            for folder in folders
            for shard in self._shards
            if folder in shard.files
        }

    def set_aside(self, request: Iterable[Signal]) -> dict[str, str]:
        """Rows that the teacher could not compute for one of `request`: example id in hex -> reason."""
        folders = [EXAMPLES, *(self.kept(signal).folder for signal in request)]
        return {
            row: reason
            for shard in self._shards
            for folder in folders
            for row, reason in shard.set_aside.get(folder, {}).items()
        }

    def has(self, signal: Signal, positions: npt.NDArray[np.int64]) -> bool:
        """Whether `signal` is stored for all of these rows."""
        return bool(self.has_each(signal, positions).all())

    def has_each(self, signal: Signal, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """For which of these rows `signal` is stored."""
        if signal not in self.signals:
            return np.zeros(len(positions), np.bool_)
        shards = np.searchsorted(self._starts, positions, side="right") - 1
        return self._stored(signal).starts[shards] >= 0

    def gather(self, signal: Signal, positions: npt.NDArray[np.int64], length: int | None = None) -> Payload:
        """Outputs of the rows at `positions` in the form they are stored in; StoreError if some have none.

        Dense ones are a tensor in the type they are stored in, what is stored as int8 as float32.
        logits: (n, classes) float32, or (n, items, classes) up to the most items of a row, for tasks with items.
        pooled: (n, dim). hidden, query, key, value: (n, length, dim). attention, attention_probs: (n, heads, length,
        length). Zeros stand behind the items or tokens of each row; `length` defaults to that of the longest.
        """
        stored = self._stored(signal)
        shards = np.searchsorted(self._starts, positions, side="right") - 1
        starts = stored.starts[shards]
        if (starts < 0).any():
            raise StoreError(
                f"{self.location}: {signal} is stored for {stored.num_rows} of {self.num_rows} rows, and "
                f"{int((starts < 0).sum())} of those asked for are not among them; `raybrew capture` adds them"
            )
        places = positions - self._starts[shards] + starts
        return stored.columns.gather(places, None if signal.layer is None else length)

    def verify(self) -> tuple[str, ...]:
        """One line for each file whose bytes are not those that were written; reads the whole store."""
        problems = problems_of(self.storage, self._shards, hashes=True)
        file = index_file(self.manifest)
        return problems + problems_of_file(self.storage, f"{INDEX}/{file.file}", file, hashes=True)

    def _reads(self, kept: StoredAs) -> bool:
        if self.element_type is not None:
            return kept == Forms(self.element_type, self.forms).stored_as(kept.signal)
        return self.forms.get(kept.signal.kind, kept.form) == kept.form

    def _stored(self, signal: Signal) -> _Stored:
        if signal not in self._open:
            choices = [kept for kept in self.all_kept if kept.signal == signal and self._reads(kept)]
            if not choices:
                there = ", ".join(sorted(name.removeprefix("signals/") for name in self.manifest["signals"]))
                wanted = ""
                if self.element_type is not None:
                    wanted = f" as {Forms(self.element_type, self.forms).stored_as(signal).described}"
                raise StoreError(
                    f"{self.location}: {signal} is not stored{wanted}, only {there}; `raybrew capture` adds it"
                )
            kept = min(choices, key=_exactness)
            folder = kept.folder
            members = [shard for shard in self._shards if folder in shard.files]
            rows = np.array([shard.rows if folder in shard.files else 0 for shard in self._shards], np.int64)
            starts = np.where(rows > 0, np.cumsum(rows) - rows, -1)
            data, dim = self._folder(folder, members), int(self.manifest["signals"][folder]["dim"])
            self._open[signal] = _Stored(kept, StoredColumns(form_of(kept), data, dim), data.num_rows, starts)
        return self._open[signal]

    def _folder(self, folder: str, shards: list[Shard]) -> ArrowFolder:
        self._reading = self._reading or self.storage.reading()  # `prune` leaves the store as long as this lives
        try:
            data = open_shards(self.storage, folder, shards)
        except DataError as error:
            raise StoreError(_damage(self.location, (str(error),))) from error
        if data.num_rows != sum(shard.rows for shard in shards):
            raise StoreError(
                _damage(self.location, (f"{folder} has {data.num_rows} rows instead of those of the manifest",))
            )
        return data


def _exactness(kept: StoredAs) -> tuple[bool, int]:
    """Orders what is kept several times: dense before other forms, the widest type first."""
    types = list(ELEMENT_TYPES)
    return kept.form != DENSE, types.index(kept.element_type) if kept.element_type in types else len(types)


def _damage(location: str, problems: tuple[str, ...]) -> str:
    shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
    return f"{location}: damaged: {shown}. `raybrew capture --verify` computes that anew, and only that"

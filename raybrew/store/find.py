"""Which store belongs to a teacher, its tokenizer, a task and a precision; finding one that is there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from raybrew.catalog.signals import KINDS
from raybrew.config import StoreConfig
from raybrew.data.rows import row_ids
from raybrew.errors import DataError, ModelError, StoreError, StoreUnreachable
from raybrew.models.attention import PROJECTED_MODELS
from raybrew.models.cache import ModelCache
from raybrew.models.devices import Place, place_of_teacher
from raybrew.models.loading import ModelSource, load_config
from raybrew.signals import VECTOR_KINDS, Signal, sorted_signals
from raybrew.storage.lock import Waiting
from raybrew.storage.open import open_storage, stores_below
from raybrew.store.fingerprint import ModelHashes, hashes_of, known_hashes, store_parts
from raybrew.store.forms.base import Forms
from raybrew.store.manifest import fingerprint_of_parts, finished_manifest, mark_used
from raybrew.store.pending import await_store
from raybrew.store.reader import Store
from raybrew.tasks.base import Task

__all__ = [
    "StoreIdentity",
    "check_forms",
    "checked_rows",
    "find_any",
    "find_store",
    "identify",
    "identity_of",
    "other_weights",
]


def find_store(
    rows: pa.Table,
    task: Task,
    teacher: ModelSource,
    request: Iterable[Signal],
    store: StoreConfig,
    store_root: str | Path,
    device: str,
    precision: str,
    waiting: Waiting | None = None,
    *,
    models: ModelCache | None = None,
) -> Store:
    """The store that `capture` would give, if it is there with all these rows and signals; StoreError otherwise.

    With `waiting`, which hears on whom, a capture that is about it is waited for.
    """
    request = sorted_signals(request)
    rows = checked_rows(rows, task, request)
    known = identity_of(task, teacher, request, device, precision, store, models)

    def look() -> Store:
        found = find_any(known, teacher, store_root, store.cache, store.element_type, store.forms)
        positions = found.locate(row_ids(rows))
        lacking = [signal.name for signal in request if not found.has(signal, positions)]
        if lacking:
            raise StoreError(
                f"{found.location}: {', '.join(lacking)} is not stored for all rows; `raybrew capture` adds it"
            )
        return found

    try:
        found = look()
    except StoreUnreachable:
        raise
    except StoreError:
        storage = open_storage(f"{store_root}/{known.fingerprint}", store.cache)
        if waiting is None or storage.holder() is None:
            raise
        await_store(storage, waiting)
        found = look()
    mark_used(found.storage)
    return found


def find_any(
    known: StoreIdentity,
    teacher: ModelSource,
    store_root: str | Path,
    cache: str | None,
    element_type: str | None = None,
    forms: Mapping[str, str] | None = None,
) -> Store:
    """The store of just this teacher, whatever it holds; StoreError otherwise, with both fingerprints if it changed."""
    storage = open_storage(f"{store_root}/{known.fingerprint}", cache)
    if not storage.exists():
        raise StoreError(_no_store(known, teacher, store_root, cache))
    return Store.open(storage, known.fingerprint, element_type, forms=forms)


def _no_store(known: StoreIdentity, teacher: ModelSource, store_root: str | Path, cache: str | None) -> str:
    """That there is no store of this teacher, and what the one of the same name was computed from instead."""
    start = f"{store_root}: no store {known.fingerprint} of the teacher {teacher.model}; `raybrew capture` makes it"
    for storage in stores_below(store_root, cache):
        manifest = finished_manifest(storage)
        if manifest is not None and manifest["teacher"] == teacher.model:
            other = [name for name, value in known.parts.items() if manifest["parts"].get(name) != value]
            return (
                f"{start}. {manifest['fingerprint']} was captured from another {', '.join(other)} under that name, and "
                "its outputs are not those of this teacher"
            )
    return start


def other_weights(store_root: str | Path, known: StoreIdentity, teacher: ModelSource) -> list[str]:
    """One line for each store of a teacher of this name and with these settings, but other weights."""
    lines = []
    for storage in stores_below(store_root):
        manifest = finished_manifest(storage)
        if manifest is None:
            continue
        theirs, ours = ({**parts, "weights": None} for parts in (manifest["parts"], known.parts))
        if manifest["teacher"] == teacher.model and theirs == ours:
            lines.append(
                f"the weights of the teacher {teacher.model} are not those that {storage.location} was captured from; "
                "unless you changed them, its files are damaged: stop, and copy or download it again"
            )
    return lines


@dataclasses.dataclass(frozen=True)
class StoreIdentity:
    """What names the store of a teacher. `source` is where any process of this machine finds it."""

    source: ModelSource
    place: Place
    parts: dict[str, Any]
    size: int
    """Bytes of the teacher's weights in memory."""

    @property
    def precision(self) -> str:
        """That of the teacher's forward pass."""
        return self.place.precision

    @property
    def fingerprint(self) -> str:
        """Name of the store's folder."""
        return fingerprint_of_parts(self.parts)


def identify(
    task: Task,
    teacher: ModelSource,
    request: tuple[Signal, ...],
    device: str,
    precision: str,
    launcher: str,
    models: ModelCache | None = None,
) -> tuple[StoreIdentity, PreTrainedModel, PreTrainedTokenizerBase]:
    """What names the store of `teacher`, and the loaded teacher (its weights are what is hashed).

    `auto` is what it is on the machines that `launcher` captures on. ModelError if the teacher cannot be loaded or
    lacks a layer asked for.
    """
    source = dataclasses.replace(teacher, model=_absolute(teacher.model))
    models = models or ModelCache()
    model, tokenizer = models.model(source, task.kind, needs_head=_needs_head(request)), models.tokenizer(source)
    _check_layers(model.config, request, teacher.model)
    place = place_of_teacher(device, precision, launcher)
    return _identity(source, hashes_of(model), tokenizer, task, place), model, tokenizer


def identity_of(
    task: Task,
    teacher: ModelSource,
    request: tuple[Signal, ...],
    device: str,
    precision: str,
    store: StoreConfig,
    models: ModelCache | None = None,
) -> StoreIdentity:
    """What names the store of `teacher`, as `identify` has it. The model is not loaded if its files are known."""
    source = dataclasses.replace(teacher, model=_absolute(teacher.model))
    _check_layers(load_config(source), request, teacher.model)
    folder = Path(store.storage_path) / ".cache"
    models = models or ModelCache()
    hashes = known_hashes(source, task.kind, folder, needs_head=_needs_head(request), models=models)
    place = place_of_teacher(device, precision, store.launcher)
    return _identity(source, hashes, models.tokenizer(source), task, place)


def _needs_head(request: tuple[Signal, ...]) -> bool:
    return any(signal.kind in KINDS and KINDS[signal.kind].head for signal in request)


def _identity(
    source: ModelSource, hashes: ModelHashes, tokenizer: PreTrainedTokenizerBase, task: Task, place: Place
) -> StoreIdentity:
    return StoreIdentity(source, place, store_parts(hashes, tokenizer, task, place.precision), hashes.size)


def checked_rows(rows: pa.Table, task: Task, request: tuple[Signal, ...]) -> pa.Table:
    """The columns of `rows` that are captured; DataError or StoreError if there is nothing to capture."""
    names = ["id", *task.content_columns]
    missing = [name for name in names if name not in rows.column_names]
    if missing:
        raise DataError(f"rows to capture lack {', '.join(missing)}; they have {', '.join(rows.column_names)}")
    if rows.num_rows == 0:
        raise DataError("there are no rows to capture")
    if not request:
        raise StoreError("no signal was asked for; `raybrew list signals` shows what can be captured")
    return rows.select(names)


def check_forms(config: PretrainedConfig, request: tuple[Signal, ...], forms: Forms) -> None:
    """ModelError where a signal of a model cannot be kept as it is to be."""
    for signal in request:
        problem = forms.of(signal).problem(config.model_type)
        if problem is not None:
            raise ModelError(problem)


def _check_layers(config: PretrainedConfig, request: tuple[Signal, ...], name: str) -> None:
    layers = getattr(config, "num_hidden_layers", None)
    for signal in request:
        if signal.kind in VECTOR_KINDS and config.model_type not in PROJECTED_MODELS:
            raise ModelError(
                f"{signal} was asked for, but where {config.model_type} models such as {name} have queries, keys "
                f"and values is not known; known: {', '.join(PROJECTED_MODELS)}"
            )
        if signal.layer is not None and layers is not None and signal.layer > layers:
            first = KINDS[signal.kind].first_layer
            embeddings = " (embeddings)" if first == 0 else ""
            raise ModelError(f"{signal} was asked for, but {name} has layers {first}{embeddings} to {layers}")


def _absolute(model: str) -> str:
    # Actors may run in another folder.
    path = Path(model)
    return str(path.absolute()) if path.is_dir() else model

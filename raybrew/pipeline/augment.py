"""`data.augment`: the new rows of an experiment, made once and kept beside its encoded rows.

They are written in shards of source rows. Killed at any moment, the same call makes those that are missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa
import xxhash

from raybrew.catalog.tasks import HIDDEN_WORDS
from raybrew.config.augment import AugmentConfig
from raybrew.data.arrow import ArrowFolder, shard_name, write_shard
from raybrew.data.augmentation.rows import Draw, changed_by_rule, draws_of, new_rows, replaced, sides_of, word_spans
from raybrew.data.encoded import tokenizer_fingerprint
from raybrew.data.hashes import known_hashes
from raybrew.data.readers.records import first_line
from raybrew.data.rows import row_ids
from raybrew.errors import EnvironmentProblem, ModelError
from raybrew.files import write_json
from raybrew.models.devices import pick_device
from raybrew.models.loading import ModelSource, load_model, load_tokenizer
from raybrew.models.word_candidates import WordCandidates
from raybrew.store.fingerprint import hash_weights
from raybrew.tasks.base import Task

__all__ = ["augmented_rows", "likely_rows"]

_FORMAT = 1
_SHARD_ROWS = 512
_MARKER = "augmented.json"


#: Texts, and for each word -> its characters (from, to); candidates of each word come back.
_Candidates = Callable[[Sequence[str], Sequence[Mapping[int, tuple[int, int]]]], list[dict[int, list[str]]]]


def likely_rows(source: pa.Table, task: Task, config: AugmentConfig) -> pa.Table:
    """Rows of about the number and lengths that `config` makes of `source`, without its model and without a file.

    Where a model would guess words, others of the same text stand in.
    """
    candidates = _other_words if config.kind == "masked_lm" else None
    starts = range(0, source.num_rows, _SHARD_ROWS)
    return pa.concat_tables([_made(source.slice(start, _SHARD_ROWS), task, config, candidates) for start in starts])


def _other_words(texts: Sequence[str], spans: Sequence[Mapping[int, tuple[int, int]]]) -> list[dict[int, list[str]]]:
    words = [[text[start:end] for start, end in word_spans(text)] for text in texts]
    return [dict.fromkeys(wanted, of_text) for wanted, of_text in zip(spans, words, strict=True)]


def augmented_rows(
    source: pa.Table, task: Task, config: AugmentConfig, folder: Path, device: str, say: Callable[[str], None]
) -> pa.Table:
    """The copies of `source` by `config`, unlabelled rows of the task: read from `folder`, or made and written there.

    The key covers rows, options and, for `masked_lm`, the model's weights and tokenizer. Of several processes one makes
    them, the others wait. `say` hears how far it is. EnvironmentProblem when the folder cannot be written.
    """
    candidates, model = _candidates(config, device)
    key = _key(source, config, model)
    target = folder / f"augmented-{key}"
    try:
        target.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f"augmented-{key}.lock"):
            if not _is_whole(target):
                _make(source, task, config, candidates, target, say)
        marker = json.loads((target / _MARKER).read_text(encoding="utf-8"))
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write augmented rows to {target.absolute()}: {first_line(error)}; data.cache names another folder"
        ) from error
    return ArrowFolder.open(target, marker["shards"]).table()


def _make(
    source: pa.Table,
    task: Task,
    config: AugmentConfig,
    candidates: _Candidates | None,
    target: Path,
    say: Callable[[str], None],
) -> None:
    starts = range(0, source.num_rows, _SHARD_ROWS)
    names = [shard_name(number) for number in range(len(starts))]
    total = 0
    for name, start in zip(names, starts, strict=True):
        path = target / name
        if path.is_file():  # it appeared whole
            continue
        write_shard(path, _made(source.slice(start, _SHARD_ROWS), task, config, candidates))
        if len(starts) > 1:
            say(f"augment: {min(start + _SHARD_ROWS, source.num_rows)} of {source.num_rows} rows")
    for name in names:
        total += ArrowFolder.open(target, [name]).num_rows
    content = {"format": _FORMAT, "source_rows": source.num_rows, "rows": total, "shards": names}
    write_json(target / _MARKER, content | {"xxh3": known_hashes(target, names)})


def _is_whole(target: Path) -> bool:
    """Whether all shards are there as they were written; those that have changed since are removed."""
    try:
        hashes = json.loads((target / _MARKER).read_text(encoding="utf-8")).get("xxh3", {})
        found = known_hashes(target, hashes)
        changed = [name for name, xxh3 in hashes.items() if found.get(name) != xxh3]
    except FileNotFoundError:
        return False
    except (ValueError, AttributeError, RecursionError):
        changed = [path.name for path in target.glob("*.arrow")]
    else:
        if not changed:
            return True
    (target / _MARKER).unlink()
    for name in changed:
        (target / name).unlink(missing_ok=True)
    return False


def _made(part: pa.Table, task: Task, config: AugmentConfig, candidates: _Candidates | None) -> pa.Table:
    """The new rows of some source rows."""
    content = [field for field in part.column_names if field not in ("id", "label")]
    rows, ids = part.select(content).to_pylist(), part.column("id").to_pylist()
    if candidates is not None:
        return new_rows(task, part, _by_model(rows, ids, config, candidates))
    copies = [
        [changed_by_rule(row, identity, copy, config) for copy in range(config.copies)]
        for row, identity in zip(rows, ids, strict=True)
    ]
    return new_rows(task, part, copies)


def _by_model(
    rows: Sequence[Mapping[str, Any]], ids: Sequence[bytes], config: AugmentConfig, candidates: _Candidates
) -> list[list[dict[str, Any]]]:
    """The copies of rows whose words a model replaces, all texts of them guessed together."""
    copies: list[list[dict[str, Any]]] = [[dict(row) for _ in range(config.copies)] for row in rows]
    texts: list[str] = []
    spans: list[list[tuple[int, int]]] = []
    draws: list[list[Draw]] = []
    owners: list[tuple[int, str]] = []
    for number, (row, identity) in enumerate(zip(rows, ids, strict=True)):
        for side in sides_of(row, config):
            text, words = _text_of(row[side])
            owners.append((number, side))
            texts.append(text)
            spans.append(words)
            draws.append([draws_of(len(words), identity, copy, side, config) for copy in range(config.copies)])
    wanted = [
        {
            word: words[word]
            for word in sorted({word for draw in drawn for word in draw.words})
            if any(map(str.isalnum, text[slice(*words[word])]))  # words of tagging may be punctuation
        }
        for text, words, drawn in zip(texts, spans, draws, strict=True)
    ]
    for (number, side), text, words, drawn, found in zip(
        owners, texts, spans, draws, candidates(texts, wanted), strict=True
    ):
        for copy, draw in enumerate(drawn):
            changed, as_words = replaced(text, words, draw, found)
            copies[number][copy][side] = changed if side != "tokens" else as_words
    return copies


def _text_of(value: str | Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """A text and the characters of its words; words of tagging are joined by spaces."""
    if isinstance(value, str):
        return value, word_spans(value)
    spans, place = [], 0
    for word in value:
        spans.append((place, place + len(word)))
        place += len(word) + 1
    return " ".join(value), spans


def _candidates(config: AugmentConfig, device: str) -> tuple[WordCandidates | None, dict[str, str]]:
    """The model that guesses, and what names it by content; nothing for rules."""
    if config.kind != "masked_lm" or config.model is None:
        return None, {}
    source = ModelSource(config.model)
    try:
        model, tokenizer = load_model(source, HIDDEN_WORDS), load_tokenizer(source)
    except ModelError as error:
        raise ModelError(f"data.augment.model: {error}") from error
    named = {"weights": hash_weights(model), "tokenizer": tokenizer_fingerprint(tokenizer)}
    model.to(pick_device(device))  # type: ignore[arg-type]
    return WordCandidates(model, tokenizer, config.top_k), named


def _key(source: pa.Table, config: AugmentConfig, model: Mapping[str, str]) -> str:
    options = config.model_dump(mode="json", exclude={"model"})
    described = {"format": _FORMAT, "options": options, "model": model, "columns": source.column_names}
    digest = xxhash.xxh3_128(json.dumps(described, sort_keys=True).encode())
    digest.update(row_ids(source).tobytes())
    return digest.hexdigest()

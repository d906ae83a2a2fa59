"""The tokenizer of the student: its own model's, the teacher's, or one of these trimmed to the rows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from raybrew.config.student import StudentConfig, VocabularyConfig
from raybrew.data.encoded import EncodedRows, piece_fingerprint, tokenizer_fingerprint
from raybrew.data.readers.lines import text_lines
from raybrew.errors import ConfigError, writing
from raybrew.files import write_json
from raybrew.models.loading import ModelSource, load_config
from raybrew.models.vocabulary import VOCABULARY_FILE, find_vocabulary, trim_tokenizer, trimmed_config
from raybrew.pipeline.resolve import Resolved
from raybrew.pipeline.rows import Say
from raybrew.pipeline.units import encode

__all__ = ["count_texts", "student_tokens", "tokenizer_source", "write_vocabulary"]

_FORMAT = 2
_BATCH_ROWS = 4096
_BATCH_TEXTS = 1024


def student_tokens(resolved: Resolved, shape: ModelSource | None, rows: Sequence[pa.Table], say: Say) -> ModelSource:
    """Where the student's tokenizer and its config are: for `student.vocabulary` a folder in the cache of rows.

    `rows` are the training rows of all tasks. The folder is made once for the same tokenizer, rows
    and settings; what it keeps does not depend on the order of rows. ConfigError, DataError, ModelError.
    """
    student = resolved.experiment.student
    source, settings = tokenizer_source(student, shape), student.vocabulary
    if settings is None:
        return source
    tokenizer = resolved.models.own_tokenizer(source)
    encoded = [encode(task, table, source) for task, table in zip(resolved.tasks, rows, strict=True)]
    texts = _texts(settings.texts)
    base = tokenizer_fingerprint(tokenizer)
    described = {
        "format": _FORMAT,
        "base": base,
        "rows": [each.key for each in encoded],
        "texts": xxhash.xxh3_128_hexdigest(json.dumps(texts).encode()),
        "config": load_config(source).to_dict(),
        "settings": settings.model_dump(exclude={"texts"}),
    }
    key = xxhash.xxh3_128_hexdigest(json.dumps(described, sort_keys=True, default=str).encode())
    folder = resolved.cache / f"vocabulary-{key}"
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        if find_vocabulary(folder) is None:
            counts = _counts(tokenizer, encoded, texts)

            def exact(trimmed: ModelSource, kept: npt.NDArray[np.int64]) -> bool:
                again = [encode(task, table, trimmed) for task, table in zip(resolved.tasks, rows, strict=True)]
                return all(_same_pieces(one, other, kept) for one, other in zip(encoded, again, strict=True))

            with writing(folder):
                write_vocabulary(folder, tokenizer, counts, settings, source, exact)
    found = find_vocabulary(folder)
    assert found is not None  # just written
    if not found.exact:
        say(
            f"student.vocabulary: {len(found.kept):,} of {found.size_before:,} pieces are kept; some rows are cut into "
            "other pieces than the teacher's, so tokens cannot be compared one by one"
        )
    return ModelSource(str(folder))


def tokenizer_source(student: StudentConfig, teacher: ModelSource | None) -> ModelSource:
    """Where the student's tokenizer comes from: its own model, or the teacher's for a shape."""
    if student.model is not None:
        return ModelSource(student.model, student.revision, student.trust_remote_code)
    if teacher is None:
        raise ConfigError("student.shape: needs teacher.model, whose architecture and vocabulary it takes")
    return teacher


def write_vocabulary(
    folder: Path,
    tokenizer: Any,
    counts: npt.NDArray[np.int64],
    settings: VocabularyConfig,
    source: ModelSource,
    exact: Callable[[ModelSource, npt.NDArray[np.int64]], bool],
) -> None:
    """Makes `folder` that of `tokenizer`, which is that of `source`, trimmed to the pieces in `counts` (pieces,).

    `exact` is asked whether what transformers loads again cuts the rows into the same pieces. The marker comes last;
    what is there goes. ConfigError, ModelError.
    """
    cut, kept = trim_tokenizer(tokenizer, counts, settings.min_count, settings.keep)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    cut.save_pretrained(folder)
    trimmed_config(load_config(source), kept).save_pretrained(folder)
    marker = {
        "base": piece_fingerprint(tokenizer),
        "exact": exact(ModelSource(str(folder)), kept),
        "size_before": len(counts),
        "kept": kept.tolist(),
    }
    write_json(folder / VOCABULARY_FILE, marker)


def count_texts(tokenizer: Any, path: str | None) -> npt.NDArray[np.int64]:
    """How often each piece comes up in a text file, (pieces,); of none: never."""
    return _counts(tokenizer, (), _texts(path))


def _counts(tokenizer: Any, encoded: Sequence[EncodedRows], texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """How often each piece comes up, (pieces,)."""
    size = max(tokenizer.get_vocab().values()) + 1
    counts = np.zeros(size, np.int64)
    for rows in encoded:
        for flat in _flat(rows):
            counts += np.bincount(flat, minlength=size)
    for start in range(0, len(texts), _BATCH_TEXTS):
        for ids in tokenizer(list(texts[start : start + _BATCH_TEXTS]), verbose=False)["input_ids"]:
            counts += np.bincount(ids, minlength=size)
    return counts


def _flat(rows: EncodedRows) -> Iterator[npt.NDArray[Any]]:
    column = rows.arrow.ragged("input_ids")
    for start in range(0, rows.num_rows, _BATCH_ROWS):
        yield column.gather(np.arange(start, min(rows.num_rows, start + _BATCH_ROWS)))[0]


def _texts(path: str | None) -> list[str]:
    """Lines of a file that are not empty."""
    if path is None:
        return []
    lines = (line.decode("utf-8", errors="replace").strip() for _, line in text_lines(Path(path)))
    return [line for line in lines if line]


def _same_pieces(whole: EncodedRows, trimmed: EncodedRows, kept: npt.NDArray[np.int64]) -> bool:
    if whole.num_rows != trimmed.num_rows or not np.array_equal(whole.lengths, trimmed.lengths):
        return False
    return all(np.array_equal(before, kept[after]) for before, after in zip(_flat(whole), _flat(trimmed), strict=True))

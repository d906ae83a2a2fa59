"""The student of a plan: its vocabulary where that is trimmed, its parameters, and what they take in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import nn

from raybrew.models.composite import MultiTaskStudent
from raybrew.models.inspection import count_parameters
from raybrew.models.loading import ModelSource
from raybrew.models.students import empty_student
from raybrew.models.vocabulary import find_vocabulary
from raybrew.pipeline.objective import objective_of
from raybrew.pipeline.resolve import Resolved, ResolvedTask
from raybrew.pipeline.sizes import sample_of
from raybrew.pipeline.units import units_of
from raybrew.pipeline.vocabulary import count_texts, tokenizer_source, write_vocabulary
from raybrew.planning.result import StudentPlan

__all__ = ["likely_vocabulary", "student_plan"]

_FLOAT32 = 4
#: A weight, its gradient and the two moments of AdamW.
_NUMBERS_IN_TRAINING = 4


def likely_vocabulary(resolved: Resolved, shape: ModelSource | None, rows: Sequence[pa.Table], folder: Path) -> int:
    """Writes to `folder` the vocabulary that the student is trimmed to, and returns how many rows it was made of.

    `rows` are the training rows of all tasks. Of a task with more than `SAMPLE_ROWS` a seeded sample
    is read, so some pieces are missing (`student.vocabulary.min_count` is scaled down to the sample). Nothing else is
    written. ConfigError and ModelError as `raybrew.pipeline.vocabulary.student_tokens`.
    """
    student = resolved.experiment.student
    source, settings = tokenizer_source(student, shape), student.vocabulary
    assert settings is not None  # the caller looked
    tokenizer = resolved.models.own_tokenizer(source)
    samples = [(task, sample_of(table)) for task, table in zip(resolved.tasks, rows, strict=True)]
    whole = [_pieces(task, sample, source) for task, sample in samples]
    counts = count_texts(tokenizer, settings.texts)
    for pieces, _ in whole:
        counts += np.bincount(pieces, minlength=len(counts))
    given = int(sum(table.num_rows for table in rows))
    read = int(sum(sample.num_rows for _, sample in samples))

    def exact(trimmed: ModelSource, kept: npt.NDArray[np.int64]) -> bool:
        again = [_pieces(task, sample, trimmed) for task, sample in samples]
        return all(
            np.array_equal(before, after) and np.array_equal(pieces, kept[ours])
            for (pieces, before), (ours, after) in zip(whole, again, strict=True)
        )

    scaled = settings.model_copy(update={"min_count": max(1, round(settings.min_count * read / max(1, given)))})
    write_vocabulary(folder, tokenizer, counts, scaled, source, exact)
    return read


def _pieces(
    resolved: ResolvedTask, rows: pa.Table, source: ModelSource
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All token ids of some rows, (tokens,), and the length of each unit, (units,)."""
    task, units = resolved.task, units_of(resolved, rows, source)
    values = {name: units.column(name).to_pylist() for name in task.content_columns}
    ids = task.encode(resolved.models.tokenizer(source), values)["input_ids"]
    flat = [np.asarray(each, np.int64) for each in ids]
    return np.concatenate([np.zeros(0, np.int64), *flat]), np.array([len(each) for each in flat], np.int64)


def student_plan(
    resolved: Resolved,
    shape: ModelSource | None,
    labels: Mapping[str, tuple[str, ...]],
    vocabulary: Path | None,
    rows: tuple[int, int],
) -> StudentPlan:
    """What the student is made of, from configs alone; `labels` are by task.

    `vocabulary` is the folder of a trimmed one, made of the first of `rows` out of the second.
    """
    tasks = resolved.tasks
    models = {task.name: empty_student(task.student, shape, task.kind, labels[task.name], vocabulary) for task in tasks}
    projections = sum(count_parameters(objective_of(task, models[task.name].config, task.sources)) for task in tasks)
    first = models[tasks[0].name]
    student: Any = MultiTaskStudent(models) if tasks[0].label else first
    parameters = count_parameters(student)
    found = None if vocabulary is None else find_vocabulary(vocabulary)
    embeddings: nn.Embedding = first.get_input_embeddings()  # type: ignore[assignment]
    return StudentPlan(
        parameters,
        _FLOAT32 * parameters,
        _FLOAT32 * _NUMBERS_IN_TRAINING * (parameters + projections),
        int(first.config.vocab_size),
        None if found is None else found.size_before,
        0 if found is None else (found.size_before - len(found.kept)) * embeddings.embedding_dim,
        *(rows if found is not None else (None, None)),
    )

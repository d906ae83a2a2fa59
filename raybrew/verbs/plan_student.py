"""The student of a plan: its vocabulary where that is trimmed, its parameters, and what they take in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from torch import nn

from raybrew.config import Experiment
from raybrew.config.views import task_views
from raybrew.models.composite import MultiTaskStudent
from raybrew.models.inspection import count_parameters
from raybrew.models.loading import ModelSource, load_tokenizer
from raybrew.models.students import empty_student
from raybrew.models.vocabulary import find_vocabulary
from raybrew.verbs.amounts import sample_of
from raybrew.verbs.objective import objective_of
from raybrew.verbs.planned import StudentPlan
from raybrew.verbs.prepare import task_of, units_of
from raybrew.verbs.vocabulary import count_texts, tokenizer_source, write_vocabulary

__all__ = ["likely_vocabulary", "student_plan"]

_FLOAT32 = 4
#: A weight, its gradient and the two moments of AdamW.
_NUMBERS_IN_TRAINING = 4


def likely_vocabulary(
    experiment: Experiment, shape: ModelSource | None, tasks: Sequence[tuple[Experiment, pa.Table]], folder: Path
) -> int:
    """Writes to `folder` the vocabulary that the student is trimmed to, and returns how many rows it was made of.

    `tasks` are the views of all tasks with their training rows. Of a task with more than `SAMPLE_ROWS` a seeded sample
    is read, so some pieces are missing (`student.vocabulary.min_count` is scaled down to the sample). Nothing else is
    written. ConfigError and ModelError as `raybrew.verbs.vocabulary.student_tokens`.
    """
    source, settings = tokenizer_source(experiment, shape), experiment.student.vocabulary
    assert settings is not None  # the caller looked
    tokenizer = load_tokenizer(source)
    samples = [(view, sample_of(rows)) for view, rows in tasks]
    whole = [_pieces(view, rows, source) for view, rows in samples]
    counts = count_texts(tokenizer, settings.texts)
    for pieces, _ in whole:
        counts += np.bincount(pieces, minlength=len(counts))
    read, given = (int(sum(rows.num_rows for _, rows in each)) for each in (samples, tasks))

    def exact(trimmed: ModelSource, kept: npt.NDArray[np.int64]) -> bool:
        again = [_pieces(view, rows, trimmed) for view, rows in samples]
        return all(
            np.array_equal(before, after) and np.array_equal(pieces, kept[ours])
            for (pieces, before), (ours, after) in zip(whole, again, strict=True)
        )

    scaled = settings.model_copy(update={"min_count": max(1, round(settings.min_count * read / max(1, given)))})
    write_vocabulary(folder, tokenizer, counts, scaled, source, exact)
    return read


def _pieces(
    view: Experiment, rows: pa.Table, source: ModelSource
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All token ids of some rows, (tokens,), and the length of each unit, (units,)."""
    task, units = task_of(view), units_of(view, rows, source)
    values = {name: units.column(name).to_pylist() for name in task.content_columns}
    ids = task.encode(load_tokenizer(source), values)["input_ids"]
    flat = [np.asarray(each, np.int64) for each in ids]
    return np.concatenate([np.zeros(0, np.int64), *flat]), np.array([len(each) for each in flat], np.int64)


def student_plan(
    experiment: Experiment,
    shape: ModelSource | None,
    labels: Mapping[str | None, tuple[str, ...]],
    sources: Mapping[str | None, Mapping[str | None, ModelSource]],
    vocabulary: Path | None,
    rows: tuple[int, int],
) -> StudentPlan:
    """What the student is made of, from configs alone; `labels` and `sources` (teachers) are by task.

    `vocabulary` is the folder of a trimmed one, made of the first of `rows` out of the second.
    """
    views = task_views(experiment)
    models = {
        task: empty_student(view.student, shape, view.task.kind, labels[task], vocabulary)
        for task, view in views.items()
    }
    projections = sum(
        count_parameters(objective_of(view, models[task].config, sources[task])) for task, view in views.items()
    )
    student: Any = (
        models[None] if None in models else MultiTaskStudent({str(task): one for task, one in models.items()})
    )
    parameters = count_parameters(student)
    found = None if vocabulary is None else find_vocabulary(vocabulary)
    model = next(iter(models.values()))
    embeddings: nn.Embedding = model.get_input_embeddings()  # type: ignore[assignment]
    return StudentPlan(
        parameters,
        _FLOAT32 * parameters,
        _FLOAT32 * _NUMBERS_IN_TRAINING * (parameters + projections),
        int(model.config.vocab_size),
        None if found is None else found.size_before,
        0 if found is None else (found.size_before - len(found.kept)) * embeddings.embedding_dim,
        *(rows if found is not None else (None, None)),
    )

"""The rows of a task: training, unlabelled and evaluation rows with one set of labels."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raybrew.config import DataConfig
from raybrew.data.cautions import Caution, tell
from raybrew.data.encoded import EncodedRows
from raybrew.data.readers.sources import format_of
from raybrew.data.row_cautions import SkippedRows
from raybrew.data.row_checks import row_cautions
from raybrew.data.rows import BadRow, RowSet, Split, load_rows, places_of, rows_beside
from raybrew.errors import ConfigError, DataError
from raybrew.models.loading import ModelSource, load_config, model_labels
from raybrew.pipeline.augment import augmented_rows, likely_rows
from raybrew.pipeline.resolve import ResolvedTask
from raybrew.tasks.base import Labels, Task

__all__ = [
    "Rows",
    "Say",
    "check_labels",
    "check_teacher_labels",
    "data_of",
    "keep_rows",
    "known_labels",
    "read_rows",
    "say_cautions",
]

#: So many rows whose labels are lost are named.
_SHOWN_LOST = 5
#: So many bad rows that are left out are named.
_SHOWN_SKIPPED = 10
#: Takes one line for the user.
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Parsed source rows of an experiment. `training` holds the labelled rows, then the unlabelled ones.

    The last of the unlabelled ones are those of `data.augment`.
    """

    training: pa.Table
    num_labelled: int
    num_unlabeled: int
    evaluation: RowSet | None
    labels: Labels
    num_augmented: int = 0
    test: RowSet | None = None
    """The rows of `data.test`, which nothing is chosen by."""
    cautions: tuple[Caution, ...] = ()

    def without(self, bad: npt.NDArray[np.bool_]) -> Rows:
        """The same without these training rows; DataError if none is left."""
        if not bad.any():
            return self
        if bad.all():
            raise DataError("not one training row is left: the teacher could compute none of them")
        lost, first_made = int(bad[: self.num_labelled].sum()), len(bad) - self.num_augmented
        return dataclasses.replace(
            self,
            training=self.training.filter(pa.array(~bad)),
            num_labelled=self.num_labelled - lost,
            num_unlabeled=self.num_unlabeled - (int(bad.sum()) - lost),
            num_augmented=self.num_augmented - int(bad[first_made:].sum()),
        )


#: Rows by what they are read from, in processes that run many trainings on the same files; None elsewhere.
_kept_rows: dict[str, Rows] | None = None


def keep_rows() -> None:
    """From now on this process reads the rows of each `data` section once. Its files must not change."""
    global _kept_rows  # noqa: PLW0603 (one switch per process)
    if _kept_rows is None:
        _kept_rows = {}


def read_rows(
    task: ResolvedTask,
    teacher: ModelSource | None,
    say: Say,
    *,
    with_unlabeled: bool = True,
    augment: Literal["make", "estimate"] = "make",
) -> Rows:
    """Training, unlabelled and evaluation rows with one set of labels; says what was skipped and what is doubtful.

    Rows of `data.augment` are among the unlabelled ones; `estimate` only has as many, of about the same lengths.
    Without `data.train` the unlabelled rows are all, and the labels are the teacher's.
    """
    if _kept_rows is None or augment == "estimate":
        return _read_rows(task, teacher, say, with_unlabeled, augment)
    sections = [task.data.model_dump_json(), task.experiment.task.model_dump_json()]
    learns = [part.hard_label_weight > 0 for part in task.distill.parts]
    kept = " ".join([*sections, str(teacher), str(with_unlabeled), os.getcwd(), task.data_key, str(any(learns))])
    if kept not in _kept_rows:
        _kept_rows[kept] = _read_rows(task, teacher, say, with_unlabeled, augment)
    return _kept_rows[kept]


def _read_rows(
    resolved: ResolvedTask, teacher: ModelSource | None, say: Say, with_unlabeled: bool, augment: str
) -> Rows:
    data, task, cache = resolved.data, resolved.task, resolved.cache
    takes_unlabeled = with_unlabeled and data.unlabeled is not None
    if data.train is None and not takes_unlabeled:
        raise ConfigError("data.train: required by this command; name a file, a folder or a hub dataset")
    known = _labels_of(teacher) if teacher is not None and task.fixed_labels is None else None
    labels = task.fixed_labels or known or Labels(())
    splits: dict[Split, RowSet] = {}
    set_aside = np.empty((0, 16), np.uint8)
    if data.train is not None:
        # A teacher is trained on labels (without unlabelled rows); its students may be trained on what it says alone.
        learns = not with_unlabeled or any(part.hard_label_weight > 0 for part in resolved.distill.parts)
        named = known if known is not None and known.named else None
        splits["train"] = load_rows(data, "train", task, named, learns_labels=learns, cache=cache)
        labels, set_aside = splits["train"].labels, splits["train"].set_aside
    elif task.names_labels and not labels:
        raise ConfigError(
            "data.train: required, as without it the labels are those of teacher.model or task.labels, and neither is "
            "given"
        )
    if takes_unlabeled:
        splits["unlabeled"] = _not_tested(load_rows(data, "unlabeled", task, labels, cache=cache), set_aside, data, say)
    tables: dict[str, pa.Table] = {name: rows.table for name, rows in splits.items()}
    if data.eval is not None:
        splits["eval"] = load_rows(data, "eval", task, labels, cache=cache)
    if data.test is not None:
        splits["test"] = load_rows(data, "test", task, labels, cache=cache)
    cautions = row_cautions(splits, data, task, resolved.metric, resolved.data_key)
    say_cautions(cautions, splits, say)
    num_labelled = tables["train"].num_rows if "train" in tables else 0
    given = sum(table.num_rows for table in tables.values())
    if with_unlabeled and data.augment is not None:
        tables["augmented"] = _augmented(resolved, tables, say, augment)
    training = pa.concat_tables(tables.values())
    num_unlabeled, num_augmented = training.num_rows - num_labelled, training.num_rows - given
    evaluation, test = splits.get("eval"), splits.get("test")
    return Rows(training, num_labelled, num_unlabeled, evaluation, labels, num_augmented, test, cautions)


def _not_tested(unlabeled: RowSet, set_aside: npt.NDArray[np.uint8], data: DataConfig, say: Say) -> RowSet:
    """The unlabelled rows without those that were set aside for `data.test`."""
    table = rows_beside(unlabeled.table, set_aside)
    lost = len(unlabeled) - table.num_rows
    if lost:
        say(f"data.unlabeled: left out {lost} of {len(unlabeled)} rows, which data.test={data.test} sets aside")
    if not table.num_rows:
        raise DataError(f"data.unlabeled: data.test={data.test} sets aside all {lost} rows; choose a smaller share")
    return dataclasses.replace(unlabeled, table=table)


def known_labels(task: Task, model: ModelSource) -> Labels | None:
    """Label names that are known before any row is read: of the task, or of `model` where these are names."""
    if task.fixed_labels is not None:
        return task.fixed_labels
    labels = _labels_of(model)
    return labels if labels.named else None


def data_of(data: DataConfig, source: str, split: Literal["eval", "unlabeled"]) -> DataConfig:
    """`data` with `source` as all rows of `split`. Its name may tell of another format than that of the other rows.

    Numbers of columns are those of CoNLL files; other formats have them under their usual names.
    """
    known = format_of(Path(source))
    changed: dict[str, Any] = {split: source, f"{split}_rows": None}
    if known is not None and known != data.format:
        changed["format"] = "auto"
        usual = {name: name for name in ("tokens", "tags") if isinstance(getattr(data.columns, name), int)}
        if known != "conll":
            changed["columns"] = data.columns.model_copy(update=usual)
    return data.model_copy(update=changed)


def _labels_of(teacher: ModelSource) -> Labels:
    """A teacher's labels, not `named` where it has numbers only."""
    config = load_config(teacher)
    names = model_labels(config)
    if names is None:
        return Labels(tuple(f"LABEL_{index}" for index in range(config.num_labels or 0)), named=False)
    return Labels(names)


def _augmented(task: ResolvedTask, tables: Mapping[str, pa.Table], say: Say, augment: str) -> pa.Table:
    config = task.data.augment
    assert config is not None  # the caller looked
    chosen = [table for name, table in tables.items() if config.of in ("both", name)]
    if not chosen:
        raise ConfigError(f"data.augment.of: given {config.of!r}, but data.{config.of} names no source")
    source = pa.concat_tables(chosen)
    if augment == "estimate":
        return likely_rows(source, task.task, config)
    made = augmented_rows(source, task.task, config, task.cache, task.train.device, say)
    say(f"data.augment: {made.num_rows} rows of {source.num_rows} ({config.kind}, {config.copies} copies of each)")
    return made


def check_teacher_labels(teacher: ModelSource, labels: Labels) -> None:
    """DataError if the teacher's classes are not the data's, in the same order; texts that are their own labels fit."""
    if not labels.names:
        return
    config = load_config(teacher)
    names = model_labels(config)
    ours, theirs = list(labels.names), list(names or ())
    if config.num_labels != len(labels):
        shown = ", ".join(theirs[:20]) if theirs else "unnamed"
        raise DataError(
            f"the teacher {teacher.model} has {config.num_labels} classes ({shown}), the data has {len(ours)} "
            f"({', '.join(ours[:20])}); fine-tune it on this data, or set task.labels to the teacher's"
        )
    if labels.named and theirs and theirs != ours:
        raise DataError(
            f"the teacher {teacher.model} has the classes {', '.join(theirs[:20])} in this order, the data has "
            f"{', '.join(ours[:20])}; set task.labels={theirs} or fine-tune the teacher again"
        )


def check_labels(resolved: ResolvedTask, rows: Rows, encoded: EncodedRows, say: Say) -> None:
    """Tell of labels that training will not see, as no unit of their row holds them; DataError unless they are skipped.

    With `data.on_bad_row: skip` such a row keeps its part in what is learnt from the teacher.
    """
    task, data = resolved.task, resolved.data
    lost = task.lost_labels(encoded, rows.training)
    if not lost:
        return
    shown = list(lost)[:_SHOWN_LOST]
    ids = {row: rows.training.column("id")[row].as_py() for row in shown}
    places = places_of(data, "train", task, set(ids.values()))
    told = [str(BadRow(*_at(places[ids[row]], task, lost[row]))) for row in shown if ids[row] in places]
    if len(told) < len(lost):
        told.append(f"and {len(lost) - len(told)} more")
    head = f"{len(lost)} of {rows.num_labelled} labelled rows have a label that no part of them holds"
    if data.on_bad_row == "error":
        advice = f"{head}; change the settings, or leave these labels out with data.on_bad_row=skip"
        raise DataError("\n  ".join([f"data.train: {advice}:", *told]))
    say(f"{head}; they teach through the teacher alone")
    for each in told:
        say(f"  {each}")


def _at(place: tuple[str, int, int | None], task: Task, reason: str) -> tuple[str, int, str | None, str, int | None]:
    file, row, line = place
    return file, row, task.label_column, reason, line


def say_cautions(cautions: Sequence[Caution], splits: Mapping[Any, RowSet | None], say: Say) -> None:
    """Tell what is doubtful about the rows of `splits`, and which bad rows were left out."""
    for caution in cautions:
        tell([caution], say)
        rows = splits[caution.split.rpartition(".")[2]] if isinstance(caution, SkippedRows) else None
        skipped = rows.skipped if rows is not None else ()
        for bad in skipped[:_SHOWN_SKIPPED]:
            say(f"  {bad}")
        if len(skipped) > _SHOWN_SKIPPED:
            say(f"  ... and {len(skipped) - _SHOWN_SKIPPED} more")

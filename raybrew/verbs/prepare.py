"""What every verb needs before it starts: the teacher's place, the labels, the rows, their encoding."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raybrew.config import DataConfig, Experiment, FinetuneConfig, MultiTaskConfig
from raybrew.data.cautions import Caution, tell
from raybrew.data.encoded import EncodedRows, encode_rows, piece_fingerprint
from raybrew.data.row_cautions import SkippedRows
from raybrew.data.row_checks import row_cautions
from raybrew.data.rows import BadRow, RowSet, Split, load_rows, places_of, rows_beside
from raybrew.data.sources import format_of
from raybrew.errors import ConfigError, DataError, RunError
from raybrew.files import make_storage
from raybrew.models.loading import ModelSource, load_config, load_tokenizer, max_tokens, model_labels
from raybrew.models.vocabulary import find_vocabulary
from raybrew.tasks.base import Labels, Task, build_task
from raybrew.tasks.heads import Head, VocabularyHead
from raybrew.training.run_folder import EVALUATED, RunFolder
from raybrew.verbs.augment import augmented_rows, likely_rows

__all__ = [
    "Rows",
    "Say",
    "cache_folder",
    "check_labels",
    "check_lengths",
    "check_places",
    "check_teacher_labels",
    "data_key",
    "data_of",
    "encode",
    "head_of",
    "keep_rows",
    "known_labels",
    "read_rows",
    "rows_with",
    "same_tokens",
    "say_cautions",
    "task_of",
    "teacher_source",
    "tokenizers_of",
    "units_of",
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


def task_of(experiment: Experiment) -> Task:
    """The experiment's task, reading its columns."""
    config = experiment.task
    if isinstance(config, MultiTaskConfig):
        raise ConfigError(f"task: one task is needed, this experiment has {', '.join(config.tasks)}; choose one")
    return build_task(config, experiment.data.columns)


def head_of(experiment: Experiment, tokenizer: Any) -> Head:
    """The head of the experiment's task. Over a vocabulary it reads the tokenizer's entries alone.

    Models have more outputs than that where their vocabulary was padded to a round number.
    """
    head = task_of(experiment).head
    if isinstance(head, VocabularyHead):
        return dataclasses.replace(head, entries=max(tokenizer.get_vocab().values()) + 1)
    return head


def teacher_source(
    experiment: Experiment, run_id: str | None = None, other_rows: Collection[str] = EVALUATED
) -> ModelSource:
    """Where the finished teacher is: `teacher.model`, or the student folder of its finetune run.

    That run may differ from the experiment in the keys `other_rows` of `data`; see `RunFolder.trained`.
    RunError says which command makes it when it does not exist yet.
    """
    teacher = experiment.teacher
    if teacher.model is None:
        raise ConfigError("teacher.model: required by this command; name a folder or a hub model")
    if teacher.finetune is None:
        return ModelSource(teacher.model, teacher.revision, teacher.trust_remote_code)
    run = RunFolder.trained(experiment, "finetune", run_id, other_rows)
    if run.summary() is None:
        raise RunError(
            f"the teacher is not trained yet: {run.path} holds no finished run; run `raybrew finetune` with this "
            "experiment first, or set teacher.finetune=null to use teacher.model as it is"
        )
    if not run.has_student:
        raise RunError(
            f"the teacher cannot be used: {run.lost_student}; run `raybrew finetune` with this experiment, which "
            "trains it again"
        )
    return ModelSource(str(run.student))


#: Rows by what they are read from, in processes that run many trainings on the same files; None elsewhere.
_kept_rows: dict[str, Rows] | None = None


def keep_rows() -> None:
    """From now on this process reads the rows of each `data` section once. Its files must not change."""
    global _kept_rows  # noqa: PLW0603 (one switch per process)
    if _kept_rows is None:
        _kept_rows = {}


def read_rows(
    experiment: Experiment,
    teacher: ModelSource | None,
    say: Say,
    *,
    with_unlabeled: bool = True,
    augment: Literal["make", "estimate"] = "make",
    key: str = "data",
) -> Rows:
    """Training, unlabelled and evaluation rows with one set of labels; says what was skipped and what is doubtful.

    Rows of `data.augment` are among the unlabelled ones; `estimate` only has as many, of about the same lengths.
    Without `data.train` the unlabelled rows are all, and the labels are the teacher's. `key` is where the experiment
    has the section `data`.
    """
    if _kept_rows is None or augment == "estimate":
        return _read_rows(experiment, teacher, say, with_unlabeled, augment, key)
    sections = [experiment.data.model_dump_json(), experiment.task.model_dump_json()]
    learns = [part.hard_label_weight > 0 for part in experiment.distill.parts]
    kept = " ".join([*sections, str(teacher), str(with_unlabeled), os.getcwd(), key, str(any(learns))])
    if kept not in _kept_rows:
        _kept_rows[kept] = _read_rows(experiment, teacher, say, with_unlabeled, augment, key)
    return _kept_rows[kept]


def _read_rows(
    experiment: Experiment, teacher: ModelSource | None, say: Say, with_unlabeled: bool, augment: str, key: str
) -> Rows:
    data, task, cache = experiment.data, task_of(experiment), cache_folder(experiment)
    takes_unlabeled = with_unlabeled and data.unlabeled is not None
    if data.train is None and not takes_unlabeled:
        raise ConfigError("data.train: required by this command; name a file, a folder or a hub dataset")
    known = _labels_of(teacher) if teacher is not None and task.fixed_labels is None else None
    labels = task.fixed_labels or known or Labels(())
    splits: dict[Split, RowSet] = {}
    set_aside = np.empty((0, 16), np.uint8)
    if data.train is not None:
        # A teacher is trained on labels (without unlabelled rows); its students may be trained on what it says alone.
        learns = not with_unlabeled or any(part.hard_label_weight > 0 for part in experiment.distill.parts)
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
    cautions = row_cautions(splits, data, task, experiment.task.metric, key)
    say_cautions(cautions, splits, say)
    num_labelled = tables["train"].num_rows if "train" in tables else 0
    given = sum(table.num_rows for table in tables.values())
    if with_unlabeled and data.augment is not None:
        tables["augmented"] = _augmented(experiment, task, tables, say, augment)
    training = pa.concat_tables(tables.values())
    num_unlabeled, num_augmented = training.num_rows - num_labelled, training.num_rows - given
    evaluation, test = splits.get("eval"), splits.get("test")
    return Rows(training, num_labelled, num_unlabeled, evaluation, labels, num_augmented, test, cautions)


def data_key(task: str | None) -> str:
    """Where the experiment has the section `data` of a task, one of several by its name."""
    return "data" if task is None else f"task.tasks.{task}.data"


def _not_tested(unlabeled: RowSet, set_aside: npt.NDArray[np.uint8], data: DataConfig, say: Say) -> RowSet:
    """The unlabelled rows without those that were set aside for `data.test`."""
    table = rows_beside(unlabeled.table, set_aside)
    lost = len(unlabeled) - table.num_rows
    if lost:
        say(f"data.unlabeled: left out {lost} of {len(unlabeled)} rows, which data.test={data.test} sets aside")
    if not table.num_rows:
        raise DataError(f"data.unlabeled: data.test={data.test} sets aside all {lost} rows; choose a smaller share")
    return dataclasses.replace(unlabeled, table=table)


def known_labels(experiment: Experiment, model: ModelSource) -> Labels | None:
    """Label names that are known before any row is read: of the task, or of `model` where these are names."""
    task = task_of(experiment)
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


def _augmented(experiment: Experiment, task: Task, tables: Mapping[str, pa.Table], say: Say, augment: str) -> pa.Table:
    config = experiment.data.augment
    assert config is not None  # the caller looked
    chosen = [table for name, table in tables.items() if config.of in ("both", name)]
    if not chosen:
        raise ConfigError(f"data.augment.of: given {config.of!r}, but data.{config.of} names no source")
    source = pa.concat_tables(chosen)
    if augment == "estimate":
        return likely_rows(source, task, config)
    made = augmented_rows(source, task, config, cache_folder(experiment), experiment.train.device, say)
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


def encode(experiment: Experiment, table: pa.Table, tokenizer_source: ModelSource, *others: ModelSource) -> EncodedRows:
    """The units of source rows as token ids of that tokenizer, memory-mapped out of the experiment's cache.

    Units are cut so that they also fit the tokenizers of `others`, and have what those of the same pieces give beside.
    ConfigError if one is longer than the model of this tokenizer can take.
    """
    if experiment.data.cache is None:
        make_storage(Path(experiment.store.storage_path))
    folder = cache_folder(experiment)
    (tokenizer, *alike), *rest = _by_pieces(tokenizer_source, *others)
    first_of = [group[0] for group in rest]
    encoded = encode_rows(table, task_of(experiment), tokenizer, folder, others=first_of, alike=alike)
    check_places(int(encoded.lengths.max()), tokenizer_source)
    return encoded


def check_places(longest: int, model: ModelSource) -> None:
    """ConfigError if a row of so many tokens is longer than a model can take."""
    places = max_tokens(load_config(model))
    if places is not None and longest > places:
        raise ConfigError(
            f"task.max_length: the longest row has {longest} tokens, but {model.model} takes at most {places}; set it "
            f"to {places} or less"
        )


def check_lengths(experiment: Experiment, rows: Rows, teacher: ModelSource, *others: ModelSource) -> None:
    """ConfigError if training or evaluation rows are longer than a teacher can take, before it is asked about them."""
    places = max_tokens(load_config(teacher))
    if places is None or task_of(experiment).encode_settings()["max_length"] <= places:
        return
    for table in (rows.training, None if rows.evaluation is None else rows.evaluation.table):
        if table is not None:
            encode(experiment, table, teacher, *others)


def cache_folder(experiment: Experiment) -> Path:
    """Where encoded rows are kept."""
    return Path(experiment.data.cache or Path(experiment.store.storage_path) / ".cache").absolute()


def check_labels(experiment: Experiment, rows: Rows, encoded: EncodedRows, say: Say) -> None:
    """Tell of labels that training will not see, as no unit of their row holds them; DataError unless they are skipped.

    With `data.on_bad_row: skip` such a row keeps its part in what is learnt from the teacher.
    """
    task, data = task_of(experiment), experiment.data
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


def units_of(experiment: Experiment, rows: pa.Table, *models: ModelSource) -> pa.Table:
    """The units of source rows, cut so that they fit the tokenizers of all these models."""
    return task_of(experiment).units(rows, tokenizers_of(*models))


def rows_with(units: pa.Table, chosen: npt.NDArray[np.bool_], num_rows: int) -> npt.NDArray[np.bool_]:
    """Which of `num_rows` source rows have one of the `chosen` (units,) units."""
    if "row" not in units.column_names:
        return chosen
    found = np.zeros(num_rows, np.bool_)
    found[units.column("row").to_numpy()[chosen]] = True
    return found


def tokenizers_of(source: ModelSource, *others: ModelSource) -> list[Any]:
    """The tokenizer of `source`, and those of `others` that cut rows into other pieces than it and one another."""
    return [group[0] for group in _by_pieces(source, *others)]


def _by_pieces(*sources: ModelSource) -> list[list[Any]]:
    """The tokenizers of `sources`, those together that cut rows into the same pieces."""
    found: dict[str, list[Any]] = {}
    for each in dict.fromkeys(sources):
        tokenizer = load_tokenizer(each)
        found.setdefault(_pieces_of(each, tokenizer), []).append(tokenizer)
    return list(found.values())


def same_tokens(one: ModelSource, other: ModelSource) -> bool:
    """Whether both tokenizers cut the training rows into the same pieces, whatever these are numbered."""
    return one == other or _pieces_of(one) == _pieces_of(other)


def _pieces_of(source: ModelSource, tokenizer: Any = None) -> str:
    """A name of the pieces that a tokenizer makes: its own, or that of the one it was trimmed from."""
    vocabulary = find_vocabulary(source.model)
    if vocabulary is not None and vocabulary.exact:
        return vocabulary.base
    return piece_fingerprint(tokenizer or load_tokenizer(source))


def finetune_config(experiment: Experiment) -> FinetuneConfig:
    """`teacher.finetune`; ConfigError when it is not set."""
    if experiment.teacher.finetune is None:
        raise ConfigError("teacher.finetune: required by `raybrew finetune`; `teacher.finetune={}` takes the defaults")
    return experiment.teacher.finetune


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

"""How good a finished model is: metrics on labelled rows, of one model or of the average of several teachers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xxhash

from raybrew.config import DataConfig, TeacherConfig
from raybrew.data.cautions import Caution
from raybrew.data.encoded import EncodedRows
from raybrew.data.masking import EVALUATION, as_shown
from raybrew.data.row_checks import row_cautions
from raybrew.data.rows import RowSet, load_rows
from raybrew.data.rows import Split as RowSplit
from raybrew.distillers.ensemble import Average
from raybrew.errors import ConfigError, DataError, writing
from raybrew.files import write_json
from raybrew.models.cache import ModelCache
from raybrew.models.devices import Place, free_gpu, place_of_evaluation
from raybrew.models.inspection import count_parameters, model_megabytes
from raybrew.models.loading import ModelSource, load_config, model_labels
from raybrew.nodes import Folder, check_seen, on_gpu
from raybrew.pipeline.reporter import Reporter
from raybrew.pipeline.resolve import ResolvedTask
from raybrew.pipeline.rows import Rows, check_teacher_labels, known_labels
from raybrew.pipeline.units import encode
from raybrew.runtime import ray_runtime
from raybrew.signals import LOGITS, Signal
from raybrew.store.fingerprint import known_hashes
from raybrew.tasks.agreement import Agreement, agreement_from, agreement_of
from raybrew.tasks.base import Labels, Task
from raybrew.tasks.scores import RowScores, load_scores, save_scores
from raybrew.training.context import LocalContext
from raybrew.training.evaluation import compute_logits
from raybrew.training.optim import Precision

__all__ = [
    "Evaluation",
    "Split",
    "average_name",
    "evaluate_ensemble",
    "evaluate_rows",
    "evaluate_teacher",
    "evaluation_rows",
    "joint_metrics",
    "keep_scores",
    "labelled_rows",
    "labels_of_model",
    "logits_of",
    "score_file",
]

#: Labelled rows to evaluate on: `data.eval` or `data.test`.
Split = Literal["eval", "test"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Metrics of one model on the evaluation rows."""

    model: str
    metrics: dict[str, float]
    rows: int
    parameters: int
    megabytes: float
    seconds: float
    scores: RowScores | None = dataclasses.field(default=None, compare=False, repr=False)
    """What each row adds to the metrics."""
    agreement: Agreement | None = dataclasses.field(default=None, compare=False, repr=False)
    """How the answers agree with the labels, from which cautions follow."""
    cautions: tuple[Caution, ...] = ()
    """What is doubtful about the model, or about the rows."""

    def plain(self) -> dict[str, Any]:
        """All values but those of rows and labels, as plain JSON types."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["scores"], fields["agreement"]
        return fields | {"cautions": [caution.plain() for caution in self.cautions]}


def evaluation_rows(
    task: ResolvedTask, source: ModelSource, split: Split = "eval", trained: DataConfig | None = None
) -> tuple[Rows, EncodedRows]:
    """The rows of `data.eval` or `data.test` and their units for the model `source`, whose labels they must have.

    The cautions about the rows are not told. With the rows on which the model was `trained`, they are also compared
    with its training rows, where these can be read.
    """
    rows = labelled_rows(task, source, split, trained)
    check_teacher_labels(source, rows.labels)
    assert rows.evaluation is not None
    return rows, encode(task, rows.evaluation.table, source)


def labelled_rows(task: ResolvedTask, source: ModelSource, split: Split, trained: DataConfig | None) -> Rows:
    """The rows of `data.<split>` as those to evaluate on, labelled as the model `source` labels."""
    data, key = task.data, task.data_key
    if getattr(data, split) is None:
        raise ConfigError(f"{key}.{split}: required by this command; name labelled rows")
    found = load_rows(data, split, task.task, known_labels(task.task, source), cache=task.cache)
    splits: dict[RowSplit, RowSet] = {}
    if trained is not None and data.train is not None and trained.format == data.format:
        with contextlib.suppress(ConfigError, DataError):  # training rows may be gone, or bad
            splits["train"] = load_rows(data, "train", task.task, found.labels, learns_labels=False, cache=task.cache)
    splits[split] = found
    cautions = row_cautions(splits, data, task.task, task.metric, key, about=(split,))
    return Rows(found.table, 0, 0, found, found.labels, cautions=cautions)


def evaluate_rows(
    task: ResolvedTask,
    source: ModelSource,
    rows: EncodedRows,
    num_rows: int,
    labels: Labels,
    reporter: Reporter,
    name: str = "",
) -> Evaluation:
    """Metrics of `source` over the encoded units of `num_rows` source rows; `name` is what progress calls it."""
    started = time.monotonic()
    network = task.models.model(source, task.kind)
    logits = logits_of(task, network, source, rows, reporter, f"evaluate {name or Path(source.model).name}")
    metrics = task.task.metrics(logits, rows, rows.rows, labels)
    scores = task.task.row_scores(logits, rows, rows.rows, labels)
    agreement = agreement_of(task.task, logits, rows, rows.rows, labels)
    seconds = round(time.monotonic() - started, 3)
    size = round(model_megabytes(network), 2)
    parameters = count_parameters(network)
    return Evaluation(source.model, metrics, num_rows, parameters, size, seconds, scores=scores, agreement=agreement)


def evaluate_teacher(
    task: ResolvedTask, teacher: ModelSource, rows: Rows, reporter: Reporter, name: str = "teacher"
) -> Evaluation:
    """Metrics and size of the teacher on the evaluation rows, computed once for all students."""
    assert rows.evaluation is not None  # the caller looked
    encoded = encode(task, rows.evaluation.table, teacher)
    weights = known_hashes(teacher, task.kind, task.cache, models=task.models).weights
    key = xxhash.xxh3_128_hexdigest(f"{weights} {encoded.key}".encode())
    given = encoded, len(rows.evaluation), rows.labels, reporter, name
    return _once(encoded, key, lambda: evaluate_rows(task, teacher, *given))


def _once(rows: EncodedRows, key: str, evaluate: Callable[[], Evaluation]) -> Evaluation:
    """What `evaluate` gives, kept beside the `rows` under `key`."""
    path = rows.folder.parent / f"evaluation-{key}.json"
    found = _known(path)
    if found is None:
        found = evaluate()
        _keep(path, found)
    return found


def _known(path: Path) -> Evaluation | None:
    """An evaluation that was kept at `path` with the scores of its rows; None if it was not, or by another version."""
    scores = load_scores(path.with_suffix(".npz"))
    if scores is None:
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Evaluation(**values | {"agreement": agreement_from(values["agreement"])}, scores=scores)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _keep(path: Path, found: Evaluation) -> None:
    """Without cautions: they follow from the rest, and from names."""
    if found.scores is not None:
        save_scores(path.with_suffix(".npz"), found.scores)
    values = found.plain() | {"agreement": None if found.agreement is None else dataclasses.asdict(found.agreement)}
    del values["cautions"]
    with writing(path):
        write_json(path, values)


def evaluate_ensemble(task: ResolvedTask, rows: Rows, reporter: Reporter) -> tuple[Evaluation, dict[str, Evaluation]]:
    """The average of the task's teachers as one model, and each of them; the average is computed once for all students.

    Its size is that of all teachers together.
    """
    assert rows.evaluation is not None  # the caller looked
    sources, config = task.sources, task.teacher
    members = {name: evaluate_teacher(task, source, rows, reporter, name) for name, source in sources.items()}
    weights = {teacher.label: teacher.weight for teacher in task.teachers}
    # Units that fit all tokenizers, so that all teachers speak of the same ones.
    encoded = {name: encode(task, rows.evaluation.table, source, *sources.values()) for name, source in sources.items()}
    hashes = {}
    for name, source in sources.items():
        known_by = known_hashes(source, task.kind, task.cache, models=task.models).weights
        hashes[name] = f"{known_by} {encoded[name].key} {weights[name]}"
    temperature = task.distill.temperature
    average = Average(weights, config.average, temperature)
    rule = (config.average, temperature if config.average == "probabilities" else None)
    key = xxhash.xxh3_128_hexdigest(json.dumps([hashes, rule]).encode())
    first, num_rows = next(iter(encoded.values())), len(rows.evaluation)

    def of_average() -> Evaluation:
        said: dict[Signal, np.ndarray | list[np.ndarray]] = {}
        for name, source in sources.items():
            network = task.models.model(source, task.kind)
            title = f"evaluate {name} for the average"
            said[LOGITS.of(name)] = logits_of(task, network, source, encoded[name], reporter, title)
        logits = _averaged(average, said)
        return Evaluation(
            average_name(config),
            task.task.metrics(logits, first, first.rows, rows.labels),
            num_rows,
            sum(member.parameters for member in members.values()),
            round(sum(member.megabytes for member in members.values()), 2),
            round(sum(member.seconds for member in members.values()), 3),
            task.task.row_scores(logits, first, first.rows, rows.labels),
            agreement_of(task.task, logits, first, first.rows, rows.labels),
        )

    return _once(first, key, of_average), members


def _averaged(average: Average, said: Mapping[Signal, np.ndarray | list[np.ndarray]]) -> np.ndarray | list[np.ndarray]:
    """The average of all teachers' logits, in the form that each of them has."""
    first = next(iter(said.values()))
    if isinstance(first, np.ndarray):
        whole = {signal: torch.from_numpy(np.asarray(values)) for signal, values in said.items()}
        return average(whole)[LOGITS].to_dense().numpy()
    return [
        average({signal: torch.from_numpy(values[row]) for signal, values in said.items()})[LOGITS].to_dense().numpy()
        for row in range(len(first))
    ]


def average_name(teacher: TeacherConfig) -> str:
    """What several teachers are called together: `big + other`, with weights where they differ."""
    weights = {name: member.weight for name, member in teacher.members.items() if member.weight > 0}
    if len(set(weights.values())) <= 1:
        return " + ".join(weights)
    return " + ".join(f"{weight:g} {name}" for name, weight in weights.items())


def logits_of(
    task: ResolvedTask,
    network: Any,
    source: ModelSource,
    rows: EncodedRows,
    reporter: Reporter,
    title: str,
    *,
    hidden: bool = True,
) -> np.ndarray | list[np.ndarray]:
    """float32 logits of a loaded model, where such models are trained.

    (rows, classes), or (items, classes) for each row.

    Tasks that hide tokens do so for evaluation; without `hidden` the model reads rows as they are.
    """
    place, elsewhere = place_of_evaluation(task.train)
    tokenizer = task.models.tokenizer(source)
    shown = as_shown(rows, task.task, tokenizer, *EVALUATION) if hidden else rows
    done, unit = 0, task.task.unit_name
    if rows.num_rows != rows.num_source_rows:
        # A row may have several units, such as parts of a long sentence.
        title, unit = f"{title}, {rows.num_source_rows:,} rows", "parts" if unit == "sentences" else unit
    with reporter.bar(title, rows.num_rows, unit) as update:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            update(done, "")

        given = (network, shown, tokenizer.pad_token_id, place, task.head(tokenizer))
        if elsewhere:
            with ray_runtime("evaluation"):
                check_seen({f"data.cache ({rows.folder})": Folder(rows.folder)}, "evaluation")
                return on_gpu("evaluation", _compute, *given)  # type: ignore[no-any-return]
        return _compute(*given, advance)


def _compute(
    network: Any, rows: Any, pad_token_id: int, place: Place, head: Any, advance: Callable[[int], None] | None = None
) -> np.ndarray | list[np.ndarray]:
    """In the process that has the device; the model is off it afterwards."""
    device = torch.device(place.device)
    precision = Precision(place.precision, device)
    try:
        return compute_logits(network.to(device), rows, pad_token_id, LocalContext(device), precision, head, advance)
    finally:
        free_gpu(network)


def labels_of_model(source: ModelSource, task: Task, models: ModelCache) -> Labels:
    """Label names of a model; LABEL_0, LABEL_1, ... where it has no better ones. Of a masked LM its tokens as text."""
    config = load_config(source)
    if task.masking is not None:
        tokenizer, size = models.tokenizer(source), int(config.vocab_size)
        return Labels(tuple(tokenizer.batch_decode([[token] for token in range(size)])), named=False)
    return Labels(model_labels(config) or tuple(f"LABEL_{index}" for index in range(config.num_labels or 0)))


def joint_metrics(found: Mapping[str, Mapping[str, float]], judged_by: Mapping[str, str]) -> dict[str, float]:
    """Metrics of an only task (labelled "") as they are; of several `<task>.<metric>`, and the `mean` of those they are
    judged by. Tasks without evaluation rows have no part in it."""
    if "" in found:
        return dict(found[""])
    measured = {task: metrics for task, metrics in found.items() if metrics}
    if not measured:
        return {}
    mean = sum(metrics[judged_by[task]] for task, metrics in measured.items()) / len(measured)
    return {"mean": mean} | {
        f"{task}.{name}": value for task, metrics in measured.items() for name, value in metrics.items()
    }


def keep_scores(folder: Path, task: str, name: str, found: Evaluation) -> None:
    """Keep what each row adds to the metrics with a run: `name` is `eval`, `test`, `teacher-eval` or `teacher-test`."""
    if found.scores is not None:
        save_scores(score_file(folder, task, name), found.scores)


def score_file(folder: Path, task: str, name: str) -> Path:
    """Where a run has those scores; `task` is the label of one of several."""
    return folder / "scores" / task / f"{name}.npz"

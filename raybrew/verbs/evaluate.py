"""evaluate: metrics of a model on labelled rows."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from raybrew.config import Experiment
from raybrew.data.arrow import write_json
from raybrew.data.encoded import EncodedRows
from raybrew.errors import ConfigError, RunError
from raybrew.models.inspection import count_parameters, measure_latency, model_megabytes
from raybrew.models.loading import (
    ModelSource,
    load_config,
    load_model,
    load_tokenizer,
    model_labels,
    pick_device,
    pick_precision,
)
from raybrew.store.fingerprint import hash_weights
from raybrew.tasks.base import Labels
from raybrew.training.context import LocalContext
from raybrew.training.evaluation import compute_logits
from raybrew.training.precision import Precision
from raybrew.training.run_folder import RunFolder
from raybrew.verbs.prepare import Rows, check_teacher_labels, encode, read_rows, task_of, teacher_source
from raybrew.verbs.reporter import QuietReporter, Reporter

__all__ = ["Evaluation", "evaluate", "logits_of", "pick_model"]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Metrics of one model on the evaluation rows."""

    model: str
    metrics: dict[str, float]
    rows: int
    parameters: int
    megabytes: float
    seconds: float
    latency_ms: dict[str, float] = dataclasses.field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """All values as plain JSON types."""
        return dataclasses.asdict(self)


def evaluate(
    experiment: Experiment, *, model: str = "student", run_id: str | None = None, reporter: Reporter | None = None
) -> Evaluation:
    """Metrics on `data.eval` of this experiment's `student` or `teacher`, or of a model folder or hub model."""
    reporter = reporter or QuietReporter()
    if experiment.data.eval is None:
        raise ConfigError("data.eval: required by this command; name labelled rows")
    source = pick_model(experiment, model, run_id)
    # The evaluated model's labels count, not those that the training rows would suggest.
    if experiment.data.train is None:
        experiment = experiment.model_copy(
            update={"data": experiment.data.model_copy(update={"train": experiment.data.eval, "train_rows": None})}
        )
    rows = read_rows(experiment, source, reporter.say, with_unlabeled=False)
    check_teacher_labels(source, rows.labels)
    assert rows.evaluation is not None  # data.eval is given
    table = rows.evaluation.table
    encoded = encode(experiment, table, source)
    return evaluate_rows(experiment, source, encoded, table.num_rows, rows.labels, reporter)


def evaluate_rows(
    experiment: Experiment,
    source: ModelSource,
    rows: EncodedRows,
    num_rows: int,
    labels: Labels,
    reporter: Reporter,
) -> Evaluation:
    """Metrics of `source` over the encoded units of `num_rows` source rows."""
    started = time.monotonic()
    network = load_model(source, experiment.task.kind)
    logits = logits_of(experiment, network, source, rows, reporter, f"evaluate {Path(source.model).name}")
    metrics = task_of(experiment).metrics(logits, rows, rows.rows, labels)
    seconds = round(time.monotonic() - started, 3)
    size = round(model_megabytes(network), 2)
    return Evaluation(source.model, metrics, num_rows, count_parameters(network), size, seconds)


def evaluate_teacher(experiment: Experiment, teacher: ModelSource, rows: Rows, reporter: Reporter) -> Evaluation:
    """Metrics, size and latency of the teacher on the evaluation rows, computed once for all students."""
    assert rows.evaluation is not None  # the caller looked
    encoded = encode(experiment, rows.evaluation.table, teacher)
    key = xxhash.xxh3_128_hexdigest(f"{hash_weights(load_model(teacher, experiment.task.kind))} {encoded.key}".encode())
    path = encoded.folder.parent / f"evaluation-{key}.json"
    try:
        return Evaluation(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        pass  # not computed yet, or by another version
    found = evaluate_rows(experiment, teacher, encoded, len(rows.evaluation), rows.labels, reporter)
    device = pick_device(experiment.train.device)
    length = max(2, int(np.median(encoded.lengths)))
    latency = measure_latency(load_model(teacher, experiment.task.kind), length=length, device=device)
    found = dataclasses.replace(found, latency_ms={f"batch_{size}": round(value, 4) for size, value in latency.items()})
    write_json(path, found.plain())
    return found


def logits_of(
    experiment: Experiment, network: Any, source: ModelSource, rows: EncodedRows, reporter: Reporter, title: str
) -> np.ndarray | list[np.ndarray]:
    """float32 logits of a loaded model, in this process: (rows, classes), or (items, classes) for each row."""
    device = pick_device(experiment.train.device)
    precision = Precision(pick_precision(experiment.train.precision, device), device)
    pad_token_id = load_tokenizer(source).pad_token_id
    done = 0
    with reporter.bar(title, rows.num_rows, "rows") as update:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            update(done, "")

        return compute_logits(network.to(device), rows, pad_token_id, LocalContext(device), precision, advance)


def pick_model(experiment: Experiment, model: str, run_id: str | None = None) -> ModelSource:
    """`student`, `teacher`, or a folder or hub name as a source; RunError when the student is not trained yet."""
    if model == "teacher":
        return teacher_source(experiment)
    if model == "student":
        run = RunFolder.of(experiment, "distill", run_id)
        if not run.student.is_dir():
            raise RunError(
                f"no student yet: {run.student} does not exist; run `raybrew distill` with this experiment first, "
                "or name a model folder with --model"
            )
        return ModelSource(str(run.student))
    return ModelSource(model)


def labels_of_model(source: ModelSource) -> Labels:
    """Label names of a model; LABEL_0, LABEL_1, ... where it has no better ones."""
    config = load_config(source)
    return Labels(model_labels(config) or tuple(f"LABEL_{index}" for index in range(config.num_labels or 0)))

"""distill: train a student on the teacher's outputs, from the store or live."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from raybrew.config import Experiment
from raybrew.data.encoded import tokenizer_fingerprint
from raybrew.errors import ConfigError, ModelError
from raybrew.models.loading import ModelSource, load_tokenizer
from raybrew.reports.html import write_report
from raybrew.signals import Signal
from raybrew.store.find import find_store
from raybrew.store.reader import Store
from raybrew.training.context import OnEvaluation
from raybrew.training.run_folder import RunFolder
from raybrew.verbs.capture import capture_table, request_of, store_root, tokenizer_source, usable_rows
from raybrew.verbs.evaluate import evaluate_teacher
from raybrew.verbs.prepare import (
    Rows,
    check_teacher_labels,
    encode,
    read_rows,
    rows_with,
    task_of,
    teacher_source,
    units_of,
)
from raybrew.verbs.reporter import QuietReporter, Reporter
from raybrew.verbs.result import RunResult
from raybrew.verbs.training import Inputs, train_run

__all__ = ["distill"]


def distill(
    experiment: Experiment,
    *,
    run_id: str | None = None,
    teacher_run: str | None = None,
    report: bool = True,
    reporter: Reporter | None = None,
    command: str | None = None,
    on_evaluation: OnEvaluation | None = None,
) -> RunResult:
    """Train the student of `experiment` and keep the best by `task.metric` as a Hugging Face folder.

    `teacher.source: auto` captures what the store lacks first; `store` wants it there; `live` runs the teacher in every
    step. The same call continues an interrupted run and returns a finished one at once. `on_evaluation` hears of each
    evaluation and may end the training of one worker; `command` is what the run notes as its command. Raises
    ConfigError, DataError, ModelError, StoreError before training, and Interrupted when asked to stop (the state is
    saved).
    """
    reporter = reporter or QuietReporter()
    if experiment.student.model is None and experiment.student.shape is None:
        raise ConfigError("student: required by `raybrew distill`; give student.model or student.shape")
    teacher = teacher_source(experiment, teacher_run) if experiment.teacher.model is not None else None
    rows = read_rows(experiment, teacher, reporter.say)
    request = request_of(experiment, teacher, rows.labels.names) if teacher is not None else ()
    if teacher is not None and request:
        check_teacher_labels(teacher, rows.labels)
    run = RunFolder.of(experiment, "distill", run_id)
    with run.locked():
        store, tokens = None, tokenizer_source(experiment, teacher)
        if teacher is not None and request:
            _check_tokenizers(experiment, teacher, tokens, request)
            if experiment.teacher.source != "live":
                units = units_of(experiment, rows.training, teacher, tokens)
                store = _store(experiment, teacher, units, request, reporter)
                bad = ~usable_rows(experiment, store, units, request)
                rows = rows.without(rows_with(units, bad, rows.training.num_rows))
        inputs = Inputs(
            rows.labels,
            encode(experiment, rows.training, tokens, teacher if request else None),
            encode(experiment, rows.evaluation.table, tokens) if rows.evaluation is not None else None,
            rows.num_labelled,
            rows.num_unlabeled,
            teacher,
            store.location if store is not None else None,
            store.fingerprint if store is not None else None,
        )
        finished = run.summary()
        if finished is not None:
            run.prepare(experiment, "distill", inputs.fingerprints(), None)
            return RunResult(run.path, finished, already_done=True)
        facts = _facts(experiment, teacher, rows, inputs, bool(request), reporter)
        result = train_run(
            experiment, "distill", run, inputs, experiment.train, reporter, facts, "train", command, on_evaluation
        )
        if report:
            write_report([run.path], run.path / "report.html", title=f"{experiment.name}: {run.run_id}")
        return result


def _store(
    experiment: Experiment, teacher: ModelSource, rows: pa.Table, request: tuple[Signal, ...], reporter: Reporter
) -> Store:
    """The store that the student reads: as it is for `source: store`, completed first for `auto`. `rows` are units."""
    if experiment.teacher.source == "auto":
        return capture_table(experiment, teacher, rows, request, reporter)
    store = find_store(
        rows,
        task_of(experiment),
        teacher,
        request,
        experiment.store,
        store_root(experiment),
        experiment.teacher.device,
        experiment.teacher.precision,
    )
    usable_rows(experiment, store, rows, request, reporter.say)
    return store


def _check_tokenizers(
    experiment: Experiment, teacher: ModelSource, student: ModelSource, request: tuple[Signal, ...]
) -> None:
    """Refuse what needs the same tokens on both sides when the tokenizers differ."""
    if student == teacher:
        return
    if tokenizer_fingerprint(load_tokenizer(student)) == tokenizer_fingerprint(load_tokenizer(teacher)):
        return
    layers = [signal.name for signal in request if signal.layer is not None]
    if layers:
        raise ModelError(
            f"distill.matches: compares {', '.join(layers)} token by token, but the tokenizers of {student.model} and "
            f"{teacher.model} differ; remove the matches, or take a student with the teacher's tokenizer"
        )
    if experiment.teacher.source == "live":
        raise ModelError(
            f"teacher.source: live feeds both models the same tokens, but the tokenizers of {student.model} and "
            f"{teacher.model} differ; use teacher.source=auto"
        )


def _facts(
    experiment: Experiment,
    teacher: ModelSource | None,
    rows: Rows,
    inputs: Inputs,
    from_teacher: bool,
    reporter: Reporter,
) -> dict[str, Any]:
    """What the summary says beyond the training itself."""
    distill = experiment.distill
    described: dict[str, Any] | None = None
    if teacher is not None:
        described = {"model": teacher.model, "fingerprint": inputs.fingerprint}
        if rows.evaluation is not None and from_teacher:
            found = evaluate_teacher(experiment, teacher, rows, reporter)
            described |= {
                "parameters": found.parameters,
                "megabytes": found.megabytes,
                "metrics": found.metrics,
                "latency_ms": found.latency_ms,
            }
    return {
        "role": "student" if from_teacher else "control",
        "teacher": described,
        "distill": {
            "temperature": distill.temperature,
            "kd_loss": distill.kd_loss.kind,
            "kd_weight": distill.kd_weight,
            "hard_label_weight": distill.hard_label_weight,
            "matches": [f"{match.loss} {match.layers} x {match.weight:g}" for match in distill.matches],
            "source": "store" if inputs.store is not None else "live" if from_teacher else "labels",
        },
    }

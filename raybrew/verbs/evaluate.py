"""evaluate: metrics of a model on labelled rows."""

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

from raybrew.config import Experiment, TeacherConfig
from raybrew.config.views import choose_task, task_views
from raybrew.data.cautions import Caution, tell
from raybrew.data.encoded import EncodedRows
from raybrew.data.masking import EVALUATION, as_shown
from raybrew.data.row_checks import row_cautions
from raybrew.data.rows import RowSet, load_rows
from raybrew.data.rows import Split as RowSplit
from raybrew.distillers.ensemble import Average
from raybrew.errors import ConfigError, DataError, RunError, writing
from raybrew.files import write_json
from raybrew.models.devices import Place, free_gpu, place_of_evaluation
from raybrew.models.inspection import count_parameters, model_megabytes
from raybrew.models.loading import ModelSource, load_config, load_model, load_tokenizer, model_labels
from raybrew.nodes import Folder, check_seen, on_gpu
from raybrew.runtime import ray_runtime
from raybrew.signals import LOGITS, Signal
from raybrew.store.fingerprint import known_hashes
from raybrew.tasks.agreement import Agreement, agreement_from, agreement_of
from raybrew.tasks.base import Labels, Task
from raybrew.tasks.scores import RowScores, load_scores, save_scores
from raybrew.training.context import LocalContext
from raybrew.training.evaluation import compute_logits
from raybrew.training.optim import Precision
from raybrew.training.run_folder import EVALUATED, NUMBER_OF_ROWS, RunFolder
from raybrew.verbs.choose import chosen_tasks, chosen_teachers, teacher_sources
from raybrew.verbs.model_checks import model_cautions, whose
from raybrew.verbs.prepare import (
    Rows,
    cache_folder,
    check_teacher_labels,
    data_key,
    data_of,
    encode,
    head_of,
    known_labels,
    say_cautions,
    task_of,
    teacher_source,
)
from raybrew.verbs.reporter import QuietReporter, Reporter

__all__ = [
    "AVERAGE",
    "Evaluation",
    "average_name",
    "evaluate",
    "evaluate_all",
    "evaluate_ensemble",
    "evaluate_teacher",
    "evaluation_rows",
    "labels_of_model",
    "logits_of",
    "pick_model",
]

#: Labelled rows to evaluate on: `data.eval` or `data.test`.
Split = Literal["eval", "test"]
#: What the average of several teachers is called where one of their names may stand.
AVERAGE = "average"
#: Keys of `data` in which a finished model may differ from the experiment that evaluates it.
_ANY_ROWS = EVALUATED | NUMBER_OF_ROWS


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


def evaluate(
    experiment: Experiment,
    *,
    model: str = "student",
    task: str | None = None,
    teacher: str | None = None,
    data: str | None = None,
    split: Split = "eval",
    run_id: str | None = None,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Metrics of this experiment's `student` or `teacher`, or of a model folder or hub model, on labelled rows.

    The rows are those of `data`, a source as `data.eval` names it, else of `data.eval` or, with `split="test"`, of
    `data.test`. Nothing is trained: the model is that of the finished run of this configuration, whatever rows the
    experiment now names for evaluation. `task` chooses one of several tasks, and `teacher` one of several teachers:
    one of their names, or `average`.
    """
    found = evaluate_all(
        experiment, model=model, task=task, teacher=teacher, data=data, split=split, run_id=run_id, reporter=reporter
    )
    if len(found) > 1:
        raise ConfigError(f"evaluate: several models are meant, choose one or evaluate_all: {', '.join(found)}")
    return next(iter(found.values()))


def evaluate_all(
    experiment: Experiment,
    *,
    model: str = "student",
    task: str | None = None,
    teacher: str | None = None,
    data: str | None = None,
    split: Split = "eval",
    run_id: str | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Evaluation]:
    """As `evaluate` for all tasks, and with `model="teacher"` for all teachers and their average, by name."""
    reporter = reporter or QuietReporter()
    if teacher is not None and model != "teacher":
        raise ConfigError(f"--teacher: given {teacher!r}, which applies to --model teacher only")
    tasks = chosen_tasks(experiment, task)
    if data is not None and len(tasks) > 1:
        names = ", ".join(map(str, tasks))
        raise ConfigError(f"--data: names the rows of one task, and there are several: {names}; choose one with --task")
    found: dict[str, Evaluation] = {}
    for name, view in tasks.items():
        if data is not None:
            view = view.model_copy(update={"data": data_of(view.data, data, "eval")})
        for label, one in _evaluated(experiment, name, view, split, model, teacher, run_id, reporter).items():
            found["/".join(part for part in (name, label) if part)] = one
    return found


def _evaluated(
    experiment: Experiment,
    name: str | None,
    view: Experiment,
    split: Split,
    model: str,
    teacher: str | None,
    run_id: str | None,
    reporter: Reporter,
) -> dict[str, Evaluation]:
    """The evaluations of one task, on the rows of `view`; a single one is labelled with nothing."""
    trained = task_views(experiment)[name]
    if model == "teacher" and view.teacher.members:
        sources = {str(member): source for member, source in teacher_sources(trained, None, _ANY_ROWS).items()}
        chosen = chosen_teachers([*sources, AVERAGE], teacher)
        rows = _labelled_rows(view, next(iter(sources.values())), split, data_key(name), trained)
        say_cautions(rows.cautions, {split: rows.evaluation}, reporter.say)
        for source in sources.values():
            check_teacher_labels(source, rows.labels)
        averaged, members = evaluate_ensemble(view, sources, rows, reporter)
        every = {**members, AVERAGE: averaged}
        return {
            str(label): _doubted(
                every[str(label)], whose(name, str(label)), sources.get(str(label)), rows, view.task.metric, reporter
            )
            for label in chosen
        }
    if teacher is not None:
        raise ConfigError(f"--teacher: given {teacher!r}, but there is one teacher only; leave it out")
    source = pick_model(experiment, model, run_id, name)
    rows, encoded = evaluation_rows(view, source, split, data_key(name), trained)
    assert rows.evaluation is not None
    say_cautions(rows.cautions, {split: rows.evaluation}, reporter.say)
    found = evaluate_rows(view, source, encoded, len(rows.evaluation), rows.labels, reporter)
    who = whose(name) if model == "teacher" else f"the model {source.model}"
    return {"": _doubted(found, who, source, rows, view.task.metric, reporter)}


def _doubted(
    found: Evaluation, who: str, source: ModelSource | None, rows: Rows, metric: str, reporter: Reporter
) -> Evaluation:
    """The evaluation with what is doubtful about the model, which is told, and about its rows, which was."""
    cautions = model_cautions(who, source, found.agreement, found.metrics, rows.labels, metric)
    tell(cautions, reporter.say)
    return dataclasses.replace(found, cautions=(*rows.cautions, *cautions))


def evaluation_rows(
    view: Experiment,
    source: ModelSource,
    split: Split = "eval",
    key: str = "data",
    trained: Experiment | None = None,
) -> tuple[Rows, EncodedRows]:
    """The rows of `data.eval` or `data.test` and their units for the model `source`, whose labels they must have.

    `key` is where the experiment has the section `data`. The cautions about the rows are not told. With the experiment
    of which the model was `trained`, they are also compared with its training rows, where these can be read.
    """
    rows = _labelled_rows(view, source, split, key, trained)
    check_teacher_labels(source, rows.labels)
    assert rows.evaluation is not None
    return rows, encode(view, rows.evaluation.table, source)


def _labelled_rows(view: Experiment, source: ModelSource, split: Split, key: str, trained: Experiment | None) -> Rows:
    """The rows of `data.<split>` as those to evaluate on, labelled as the model `source` labels."""
    if getattr(view.data, split) is None:
        raise ConfigError(f"{key}.{split}: required by this command; name labelled rows")
    task = task_of(view)
    cache = cache_folder(view)
    found = load_rows(view.data, split, task, known_labels(view, source), cache=cache)
    splits: dict[RowSplit, RowSet] = {}
    if trained is not None and view.data.train is not None and trained.data.format == view.data.format:
        with contextlib.suppress(ConfigError, DataError):  # training rows may be gone, or bad
            splits["train"] = load_rows(view.data, "train", task, found.labels, learns_labels=False, cache=cache)
    splits[split] = found
    cautions = row_cautions(splits, view.data, task, view.task.metric, key, about=(split,))
    return Rows(found.table, 0, 0, found, found.labels, cautions=cautions)


def evaluate_rows(
    experiment: Experiment,
    source: ModelSource,
    rows: EncodedRows,
    num_rows: int,
    labels: Labels,
    reporter: Reporter,
    name: str = "",
) -> Evaluation:
    """Metrics of `source` over the encoded units of `num_rows` source rows; `name` is what progress calls it."""
    started = time.monotonic()
    network = load_model(source, experiment.task.kind)
    logits = logits_of(experiment, network, source, rows, reporter, f"evaluate {name or Path(source.model).name}")
    task = task_of(experiment)
    metrics = task.metrics(logits, rows, rows.rows, labels)
    scores = task.row_scores(logits, rows, rows.rows, labels)
    agreement = agreement_of(task, logits, rows, rows.rows, labels)
    seconds = round(time.monotonic() - started, 3)
    size = round(model_megabytes(network), 2)
    parameters = count_parameters(network)
    return Evaluation(source.model, metrics, num_rows, parameters, size, seconds, scores=scores, agreement=agreement)


def evaluate_teacher(
    experiment: Experiment, teacher: ModelSource, rows: Rows, reporter: Reporter, name: str = "teacher"
) -> Evaluation:
    """Metrics and size of the teacher on the evaluation rows, computed once for all students."""
    assert rows.evaluation is not None  # the caller looked
    encoded = encode(experiment, rows.evaluation.table, teacher)
    weights = known_hashes(teacher, experiment.task.kind, cache_folder(experiment)).weights
    key = xxhash.xxh3_128_hexdigest(f"{weights} {encoded.key}".encode())
    path = encoded.folder.parent / f"evaluation-{key}.json"
    known = _known(path)
    if known is not None:
        return known
    found = evaluate_rows(experiment, teacher, encoded, len(rows.evaluation), rows.labels, reporter, name)
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


def evaluate_ensemble(
    view: Experiment, sources: Mapping[str, ModelSource], rows: Rows, reporter: Reporter
) -> tuple[Evaluation, dict[str, Evaluation]]:
    """The average of several teachers as one model, and each of them; the average is computed once for all students.

    Its size is that of all teachers together.
    """
    assert rows.evaluation is not None  # the caller looked
    members = {name: evaluate_teacher(view, source, rows, reporter, name) for name, source in sources.items()}
    weights = {name: member.weight for name, member in view.teacher.members.items()}
    # Units that fit all tokenizers, so that all teachers speak of the same ones.
    encoded = {name: encode(view, rows.evaluation.table, source, *sources.values()) for name, source in sources.items()}
    hashes = {
        name: f"{known_hashes(source, view.task.kind, cache_folder(view)).weights} {encoded[name].key} {weights[name]}"
        for name, source in sources.items()
    }
    average = Average(weights, view.teacher.average, view.distill.temperature)
    rule = (view.teacher.average, view.distill.temperature if view.teacher.average == "probabilities" else None)
    key = xxhash.xxh3_128_hexdigest(json.dumps([hashes, rule]).encode())
    path = next(iter(encoded.values())).folder.parent / f"evaluation-{key}.json"
    known = _known(path)
    if known is not None:
        return known, members
    said: dict[Signal, np.ndarray | list[np.ndarray]] = {}
    for name, source in sources.items():
        network = load_model(source, view.task.kind)
        logits = logits_of(view, network, source, encoded[name], reporter, f"evaluate {name} for the average")
        said[LOGITS.of(name)] = logits
    first = next(iter(encoded.values()))
    task, logits = task_of(view), _averaged(average, said)
    metrics = task.metrics(logits, first, first.rows, rows.labels)
    found = Evaluation(
        average_name(view.teacher),
        metrics,
        len(rows.evaluation),
        sum(member.parameters for member in members.values()),
        round(sum(member.megabytes for member in members.values()), 2),
        round(sum(member.seconds for member in members.values()), 3),
        task.row_scores(logits, first, first.rows, rows.labels),
        agreement_of(task, logits, first, first.rows, rows.labels),
    )
    _keep(path, found)
    return found, members


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
    experiment: Experiment,
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
    place, elsewhere = place_of_evaluation(experiment.train)
    tokenizer, task = load_tokenizer(source), task_of(experiment)
    shown = as_shown(rows, task, tokenizer, *EVALUATION) if hidden else rows
    done, unit = 0, task.unit_name
    if rows.num_rows != rows.num_source_rows:
        # A row may have several units, such as parts of a long sentence.
        title, unit = f"{title}, {rows.num_source_rows:,} rows", "parts" if unit == "sentences" else unit
    with reporter.bar(title, rows.num_rows, unit) as update:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            update(done, "")

        given = (network, shown, tokenizer.pad_token_id, place, head_of(experiment, tokenizer))
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


def pick_model(experiment: Experiment, model: str, run_id: str | None = None, task: str | None = None) -> ModelSource:
    """`student`, `teacher`, or a folder or hub name as a source; RunError when the student is not trained yet.

    `task` is the name of the task that is meant, of several.
    """
    if model == "teacher":
        return teacher_source(choose_task(experiment, task), None, _ANY_ROWS)
    if model == "student":
        run = RunFolder.trained(experiment, "distill", run_id, _ANY_ROWS)
        folder = run.student / (task or "")
        if run.summary() is not None and not run.has_student:
            raise RunError(f"{run.why_no_student()}, or name a model folder with --model")
        if not folder.is_dir():
            raise RunError(
                f"no student yet: {folder} does not exist; run `raybrew distill` with this experiment first, "
                "or name a model folder with --model"
            )
        return ModelSource(str(folder))
    return ModelSource(model)


def labels_of_model(source: ModelSource, task: Task) -> Labels:
    """Label names of a model; LABEL_0, LABEL_1, ... where it has no better ones. Of a masked LM its tokens as text."""
    config = load_config(source)
    if task.masking is not None:
        tokenizer, size = load_tokenizer(source), int(config.vocab_size)
        return Labels(tuple(tokenizer.batch_decode([[token] for token in range(size)])), named=False)
    return Labels(model_labels(config) or tuple(f"LABEL_{index}" for index in range(config.num_labels or 0)))

"""What is exported: the student of a run, of a sweep, or a model folder, and where it comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raybrew.catalog.tasks import TASKS, kinds_by_head
from raybrew.config import Experiment
from raybrew.config.kinds import task_spec
from raybrew.config.loading import load_experiment
from raybrew.config.task import TASK_CONFIGS, TaskConfig
from raybrew.config.views import choose_task
from raybrew.errors import ConfigError, ModelError, RunError
from raybrew.exports.facts import CardFacts, Control, metrics_of_task, summary_of_task
from raybrew.models.loading import ModelSource, load_config, max_tokens
from raybrew.records.ranking import best_mark
from raybrew.records.runs import RunRecord, is_run, load_run, load_runs
from raybrew.records.summary import RunSummary
from raybrew.records.sweeps import find_sweeps, is_sweep, load_sweep
from raybrew.reports.compare import compare
from raybrew.reports.rows import Row
from raybrew.reports.sweep_tables import best_run, leaderboard, student_of_sweep
from raybrew.reports.words import over_control, over_teacher, plain_metric
from raybrew.training.run_folder import RunFolder

__all__ = ["ExportSource", "find_source"]

#: End of an architecture's name -> kinds of tasks, the usual one first.
_HEADS = kinds_by_head()
#: How a sequence classifier's outputs are read -> the kind of task that it is of, if not the usual one.
_PROBLEMS: dict[str, str] = {spec.problem_type: spec.kind for spec in TASKS.values() if spec.problem_type is not None}


@dataclasses.dataclass(frozen=True)
class ExportSource:
    """A finished model and what is known of it; `view` is its experiment, of one task."""

    folder: Path
    task: TaskConfig
    view: Experiment | None = None
    run: RunRecord | None = None
    control: RunRecord | None = None
    task_name: str = ""  #: of one of several
    compared: tuple[str, ...] = ()
    """How the configuration stands to its control and its teacher, in sentences."""
    configurations: int | None = None
    """Among how many a sweep chose it."""

    @property
    def source(self) -> ModelSource:
        return ModelSource(str(self.folder))

    @property
    def name(self) -> str:
        if self.run is None:
            return self.folder.resolve().name
        return self.run.experiment + (f": {self.task_name}" if self.task_name else "")

    def facts(self) -> CardFacts:
        """What a model card tells of it."""
        if self.run is None:
            return CardFacts(RunSummary.read({"name": self.name}), self.task.kind)
        run = dataclasses.replace(summary_of_task(self.run.facts, self.task_name), name=self.name)
        if self.configurations is not None:
            run = dataclasses.replace(run, chosen=dataclasses.replace(run.chosen, configurations=self.configurations))
        environment = self.run.environment
        return CardFacts(
            run,
            self.task.kind,
            command=self.run.command,
            versions={
                name: environment[name] for name in ("raybrew", "torch", "ray", "transformers") if environment.get(name)
            },
            control=self._control(),
            compared=self.compared,
        )

    def _control(self) -> Control | None:
        if self.control is None or self.control.best is None:
            return None
        test = self.control.facts.test
        tested = metrics_of_task(test.metrics if test is not None else {}, self.task_name)
        return Control(self.control.run_id, metrics_of_task(self.control.best.metrics, self.task_name), tested)


def find_source(path: Path, task: str | None = None, experiment: Experiment | None = None) -> ExportSource:
    """The student of the run or sweep at `path`, or the model in that folder.

    A run's student and a sweep's `best` are known as theirs. `task` chooses one of several; `experiment` stands in for
    a run's own configuration, or tells of a plain folder what it was trained on. RunError where nothing is finished.
    """
    if not path.exists():
        raise RunError(f"{path.absolute()} does not exist; name a run's folder, a sweep's, or a model's")
    if (path / "config.json").is_file():
        run = _run_of_folder(path)
        if run is None:
            return _model(path, experiment)
        above = path.resolve().parent
        return _student(path, run, task, experiment, above if is_sweep(above) else None)
    if is_run(path):
        return _student(path / "student", load_run(path), task, experiment)
    sweeps = find_sweeps([path])
    if len(sweeps) != 1:
        found = f"{len(sweeps)} sweeps" if sweeps else "neither a run, nor a sweep, nor a model (config.json)"
        raise RunError(f"{path} holds {found}; name the folder of one run, sweep or model")
    sweep = sweeps[0]
    run_name = best_run(load_sweep(sweep))
    if run_name is None:
        raise RunError(f"{sweep}: no trial has finished with an evaluation, so there is no best student yet")
    return _student(student_of_sweep(sweep, run_name), load_run(sweep.parent / run_name), task, experiment, sweep)


def _run_of_folder(folder: Path) -> RunRecord | None:
    """The run that made the model in `folder`, where that folder is a part of a run or of a sweep."""
    parent = folder.resolve().parent
    if folder.resolve().name == "student" and is_run(parent):
        return load_run(parent)
    mark = best_mark(folder) if is_sweep(parent) else None
    return load_run(parent.parent / str(mark["run"])) if mark is not None else None


def _student(
    folder: Path, run: RunRecord, task: str | None, experiment: Experiment | None, sweep: Path | None = None
) -> ExportSource:
    if run.summary is None:
        raise RunError(f"{run.folder} is not finished ({run.status}); the command that began it continues it")
    made = RunFolder(run.folder, run.run_id)
    if folder.resolve() == made.student.resolve() and not made.has_student:
        raise RunError(made.why_no_student())
    whole = experiment or load_experiment(run.folder / "config.yaml", check_files=False)
    view = choose_task(whole, task)
    folder = folder / view.label
    if not folder.is_dir():
        raise RunError(f"{folder} does not exist: the student has no model of this task")
    row, tried = _row_of(run, sweep)
    control = _control_of(run, row)
    compared = tuple(_sentences(row)) if row is not None and task is None else ()
    return ExportSource(folder, view.task, view.experiment, run, control, view.label, compared, tried)


def _row_of(run: RunRecord, sweep: Path | None) -> tuple[Row | None, int | None]:
    """The configuration of `run` among the runs beside it, and of a sweep how many it was chosen among."""
    if sweep is not None:
        found = leaderboard(load_sweep(sweep))
        return found.best, found.tried
    if run.role != "student":
        return None, None
    others = [other for other in load_runs([run.folder.parent]) if other.status == "done"]
    here = run.folder.resolve()
    rows = compare(others).rows
    return next((row for row in rows if any(each.folder.resolve() == here for each in row.runs)), None), None


def _control_of(run: RunRecord, row: Row | None) -> RunRecord | None:
    """The run of the same student without a teacher that stands beside it: of the same seed, else the best one."""
    control = row.control if row is not None else None
    if control is None:
        return None
    measured = [other for other in control.runs if other.best is not None]
    return max(
        measured, key=lambda other: (other.seed == run.seed, other.best.value if other.best else 0.0), default=None
    )


def _sentences(row: Row) -> Iterator[str]:
    """How a configuration stands to its control and its teacher, over all its seeds."""
    metric = plain_metric(row.metric)
    if control := over_control(row):
        yield f"{metric} over seeds: {control}"
    if teacher := over_teacher(row):
        yield f"{metric} less the teacher's: {teacher}"


def _model(folder: Path, experiment: Experiment | None) -> ExportSource:
    source = ModelSource(str(folder))
    config = load_config(source)
    architecture = next(iter(config.architectures or ()), "")
    kinds = next((kinds for end, kinds in _HEADS.items() if architecture.endswith(end)), None)
    if kinds is None:
        raise ModelError(
            f"{folder} is a {architecture or 'model without a head'}; exported are models with one of these heads: "
            f"{', '.join(_HEADS)}"
        )
    if experiment is not None:
        view = choose_task(experiment, None)
        if not architecture.endswith(task_spec(view.task.kind).head):
            raise ConfigError(f"--experiment: its task is {view.task.kind}, but {folder} is a {architecture}")
        return ExportSource(folder, view.task, view.experiment)
    kind = _PROBLEMS.get(str(config.problem_type), kinds[0]) if len(kinds) > 1 else kinds[0]
    if len(kinds) > 1 and kind == kinds[0] and config.num_labels == 1:
        kind = next(each for each in kinds if TASKS[each].outputs == "numbers")
    task: Any = TASK_CONFIGS[kind]()
    longest = max_tokens(config)
    if longest is not None and longest < task.max_length:
        task = task.model_copy(update={"max_length": longest})
    return ExportSource(folder, task)

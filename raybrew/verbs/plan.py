"""plan: what capture and training will take, before anything runs, from the config and a short probe of the models."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from raybrew.config import Experiment
from raybrew.config.controls import planned_controls
from raybrew.config.kinds import task_spec
from raybrew.config.space import planned_trainings
from raybrew.config.task import WHY_LIVE
from raybrew.config.views import task_views
from raybrew.errors import ConfigError
from raybrew.models.loading import ModelSource
from raybrew.pipeline.objective import check_functions, likely_objective
from raybrew.pipeline.reporter import QuietReporter, Reporter
from raybrew.pipeline.resolve import Resolved, resolve
from raybrew.pipeline.rows import Rows, read_rows
from raybrew.pipeline.sizes import Sizes
from raybrew.pipeline.units import captured_units
from raybrew.planning.result import FinetunePlan, Plan, StorePlan, StudentPlan, TrainingPlan
from raybrew.planning.student import likely_vocabulary, student_plan
from raybrew.planning.teacher import store_plan
from raybrew.planning.training import finetune_plan, is_to_train, together, training_plan
from raybrew.signals import LOGITS, Signal, parse_signal, sorted_signals
from raybrew.training.run_folder import RunFolder

__all__ = ["Plan", "StorePlan", "StudentPlan", "TrainingPlan", "plan"]


def plan(
    experiment: Experiment,
    *,
    trials: int | None = None,
    price_per_hour: float | None = None,
    reporter: Reporter | None = None,
) -> Plan:
    """What capturing and training `experiment` will take for `trials` trainings. Nothing is written.

    Without `trials`: those of its sweep, beside which its controls are counted, or one.

    A few seconds of the real teacher and student on this machine are measured; a teacher that is not fine-tuned yet is
    taken as its base model, which has the same speed and sizes. Raises ConfigError, DataError and ModelError.
    """
    controls = 0
    if trials is None:
        trials = planned_trainings(experiment.sweep) if experiment.sweep is not None else 1
        controls = planned_controls(experiment)
    if trials < 1:
        raise ConfigError(f"--trials: given {trials}; allowed: at least 1")
    reporter = reporter or QuietReporter()
    resolved = resolve(experiment, or_base=True)
    check_functions(resolved, reporter.say)
    has_student = experiment.student.model is not None or experiment.student.shape is not None
    shape = resolved.shape
    rows = [read_rows(task, task.first_source, reporter.say, augment="estimate") for task in resolved.tasks]
    with tempfile.TemporaryDirectory(prefix="raybrew-plan-") as scratch:
        student, vocabulary = None, None
        if has_student:
            student, vocabulary = _student(resolved, shape, rows, Path(scratch) / "vocabulary", reporter)
        stores, trainings = _measured(resolved, shape, rows, vocabulary, has_student, reporter)
    finetunes = _finetunes(resolved, rows, reporter)
    training = together(trainings) if trainings else None
    problems = [*_disk_problems(stores), *_machine_problems(experiment, bool(stores))]
    live_because = _live_because(experiment)
    inside = experiment.distill.trains_in_teacher
    return Plan(
        experiment.name,
        trials,
        tuple(stores),
        training,
        price_per_hour,
        tuple(problems),
        live_because,
        inside,
        student,
        finetunes,
        controls=controls,
    )


def _student(
    resolved: Resolved, shape: ModelSource | None, rows: Sequence[Rows], folder: Path, reporter: Reporter
) -> tuple[StudentPlan, Path | None]:
    """What the student is made of, and the folder of its vocabulary where that is trimmed."""
    vocabulary, read, given = None, 0, sum(each.training.num_rows for each in rows)
    if resolved.experiment.student.vocabulary is not None:
        reporter.say("counting the pieces of the rows ...")
        vocabulary = folder
        read = likely_vocabulary(resolved, shape, [each.training for each in rows], folder)
    labels = {task.name: each.labels.names for task, each in zip(resolved.tasks, rows, strict=True)}
    return student_plan(resolved, shape, labels, vocabulary, (read, given)), vocabulary


def _measured(
    resolved: Resolved,
    shape: ModelSource | None,
    rows: Sequence[Rows],
    vocabulary: Path | None,
    has_student: bool,
    reporter: Reporter,
) -> tuple[list[StorePlan], list[TrainingPlan]]:
    """A store for each teacher that is asked, and the training of each task."""
    stores: list[StorePlan] = []
    trainings: list[TrainingPlan] = []
    for task, each in zip(resolved.tasks, rows, strict=True):
        labels = each.labels.names
        request: frozenset[Signal] = frozenset()
        if task.teachers and has_student:
            request = likely_objective(task, labels, shape).teacher_union
        for teacher in task.teachers:
            asked = set(teacher.asked(request)) if has_student else {LOGITS}
            asked = {signal for signal in asked if signal.module is None}  # those are asked live
            asked |= {parse_signal(signal) for signal in task.store.signals} if asked else set()
            if asked:
                reporter.say(f"measuring {teacher.source.model} ...")
                units = captured_units(task, each, teacher.source)
                stores.append(store_plan(task, teacher, labels, units, sorted_signals(asked)))
        if has_student:
            reporter.say("measuring the student ...")
            trainings.append(training_plan(task, shape, labels, each.training, vocabulary))
    return stores, trainings


def _finetunes(resolved: Resolved, rows: Sequence[Rows], reporter: Reporter) -> tuple[FinetunePlan, ...]:
    """The teachers that are not trained yet; equal ones are trained once."""
    found: dict[Path, FinetunePlan] = {}
    for task, each in zip(resolved.tasks, rows, strict=True):
        for teacher in task.teachers:
            run = RunFolder.of(teacher.experiment, "finetune").path if is_to_train(teacher) else None
            if run is not None and run not in found:
                reporter.say(f"measuring the fine-tuning of {teacher.config.model} ...")
                labelled = each.training.slice(0, each.num_labelled)
                found[run] = finetune_plan(task, teacher, each.labels.names, labelled)
    return tuple(found.values())


def _live_because(experiment: Experiment) -> str | None:
    if not all(task_spec(view.experiment.task.kind).stored for view in task_views(experiment)):
        return WHY_LIVE
    matches = [match for part in experiment.distill.parts for match in part.matches if match.weight > 0]
    modules = any(match.student_module is not None for match in matches)
    return "distill.matches compares modules, whose outputs no store holds" if modules else None


def _disk_problems(stores: list[StorePlan]) -> list[str]:
    return [
        f"{store.label}: {Sizes.text(store.total_bytes)} are needed, {Sizes.text(store.free_bytes or 0)} are free "
        f"for {store.location}"
        for store in stores
        if not store.fits
    ]


def _machine_problems(experiment: Experiment, captures: bool) -> list[str]:
    """What this machine lacks; a cluster that is joined by RAY_ADDRESS is asked when it is used."""
    if os.environ.get("RAY_ADDRESS"):
        return []
    cpus, problems = os.cpu_count() or 1, []
    store, train = experiment.store, experiment.train
    if captures and store.launcher != "local" and store.fewest_actors * store.cpus_per_actor > cpus:
        problems.append(
            f"store.actors, store.cpus_per_actor: {store.fewest_actors} actors of {store.cpus_per_actor:g} CPUs at "
            f"least, {cpus} CPUs here"
        )
    fewest = train.worker_range[0]
    if train.launcher != "local" and fewest > 1 and fewest * train.cpus_per_worker > cpus:
        problems.append(
            f"train.workers, train.cpus_per_worker: {fewest} workers of {train.cpus_per_worker:g} CPUs, "
            f"{cpus} CPUs here"
        )
    if train.device == "cuda" and fewest > torch.cuda.device_count():
        problems.append(f"train.workers: {fewest} workers on GPUs, {torch.cuda.device_count()} GPUs here")
    return problems

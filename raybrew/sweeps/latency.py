"""How long students and teachers take, measured when no trial runs any more: all of them in turn, in one round.

A trial measures its student while others train on the same machine. What is measured here compares: every row of a
report comes from the same round, on one device of the kind that the trials had.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from raybrew.config import Experiment
from raybrew.errors import ClusterError, RaybrewError, first_line
from raybrew.models.devices import free_gpu, pick_device, pick_precision
from raybrew.models.latency import Timings
from raybrew.models.loading import ModelSource, load_config
from raybrew.nodes import alive_nodes
from raybrew.pipeline.resolve import resolve
from raybrew.records.summary import Latency, RunSummary, read_summary, write_summary
from raybrew.runs.latency import TimedModel, latency_facts, student_latency, time_in_turn
from raybrew.sweeps.conductor import Conductor
from raybrew.sweeps.jobs import canonical, gpus_of
from raybrew.sweeps.progress import SweepReporter

__all__ = ["measure_alone"]

#: Seconds of timing for each model.
_BUDGET_SECONDS = 8.0
#: Seconds that a worker may take to start: the node of the trials may be gone, and a new one comes after minutes.
_WAIT_SECONDS = 600.0
#: Parts of a config that do not change how long a model takes.
_NAMES = ("_name_or_path", "architectures", "transformers_version", "dtype", "id2label", "label2id")


@dataclasses.dataclass(frozen=True)
class _Finished:
    """A finished run with its student and the teachers that the student is compared with."""

    folder: Path
    summary: RunSummary
    student: TimedModel
    teachers: tuple[TimedModel, ...]
    task: str

    @property
    def round(self) -> str | None:
        """The round in which the run was timed alone."""
        latency = self.summary.latency
        return latency.round if latency is not None and latency.alone else None


@dataclasses.dataclass(frozen=True)
class _Work:
    """One round, for a process anywhere in the cluster."""

    models: Mapping[str, Sequence[TimedModel]]
    tokens: int
    device: str
    precision: str
    threads: int
    folder: str


def measure_alone(conductor: Conductor, view: SweepReporter) -> None:
    """Time all architectures of the finished students, and their teachers, in one round; note it in the summaries.

    Models are built from their configs with random weights, so students that were removed take part. Ray must run, and
    no trial. Runs that were there before the sweep take part too; if all runs are of one round already, nothing
    happens. A failure is told and leaves what the trials measured.
    """
    try:
        runs = _finished_runs(conductor)
        tokens = [run.summary.tokens for run in runs if run.summary.tokens is not None]
        rounds = {run.round for run in runs}
        if not tokens or (len(rounds) == 1 and None not in rounds):
            return
        keys = {run.folder: (_key([run.student]), _key(run.teachers)) for run in runs}
        models: dict[str, Sequence[TimedModel]] = {}
        for run in runs:
            student, teacher = keys[run.folder]
            models.setdefault(student, (run.student,))
            if run.teachers:
                models.setdefault(teacher, run.teachers)
        timings = _measure(conductor.base, models, statistics.median_low(tokens), _device_of(runs))
    except RaybrewError as error:
        view.say(f"warning: time per example was not measured again: {first_line(error)}")
        return
    for run in runs:
        student, teacher = keys[run.folder]
        latency = latency_facts(timings, student, teacher if run.teachers else None, run.task, alone=True)
        found = dataclasses.replace(run.summary, latency=Latency.read(latency), latency_ms=student_latency(latency))
        write_summary(run.folder, found)
    conductor.ledger.write("latency", runs=[run.folder.name for run in runs], **timings.conditions)
    view.say(f"time per example measured again without other trials: {len(models)} models in turn on {timings.device}")


def _finished_runs(conductor: Conductor) -> list[_Finished]:
    found = [_finished(conductor, trial.run) for trial in conductor.trials.values() if trial.status == "done"]
    return [run for run in found if run is not None]


def _finished(conductor: Conductor, name: str) -> _Finished | None:
    """A finished run; None if its architecture is not known: an old one whose student is removed."""
    folder, job = conductor.ledger.folder.parent / name, conductor.jobs.get(name)
    summary = read_summary(folder)
    if job is None or summary is None:
        return None
    tasks = resolve(job.experiment).tasks
    task = next((task for task in tasks if task.teachers), tasks[0])
    for place in (folder / "architecture", folder / "student" / task.label):
        if (place / "config.json").is_file():
            teachers = tuple(TimedModel(source, task.kind) for source in task.sources.values())
            return _Finished(folder, summary, TimedModel(ModelSource(str(place)), task.kind), teachers, task.label)
    return None


def _key(models: Sequence[TimedModel]) -> str:
    """Equal for models that take the same time."""
    return canonical({"models": [[model.kind, _architecture(model.source)] for model in models]})


def _architecture(source: ModelSource) -> dict[str, Any]:
    return {name: value for name, value in load_config(source).to_dict().items() if name not in _NAMES}


def _device_of(runs: Sequence[_Finished]) -> str:
    """`cuda` if the trials had GPUs, else `cpu`."""
    return "cuda" if any((run.summary.device or "").startswith("cuda") for run in runs) else "cpu"


def _measure(base: Experiment, models: Mapping[str, Sequence[TimedModel]], tokens: int, device: str) -> Timings:
    """The round in this process if the trials ran on this machine, else in a Ray task with a trial's resources."""
    cpus, gpus = _resources(base, device)
    threads = base.train.threads or max(1, int(cpus))
    work = _Work(models, tokens, device, base.train.precision, threads, os.getcwd())
    if len(alive_nodes()) == 1 and (device == "cpu" or torch.cuda.is_available()):
        return _time(work)
    return _on_worker(work, cpus, gpus)


def _on_worker(work: _Work, cpus: float, gpus: float) -> Timings:
    import ray

    running = ray.remote(_time_elsewhere).options(num_cpus=cpus, num_gpus=gpus).remote(work)
    try:
        timings: Timings = ray.get(running, timeout=_WAIT_SECONDS + 4 * _BUDGET_SECONDS * len(work.models))
    except ray.exceptions.RayError as error:
        ray.cancel(running, force=True)
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        raise ClusterError(first_line(cause)) from error
    return timings


def _resources(base: Experiment, device: str) -> tuple[float, float]:
    """CPUs and GPUs of a trial, or of one worker of a trial that has several."""
    assert base.sweep is not None
    if base.train.worker_range[1] == 1:
        return base.sweep.resources.cpus, gpus_of(base, base.sweep, 1.0) if device == "cuda" else 0.0
    return base.train.cpus_per_worker, float(device == "cuda")


def _time_elsewhere(work: _Work) -> Timings:
    if os.path.isdir(work.folder):
        os.chdir(work.folder)  # paths in experiments are relative to where the command was given
    return _time(work)


def _time(work: _Work) -> Timings:
    device, before = pick_device(work.device), torch.get_num_threads()
    torch.set_num_threads(work.threads)
    try:
        precision = pick_precision(work.precision, device)
        return time_in_turn(work.models, work.tokens, device, precision, _BUDGET_SECONDS * len(work.models))
    finally:
        torch.set_num_threads(before)
        free_gpu()

"""Runs read back from their folders. Nothing is guessed: what a run has not written stays None or empty."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from raybrew.config.judge import quality
from raybrew.config.kinds import is_multi
from raybrew.errors import RunError
from raybrew.models.machine import machine_text
from raybrew.records.details import RunDetails, dict_at
from raybrew.records.lines import Evaluation, Event, LogLine
from raybrew.records.sections import numbers, read_object
from raybrew.records.summary import Latency, RunSummary, read_summary
from raybrew.secrets import scrub
from raybrew.tracking.jsonl import read_metrics

__all__ = ["BestResult", "RunRecord", "RunStatus", "dict_at", "find_runs", "load_run", "load_runs"]

RunStatus = Literal["done", "running or interrupted", "failed"]
Role = Literal["teacher", "student", "control"]
_ROLES: Mapping[str, Role] = {"teacher": "teacher", "student": "student", "control": "control"}

#: A folder that holds one of these is a run.
MARKS = ("identity.json", "summary.json", "metrics.jsonl")
#: Sections of a config that decide what a run computes, for run folders without an identity.
_SECTIONS = ("task", "data", "teacher", "student", "distill", "train")
_NOTHING = RunSummary.read({})


@dataclasses.dataclass(frozen=True)
class BestResult:
    """The best evaluation of a run: the final one of `summary.json`, or the best so far of an unfinished run.

    `metric` is a metric of the task, or `loss`: the evaluation loss, of which less is better. `metrics` are the task's.
    """

    metric: str
    value: float
    step: int | None
    epoch: float | None
    metrics: dict[str, float]
    final: bool

    @property
    def score(self) -> float:
        """`value` as a number of which more is better."""
        return quality(self.metric, self.value)


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """Everything a run folder tells. Its configuration and its curves are read when they are asked for."""

    folder: Path
    identity: dict[str, Any]
    environment: dict[str, Any]
    summary: RunSummary | None
    """None while the run has not finished."""
    status: RunStatus
    details: RunDetails = dataclasses.field(repr=False, compare=False)

    @property
    def config(self) -> dict[str, Any]:
        return self.details.config

    @property
    def config_text(self) -> str:
        return self.details.config_text

    @property
    def facts(self) -> RunSummary:
        """The summary; one without facts while there is none."""
        return self.summary or _NOTHING

    @functools.cached_property
    def train(self) -> tuple[LogLine, ...]:
        return tuple(map(LogLine.read, self.details.lines("train")))

    @functools.cached_property
    def evals(self) -> tuple[Evaluation, ...]:
        return tuple(map(Evaluation.read, self.details.lines("eval")))

    @functools.cached_property
    def events(self) -> tuple[Event, ...]:
        return tuple(map(Event.read, self.details.lines("event")))

    @property
    def problems(self) -> tuple[str, ...]:
        """Sentences about files that are missing or unreadable."""
        return self.details.problems

    @functools.cached_property
    def task(self) -> Mapping[str, Any]:
        """The section `task`, as the run's identity has it, or its configuration."""
        return dict_at(self.identity, "identity", "task") or dict_at(self.config, "task")

    @functools.cached_property
    def method(self) -> Any:
        """`distill.method`, which is no part of the identity."""
        told = self.facts.distill
        return (told.method if told is not None else None) or self.details.method

    @functools.cached_property
    def settings(self) -> Mapping[str, Any]:
        """What the run computes, without its seed."""
        settings = dict(dict_at(self.identity, "identity") or {name: self.config.get(name) for name in _SECTIONS})
        section = settings.get("teacher") if self.verb == "finetune" else None
        if isinstance(section, Mapping) and isinstance(section.get("finetune"), Mapping):
            settings["teacher"] = {**section, "finetune": _without_seed(section["finetune"])}
        elif isinstance(settings.get("train"), Mapping):
            settings["train"] = _without_seed(settings["train"])
        return settings

    @functools.cached_property
    def evaluation_key(self) -> str:
        """Equal for runs judged by the same task, or tasks, on the same rows."""
        task = dict_at(self.settings, "task")
        judged: Any = _judged(self.settings.get("task"), dict_at(self.settings, "data"))
        if is_multi(task):
            parts = dict_at(task, "tasks")
            judged = {name: _judged(dict_at(parts, name, "task"), dict_at(parts, name, "data")) for name in parts}
        return json.dumps(judged, sort_keys=True, default=str)

    @property
    def run_id(self) -> str:
        return self.facts.run_id or self.folder.name

    @property
    def experiment(self) -> str:
        """Name of the experiment."""
        return str(self.facts.name or self.config.get("name") or self.folder.parent.name)

    @property
    def verb(self) -> str:
        """`distill` or `finetune`."""
        return str(self.facts.verb or self.identity.get("verb") or self.folder.name.split("-")[0])

    @functools.cached_property
    def role(self) -> Role:
        """`teacher` (fine-tuned on labels), `student` (has a loss from a teacher) or `control` (has none)."""
        role = self.facts.role or ""
        if role in _ROLES:
            return _ROLES[role]
        if self.verb == "finetune":
            return "teacher"
        distill = self.config.get("distill")
        return "control" if isinstance(distill, Mapping) and not _asks_a_teacher(distill) else "student"

    @property
    def seed(self) -> int | None:
        """Seed of training."""
        seed: Any = self.facts.seed
        if seed is None:
            section: Any = self.config.get("train")
            if self.verb == "finetune":
                section = dict_at(self.config, "teacher", "finetune")
            seed = section.get("seed") if isinstance(section, Mapping) else None
        return seed if isinstance(seed, int) else None

    @property
    def command(self) -> str | None:
        """The command that made the run."""
        command = self.environment.get("command")
        if isinstance(command, list):
            return " ".join(str(word) for word in command)
        return None if command is None else str(command)

    @functools.cached_property
    def best(self) -> BestResult | None:
        """The final best evaluation, else the best so far, else None."""
        found = self.facts.best
        if found is not None and found.value is not None:
            return BestResult(
                found.metric or "metric", found.value, found.step, found.epoch, dict(found.metrics), final=True
            )
        line = next((line for line in reversed(self.evals) if line.best), None)
        if line is None:
            return None
        metric = str(line.judge or self.task.get("metric") or "accuracy")
        value = line.value(metric)
        return None if value is None else BestResult(metric, value, line.step, line.epoch, line.metrics, final=False)

    @property
    def eval_rows(self) -> int | None:
        """How many rows each evaluation counted."""
        rows = self.facts.rows.eval
        return rows if rows is not None else self.evals[-1].rows if self.evals else None

    @functools.cached_property
    def latency(self) -> Latency | None:
        """Times per example; None if nothing was measured."""
        facts = self.facts
        if facts.latency is not None and facts.latency.student:
            return facts.latency
        times = {name: time for name, time in numbers(facts.latency_ms).items() if name.startswith("batch_")}
        if not times:
            return None
        known = {"device": facts.device, "machine": self.machine, **facts.latency_ms}
        return Latency.read({**known, "student": times})

    @property
    def machine(self) -> str | None:
        """The hardware in a few words; equal for runs whose times may be compared."""
        return machine_text(dict_at(self.environment, "machine"))


def load_run(folder: str | Path, environ: Mapping[str, str] | None = None) -> RunRecord:
    """One run; RunError if `folder` is none. Unreadable files become `problems`, so that one cannot hide the rest.

    Secrets leave what people read, as the folder may be an older version's. Values that are read again stay whole:
    exports and sweeps go by their paths.
    """
    folder = Path(folder)
    if not is_run(folder):
        raise RunError(
            f"{folder} is no run folder: none of {', '.join(MARKS)} is in it. Give a folder "
            "<storage_path>/<experiment>/<run id>, or one above it"
        )
    problems: list[str] = []
    identity = read_object(folder / "identity.json", problems)
    environment = read_object(folder / "environment.json", problems)
    summary = read_summary(folder, problems)
    details = RunDetails(folder, problems)
    return RunRecord(
        folder=folder,
        identity=identity or {},
        environment=scrub(environment or {}, environ),
        summary=summary,
        status=_status(summary, details),
        details=details,
    )


def load_runs(paths: Iterable[str | Path]) -> list[RunRecord]:
    """All runs that `find_runs` finds."""
    environ = dict(os.environ)
    return [load_run(folder, environ) for folder in find_runs(paths)]


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Run folders at `paths`, each a run, an experiment or a storage path; in order, each once.

    RunError when a path does not exist or holds no run.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise RunError(f"{path} is no folder; give run folders, experiment folders or a storage path")
        folders = [path] if is_run(path) else _runs_of_sweep(path) or _runs_below(path, levels=2)
        if not folders:
            raise RunError(
                f"{path} holds no runs: looked for {', '.join(MARKS)} in it and two levels below "
                "(<storage_path>/<experiment>/<run id>)"
            )
        found.update(dict.fromkeys(folder.resolve() for folder in folders))
    return list(found)


def is_run(folder: Path) -> bool:
    """Whether `folder` was made by a run."""
    return any(os.path.isfile(os.path.join(folder, mark)) for mark in MARKS)  # thousands of times


def _runs_of_sweep(folder: Path) -> list[Path]:
    """Runs of the trials of the sweep in `folder`, which lie beside it; none if it is no sweep."""
    names = dict.fromkeys(str(record.get("run")) for record in read_metrics(folder / "ledger.jsonl", "trial"))
    if not names:
        return []
    there = set(os.listdir(folder.parent))  # most trials of a sweep may have no folder any more
    return [folder.parent / name for name in names if name in there and is_run(folder.parent / name)]


def _runs_below(folder: Path, levels: int) -> list[Path]:
    found: list[Path] = []
    for child in sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")):
        if is_run(child):
            found.append(child)
        elif levels > 1:
            found.extend(_runs_below(child, levels - 1))
    return found


def _status(summary: RunSummary | None, details: RunDetails) -> RunStatus:
    if summary is not None and summary.status in (None, "done"):
        return "done"
    events = details.lines("event")
    return "failed" if events and Event.read(events[-1]).event == "failed" else "running or interrupted"


def _judged(task: Any, data: Mapping[str, Any]) -> list[Any]:
    return [task, {name: data.get(name) for name in ("eval", "eval_rows", "columns")} if data else {}]


def _without_seed(section: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in section.items() if name != "seed"}


def _asks_a_teacher(distill: Mapping[str, Any]) -> bool:
    """Whether a `distill` section, or a stage of it, has a loss from a teacher."""
    if any(distill.get(key) for key in ("kd_weight", "matches", "emd", "theseus")):
        return True
    stages = distill.get("stages") or ()
    return any(isinstance(stage, Mapping) and _asks_a_teacher(stage) for stage in stages)

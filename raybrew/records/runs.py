"""Runs read back from their folders. Nothing is guessed: what a run has not written stays None or empty."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from raybrew.config.judge import LOSS, quality
from raybrew.config.kinds import is_multi
from raybrew.errors import RunError
from raybrew.models.machine import machine_text
from raybrew.records.details import RunDetails, bounded_text, dict_at
from raybrew.secrets import scrub
from raybrew.tracking.jsonl import read_metrics

__all__ = ["BestResult", "RunRecord", "RunStatus", "dict_at", "find_runs", "load_run", "load_runs"]

RunStatus = Literal["done", "running or interrupted", "failed"]
Role = Literal["teacher", "student", "control"]

#: A folder that holds one of these is a run.
MARKS = ("identity.json", "summary.json", "metrics.jsonl")
#: Sections of a config that decide what a run computes, for run folders without an identity.
_SECTIONS = ("task", "data", "teacher", "student", "distill", "train")


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
    summary: dict[str, Any] | None
    status: RunStatus
    details: RunDetails = dataclasses.field(repr=False, compare=False)

    @property
    def config(self) -> dict[str, Any]:
        return self.details.config

    @property
    def config_text(self) -> str:
        return self.details.config_text

    @property
    def train(self) -> tuple[dict[str, Any], ...]:
        return self.details.lines("train")

    @property
    def evals(self) -> tuple[dict[str, Any], ...]:
        return self.details.lines("eval")

    @property
    def events(self) -> tuple[dict[str, Any], ...]:
        return self.details.lines("event")

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
        return dict_at(self.summary or {}, "distill").get("method") or self.details.method

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
        return str((self.summary or {}).get("run_id") or self.folder.name)

    @property
    def experiment(self) -> str:
        """Name of the experiment."""
        return str((self.summary or {}).get("name") or self.config.get("name") or self.folder.parent.name)

    @property
    def verb(self) -> str:
        """`distill` or `finetune`."""
        found = (self.summary or {}).get("verb") or self.identity.get("verb")
        return str(found or self.folder.name.split("-")[0])

    @functools.cached_property
    def role(self) -> Role:
        """`teacher` (fine-tuned on labels), `student` (has a loss from a teacher) or `control` (has none)."""
        role = (self.summary or {}).get("role")
        if role in ("teacher", "student", "control"):
            return role  # type: ignore[no-any-return]
        if self.verb == "finetune":
            return "teacher"
        distill = self.config.get("distill")
        return "control" if isinstance(distill, Mapping) and not _asks_a_teacher(distill) else "student"

    @property
    def seed(self) -> int | None:
        """Seed of training."""
        seed = (self.summary or {}).get("seed")
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
        found = dict_at(self.summary or {}, "best")
        value = number(found.get("value"))
        if value is not None:
            return BestResult(
                metric=str(found.get("metric", "metric")),
                value=value,
                step=integer(found.get("step")),
                epoch=number(found.get("epoch")),
                metrics=_numbers(found.get("metrics")),
                final=True,
            )
        record = next((record for record in reversed(self.evals) if record.get("best") is True), None)
        if record is None:
            return None
        metric = str(record.get("judge") or self.task.get("metric") or "accuracy")
        value = number(record.get(f"eval/{metric}"))
        if value is None:
            return None
        named = {name.removeprefix("eval/"): each for name, each in record.items() if name.startswith("eval/")}
        metrics = {
            name: each for name, each in named.items() if name not in ("rows", LOSS) and not name.startswith("loss/")
        }
        return BestResult(
            metric, value, integer(record.get("step")), number(record.get("epoch")), _numbers(metrics), final=False
        )

    @property
    def eval_rows(self) -> int | None:
        """How many rows each evaluation counted."""
        rows = integer(dict_at(self.summary or {}, "rows").get("eval"))
        return rows if rows is not None else integer(self.evals[-1].get("eval/rows")) if self.evals else None

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
    identity = _read_json(folder / "identity.json", problems)
    environment = _read_json(folder / "environment.json", problems)
    summary = _read_json(folder / "summary.json", problems, needed=False)
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


def number(value: Any) -> float | None:
    """`value` if it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def integer(value: Any) -> int | None:
    """`value` if it is a whole number, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


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


def _status(summary: Mapping[str, Any] | None, details: RunDetails) -> RunStatus:
    if summary is not None and summary.get("status", "done") == "done":
        return "done"
    events = details.lines("event")
    if events and events[-1].get("event") == "failed":
        return "failed"
    return "running or interrupted"


def _numbers(values: Any) -> dict[str, float]:
    if not isinstance(values, Mapping):
        return {}
    found = {str(name): number(value) for name, value in values.items()}
    return {name: value for name, value in found.items() if value is not None}


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


def _read_json(path: Path, problems: list[str], needed: bool = True) -> dict[str, Any] | None:
    try:
        value = json.loads(bounded_text(path))
    except FileNotFoundError:
        if needed:
            problems.append(f"{path.name} is missing")
        return None
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return None
    if not isinstance(value, dict):
        problems.append(f"{path.name} holds no JSON object")
        return None
    return value

"""Runs read back from their folders. Nothing is guessed: what a run has not written stays None or empty."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from raybrew.config.judge import LOSS, quality
from raybrew.config.scrub import scrub
from raybrew.errors import RunError
from raybrew.models.machine import machine_text
from raybrew.tracking.jsonl import read_metrics

__all__ = ["BestResult", "RunRecord", "RunStatus", "find_runs", "load_run", "load_runs"]

RunStatus = Literal["done", "running or interrupted", "failed"]
Role = Literal["teacher", "student", "control"]

#: A folder that holds one of these is a run.
MARKS = ("identity.json", "summary.json", "metrics.jsonl")


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
    """Everything a run folder tells. `problems` are sentences about files that are missing or unreadable."""

    folder: Path
    config: dict[str, Any]
    config_text: str
    identity: dict[str, Any]
    environment: dict[str, Any]
    summary: dict[str, Any] | None
    train: tuple[dict[str, Any], ...]
    evals: tuple[dict[str, Any], ...]
    events: tuple[dict[str, Any], ...]
    status: RunStatus
    problems: tuple[str, ...]

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

    @property
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

    @property
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
        metric = str(record.get("judge") or dict_at(self.config, "task").get("metric") or "accuracy")
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


def load_run(folder: str | Path) -> RunRecord:
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
    config_text, config = _read_config(folder / "config.yaml", problems)
    identity = _read_json(folder / "identity.json", problems)
    environment = _read_json(folder / "environment.json", problems)
    summary = _read_json(folder / "summary.json", problems, needed=False)
    try:
        records = read_metrics(folder / "metrics.jsonl")
        if not records:
            problems.append("metrics.jsonl is missing or empty: there are no curves")
    except RunError as error:
        records = []
        problems.append(str(error))
    kinds: dict[str, list[dict[str, Any]]] = {"train": [], "eval": [], "event": []}
    for record in records:
        kinds.setdefault(str(record.get("kind")), []).append(record)
    return RunRecord(
        folder=folder,
        config=config,
        config_text=scrub(config_text),
        identity=identity or {},
        environment=scrub(environment or {}),
        summary=summary,
        train=tuple(kinds["train"]),
        evals=tuple(kinds["eval"]),
        events=scrub(tuple(kinds["event"])),
        status=_status(summary, kinds["event"]),
        problems=tuple(problems),
    )


def load_runs(paths: Iterable[str | Path]) -> list[RunRecord]:
    """All runs that `find_runs` finds."""
    return [load_run(folder) for folder in find_runs(paths)]


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
    return any((folder / mark).is_file() for mark in MARKS)


def dict_at(value: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """The mapping under `keys`, empty where any is missing or is no mapping."""
    found: Any = value
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}


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
    names = {
        str(record.get("run")): None
        for record in read_metrics(folder / "ledger.jsonl")
        if record.get("kind") == "trial"
    }
    return [folder.parent / name for name in names if is_run(folder.parent / name)]


def _runs_below(folder: Path, levels: int) -> list[Path]:
    found: list[Path] = []
    for child in sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")):
        if is_run(child):
            found.append(child)
        elif levels > 1:
            found.extend(_runs_below(child, levels - 1))
    return found


def _status(summary: Mapping[str, Any] | None, events: list[dict[str, Any]]) -> RunStatus:
    if summary is not None and summary.get("status", "done") == "done":
        return "done"
    if events and events[-1].get("event") == "failed":
        return "failed"
    return "running or interrupted"


def _numbers(values: Any) -> dict[str, float]:
    if not isinstance(values, Mapping):
        return {}
    found = {str(name): number(value) for name, value in values.items()}
    return {name: value for name, value in found.items() if value is not None}


def _asks_a_teacher(distill: Mapping[str, Any]) -> bool:
    """Whether a `distill` section, or a stage of it, has a loss from a teacher."""
    if any(distill.get(key) for key in ("kd_weight", "matches", "emd", "theseus")):
        return True
    stages = distill.get("stages") or ()
    return any(isinstance(stage, Mapping) and _asks_a_teacher(stage) for stage in stages)


def _read_json(path: Path, problems: list[str], needed: bool = True) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if needed:
            problems.append(f"{path.name} is missing")
        return None
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return None
    if not isinstance(value, dict):
        problems.append(f"{path.name} holds no JSON object")
        return None
    return value


def _read_config(path: Path, problems: list[str]) -> tuple[str, dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
        return "", {}
    except (OSError, ValueError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return "", {}
    import yaml

    from raybrew.config.reading import describe, parse_yaml

    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        problems.append(f"{path.name} is no YAML:{describe(error)[:200]}")
        return text, {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} holds no mapping")
        return text, {}
    return text, value

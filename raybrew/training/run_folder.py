"""A run's folder: what it computes, from what, where it stands. A folder that belongs to something else is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import platform
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from raybrew.config import Experiment
from raybrew.config.values import check_run_id, refuse_secrets
from raybrew.errors import EnvironmentProblem, RaybrewError, RunError, first_line
from raybrew.files import locked_folder, write_json
from raybrew.models.machine import machine_facts
from raybrew.models.weights import changed_since_saved, has_weights
from raybrew.records.lines import Event
from raybrew.records.summary import SUMMARY, Pruned, RunSummary, write_summary
from raybrew.secrets import scrub
from raybrew.tracking.jsonl import MetricsLog, read_metrics
from raybrew.version import __version__

__all__ = ["EVALUATED", "NUMBER_OF_ROWS", "RunFolder", "describe_environment"]


#: Keys of `data` that say on which rows a model is evaluated.
EVALUATED = frozenset({"eval", "eval_rows"})
#: And those that say how many rows it is trained on, which an evaluation of a finished model does not need to know.
NUMBER_OF_ROWS = frozenset({"train_rows", "unlabeled_rows"})


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """`<storage_path>/<experiment>/<run id>/`; nothing exists before `prepare`."""

    path: Path
    run_id: str

    @classmethod
    def of(cls, experiment: Experiment, verb: str, run_id: str | None = None) -> RunFolder:
        """The folder of `verb` on `experiment`: by default named by a hash of all that decides its result."""
        check_run_id(run_id)
        name = run_id or experiment.run_id(verb)
        return cls(Path(experiment.store.storage_path).absolute() / experiment.name / name, name)

    @classmethod
    def trained(
        cls, experiment: Experiment, verb: str, run_id: str | None = None, other_rows: Collection[str] = EVALUATED
    ) -> RunFolder:
        """The folder of a finished run whose model `experiment` means.

        That is the run of just this configuration, else the only finished run that differs from it in nothing but keys
        of `data` in `other_rows`: which rows a model is evaluated on is no part of what it is. Without such a run the
        folder of this configuration. RunError if several runs differ so.
        """
        exact = cls.of(experiment, verb, run_id)
        if run_id is not None or (exact.path / SUMMARY).is_file() or not exact.path.parent.is_dir():
            return exact
        identity = experiment.identity(verb)
        found = {}
        for marker in sorted(exact.path.parent.glob(f"{verb}-*/{SUMMARY}")):
            keys = _keys_that_differ(marker.with_name("identity.json"), identity)
            if keys and all(_row_key(key) in other_rows for key in keys):
                found[marker.parent] = keys
        if len(found) > 1:
            names = "; ".join(f"{folder.name} ({', '.join(keys)})" for folder, keys in found.items())
            raise RunError(
                f"{exact.path.parent}: no run has just this configuration, and {len(found)} differ in the rows only: "
                f"{names}; choose one with --run-id"
            )
        folder = next(iter(found), exact.path)
        return cls(folder, folder.name)

    @property
    def place(self) -> tuple[int, int] | None:
        """What tells this folder from a later one of its name; None while there is none."""
        try:
            stat = self.path.stat()
        except OSError:
            return None
        return stat.st_dev, stat.st_ino

    def check_there(self, place: tuple[int, int] | None) -> None:
        """RunError if the folder is no longer the one that it was."""
        if self.place is None or self.place != place:
            raise RunError(
                f"{self.path} was removed or replaced while this run was training, so there is nowhere to keep its "
                "results; the same command starts it anew"
            )

    @property
    def student(self) -> Path:
        """The best model as a Hugging Face folder."""
        return self.path / "student"

    @property
    def architecture(self) -> Path:
        """The config of the model that was timed. It stays when a sweep removes the student."""
        return self.path / "architecture"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def summary(self) -> RunSummary | None:
        """The summary of a finished run, None while there is none."""
        value = _read_json(self.path / SUMMARY)
        return None if value is None else RunSummary.read(value)

    @property
    def has_student(self) -> bool:
        """Whether the run is finished and its best model is there as it was saved: a sweep removes those that lost."""
        summary = self.summary()
        if summary is None or summary.pruned is not None:
            return False
        models = [
            config.parent for config in (*self.student.glob("config.json"), *self.student.glob("[!.]*/config.json"))
        ]
        return bool(models) and all(has_weights(folder) and not changed_since_saved(folder) for folder in models)

    def mark_pruned(self, by: str | None) -> None:
        """Let the summary say that the student is gone, until the run is trained again to its end."""
        summary, date = self.summary(), datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        if summary is not None and summary.pruned is None:
            write_summary(self.path, dataclasses.replace(summary, pruned=Pruned(by=by, date=date)))

    def prune_student(self, by: str) -> int:
        """Remove the student of a run that `by` has no more use for; returns the bytes.

        The summary of a finished run says so first: whatever a kill leaves of the folder is no student any more.
        """
        self.mark_pruned(by)
        size = sum(path.stat().st_size for path in self.student.rglob("*") if path.is_file())
        shutil.rmtree(self.student, ignore_errors=True)
        return size

    @property
    def lost_student(self) -> str:
        """What became of the student of a finished run that has none, in one line."""
        summary = self.summary()
        pruned = None if summary is None else summary.pruned
        if pruned is not None and pruned.by:
            return f"{pruned.by} removed the student of {self.path} on {pruned.date} (sweep.keep_students)"
        changed = [
            line for folder in (self.student, *self.student.glob("[!.]*/")) for line in changed_since_saved(folder)
        ]
        if changed:
            return f"the student in {self.student} is not the one that was trained: {'; '.join(changed[:3])}"
        return f"the student of {self.path} is gone: {self.student} holds no finished model"

    def why_no_student(self) -> str:
        """One line on a run without a student: what became of it, and how to get it back."""
        again = f"`raybrew distill {self.path / 'config.yaml'}`"
        if self.summary() is None:
            return f"{self.path} is not finished; {again} trains it to its end"
        return f"{self.lost_student}; {again} trains it again"

    def prepare(
        self,
        experiment: Experiment,
        verb: str,
        inputs: Mapping[str, Any],
        command: str | None,
        precision: Mapping[str, str] | None = None,
    ) -> None:
        """Create the folder, or check that it belongs to this configuration and these inputs.

        RunError shows each value that differs. Execution settings (workers, device, trackers) may differ, but not the
        `precision` that comes of them, once there is a checkpoint. Without a `command` an existing folder is only
        checked.
        """
        refuse_secrets(experiment.plain())
        identity: dict[str, Any] = {"verb": verb, "identity": experiment.identity(verb), "inputs": dict(inputs)}
        existing = _read_json(self.path / "identity.json")
        before = existing.pop("precision", None) if existing is not None else None
        if existing is not None and existing != identity:
            lines = [
                f"  {key}: the run has {old!r}, this configuration {new!r}"
                for key, old, new in _differences(existing, identity)
                # Older versions did not note the weights of a live teacher.
                if not (old is None and key.startswith("inputs.") and ".teacher" in key)
            ]
            if lines:
                raise RunError(
                    f"{self.path} belongs to another configuration:\n" + "\n".join(lines) + "\n"
                    "use another --run-id or name, or remove that folder"
                )
        if precision is not None:
            identity["precision"] = dict(precision)
            if before is not None and before != precision and any(self.checkpoints.glob("step-*")):
                differing = "; ".join(f"{key} {old}, here {new}" for key, old, new in _differences(before, precision))
                raise RunError(
                    f"{self.path} was begun in another precision ({differing}), which `auto` is on other devices; go "
                    "on where it was begun, or use another --run-id, or set train.precision for a run of its own"
                )
        if command is None and existing is not None:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            experiment.to_yaml(self.path / "config.yaml")
            write_json(self.path / "environment.json", scrub(describe_environment(command or "")))
            # Last, as it marks the folder as ours.
            write_json(self.path / "identity.json", identity)
        except OSError as error:
            raise EnvironmentProblem(f"cannot write the run folder {self.path}: {error.strerror or error}") from error

    def keep_architecture(self, task: str = "") -> None:
        """Copy the config of the student, or of that task's, to `architecture`."""
        try:
            self.architecture.mkdir(exist_ok=True)
            shutil.copyfile(self.student / task / "config.json", self.architecture / "config.json")
        except OSError as error:
            raise EnvironmentProblem(f"cannot write {self.architecture}: {error.strerror or error}") from error

    def note_failure(self, error: RaybrewError) -> None:
        """Let the last line of `metrics.jsonl` say why training ended, where no worker lived to write it."""
        with contextlib.suppress(OSError, RunError):  # what ended the run is worth more
            last = Event.read(next(reversed(read_metrics(self.metrics)), {}))
            if last.event == "failed" and last.message == first_line(error):
                return
            date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            line = {"step": last.step or 0, "kind": "event", "event": "failed", "message": first_line(error)}
            with MetricsLog(self.metrics) as log:
                log.write({**line, "date": date})

    def locked(self) -> AbstractContextManager[None]:
        """Hold the run; RunLocked if another process is at it."""
        return locked_folder(self.path, "run", lambda: self.summary() is not None)


def describe_environment(command: str) -> dict[str, Any]:
    """Versions, commit and hardware, for `environment.json`."""
    import importlib.metadata

    versions = {}
    for package in ("torch", "ray", "transformers", "datasets", "pyarrow", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "raybrew": __version__,
        "python": platform.python_version(),
        **versions,
        "commit": _commit(),
        "machine": machine_facts(),
        "command": command,
    }


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key), new.get(key)
        name = f"{prefix}{key}".removeprefix("identity.")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield name, before, after


def _keys_that_differ(identity_file: Path, identity: Mapping[str, Any]) -> list[str]:
    """Dotted keys in which a run differs from `identity`; empty for what cannot be read."""
    try:
        there = json.loads(identity_file.read_text(encoding="utf-8"))["identity"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    # Keys that the file lacks are those that were not set.
    plain = json.loads(json.dumps(identity, ensure_ascii=False))
    return [name for name, _, _ in _differences(there, plain)]


def _row_key(key: str) -> str:
    """The last part of a key of `data`, of one task or of several; empty for other keys."""
    *section, name = key.split(".")
    return name if section == ["data"] or (section[:2] == ["task", "tasks"] and section[3:] == ["data"]) else ""


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read ({error}); remove the run folder to start anew") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} holds no mapping; remove the run folder to start anew")
    return value


def _commit() -> str | None:
    """Commit of the folder we run in, if git knows it; `+` marks uncommitted changes."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
        changed = subprocess.run(
            ["git", "status", "--porcelain"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")

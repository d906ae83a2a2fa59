"""Experiments that are about to run, in a job on a cluster perhaps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from raybrew.config import Experiment
from raybrew.config.loading import load_experiment
from raybrew.config.problems import raise_problems
from raybrew.errors import Problem

__all__ = ["load_to_run"]

#: Where Ray unpacks the working directory of a job, on every node for itself.
_JOB_FOLDERS = ("runtime_resources", "working_dir_files")


def load_to_run(path: Path, overrides: Sequence[str] | None) -> Experiment:
    """`load_experiment` for a command that writes runs or stores.

    ConfigError where they would lie in a job's own copy of its working directory: Ray removes it after the job.
    """
    experiment = load_experiment(path, overrides or ())
    here = Path.cwd()
    if not any(pair == _JOB_FOLDERS for pair in zip(here.parts, here.parts[1:], strict=False)):
        return experiment
    store = experiment.store
    raise_problems(
        str(path),
        [
            Problem(
                f"store.{key}",
                f"given {value!r}, which lies in this job's copy of the working directory and goes with it; give an "
                "absolute path that all nodes see (`raybrew submit` does on a cluster of one machine)",
                "conflict",
            )
            for key, value in (("storage_path", store.storage_path), ("path", store.path))
            if value is not None and "://" not in value and (here / Path(value).expanduser()).is_relative_to(here)
        ],
    )
    return experiment

"""raybrew init."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raybrew.catalog.tasks import DEFAULT_KIND
from raybrew.cli.terminal import write_line
from raybrew.config import TASK_CONFIGS
from raybrew.config.kinds import MULTI
from raybrew.config.problems import near_match
from raybrew.config.template import experiment_template
from raybrew.errors import ConfigError, EnvironmentProblem

__all__ = ["init"]


def init(
    path: Annotated[Path, typer.Argument(help="Where to write it.")] = Path("experiment.yaml"),
    task: Annotated[str, typer.Option("--task", help="Kind of task (`raybrew list tasks`).")] = DEFAULT_KIND,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented experiment file that shows every setting with its default."""
    kinds = [*TASK_CONFIGS, MULTI]
    if task not in kinds:
        raise ConfigError(f"--task: given {task!r}; allowed: {', '.join(kinds)}{near_match(task, kinds)}")
    if path.exists() and not force:
        raise ConfigError(f"{path} exists; --force overwrites it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(experiment_template(str(path), task), encoding="utf-8")
    except OSError as error:
        raise EnvironmentProblem(f"cannot write {path}: {error.strerror or error}") from error
    todo = "data and teacher of each task" if task == MULTI else "data.train, data.eval and teacher.model"
    write_line(f"{path} written; set {todo}, then `raybrew validate {path}`")

"""raybrew validate: check experiment files."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import typer

from raybrew.cli.options import AsJson
from raybrew.cli.terminal import print_json, write_line
from raybrew.config.loading import load_experiment
from raybrew.config.space import space_cautions, space_notes
from raybrew.config.stages import method_notes
from raybrew.config.sweep_judge import judge_notes
from raybrew.errors import ConfigError

__all__ = ["validate"]


def validate(
    arguments: Annotated[
        list[str],
        typer.Argument(metavar="EXPERIMENT... [KEY=VALUE]...", help="Experiment files, and overrides for all of them."),
    ],
    files: Annotated[bool, typer.Option(help="Also check that the data and model files exist.")] = True,
    as_json: AsJson = False,
) -> int:
    """Check any number of experiment files; all problems of each are listed. Exit code 3 if any has one."""
    paths = [argument for argument in arguments if "=" not in argument]
    overrides = [argument for argument in arguments if "=" in argument]
    found: dict[str, list[dict[str, str]]] = {}
    notes: dict[str, list[str]] = {}
    for path in paths:
        try:
            experiment = load_experiment(Path(path), overrides, check_files=files)
            found[path] = []
            notes[path] = [*method_notes(experiment.distill, experiment.student), *space_notes(experiment)]
            notes[path] += [*space_cautions(experiment), *judge_notes(experiment)]
        except ConfigError as error:
            found[path] = [dataclasses.asdict(problem) for problem in error.problems] or [{"message": str(error)}]
            if not as_json:
                write_line(f"raybrew: {error}", sys.stderr)
    valid = sum(not problems for problems in found.values())
    if as_json:
        print_json(
            [
                {"file": path, "valid": not problems, "problems": problems, "notes": notes.get(path, [])}
                for path, problems in found.items()
            ]
        )
    else:
        for path, problems in found.items():
            if not problems:
                write_line(f"{path}: valid")
                for note in notes[path]:
                    write_line(f"  {note}")
        write_line(f"{valid} of {len(found)} valid")
    return 0 if valid == len(found) else 3

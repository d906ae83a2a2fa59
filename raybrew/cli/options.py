"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raybrew.config.values import check_run_id

__all__ = ["Address", "AsJson", "ExperimentFile", "ModelChoice", "Overrides", "RunId", "TaskChoice", "TeacherChoice"]

ExperimentFile = Annotated[
    Path, typer.Argument(metavar="EXPERIMENT", help="Experiment file (YAML).", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides such as train.seed=1.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write the result as JSON on stdout.")]
RunId = Annotated[
    str | None,
    typer.Option(
        "--run-id",
        help="Name of the run's folder. Default: made from the configuration.",
        show_default=False,
        callback=check_run_id,
    ),
]
ModelChoice = Annotated[
    str, typer.Option("--model", help="`student` or `teacher` of the experiment, or a model folder or hub name.")
]
TaskChoice = Annotated[
    str | None, typer.Option("--task", help="One of several tasks, by name. Default: all.", show_default=False)
]
TeacherChoice = Annotated[
    str | None, typer.Option("--teacher", help="One of several teachers, by name. Default: all.", show_default=False)
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="The cluster: http://HEAD:8265 or HEAD:6379. Default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, "
        "else the one on this machine.",
        show_default=False,
    ),
]

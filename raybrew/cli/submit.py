"""raybrew submit."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from raybrew.cli.job import follow
from raybrew.cli.options import Address, AsJson, ExperimentFile
from raybrew.cli.terminal import print_json, write_line
from raybrew.errors import ConfigError

__all__ = ["submit"]


Command = Annotated[
    list[str],
    typer.Argument(
        metavar="[KEY=VALUE]... -- VERB [OPTIONS]",
        help="Overrides; then finetune, capture, distill, sweep or doctor with its options.",
        show_default=False,
    ),
]
Variables = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        metavar="NAME[=VALUE]",
        help="Environment variable of the job; without a value, as it is here. No secrets: they are refused.",
        show_default=False,
    ),
]
RuntimeEnv = Annotated[
    Path | None,
    typer.Option(
        "--runtime-env",
        metavar="FILE",
        help="YAML of Ray's runtime environment: env_vars, pip, excludes, ...",
        show_default=False,
    ),
]


def submit(
    context: typer.Context,
    experiment: ExperimentFile,
    arguments: Command,
    *,
    address: Address = None,
    working_dir: Annotated[
        Path, typer.Option("--working-dir", help="Folder that the job takes along and runs in.")
    ] = Path(),
    env: Variables = None,
    runtime_env: RuntimeEnv = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job's log until it ends.")] = True,
    as_json: AsJson = False,
) -> int:
    """Run a command as a job on a Ray cluster: `raybrew submit experiment.yaml train.seed=1 -- sweep`.

    The experiment is checked here; the working directory travels along but for what .gitignore and .rayignore name.
    Ends with the exit code of the command on the cluster. Submitted again, a job that runs is followed, a run that was
    stopped is continued.
    """
    verb, overrides, options = _split(context, arguments)

    from raybrew.jobs.submit import submit as send

    job = send(
        experiment,
        verb,
        options,
        overrides=overrides,
        address=address,
        working_dir=working_dir,
        env=dict(_variable(text) for text in env or ()),
        runtime_env=runtime_env,
        say=lambda line: write_line(line, sys.stderr),
    )
    write_line(f"job {job.id} on {job.address}", sys.stderr)
    if not wait:
        if as_json:
            print_json(job.info().plain() | {"address": job.address})
        else:
            write_line(job.id)
        return 0
    return follow(job, as_json)


def _split(context: typer.Context, arguments: list[str]) -> tuple[str, list[str], list[str]]:
    """Verb, overrides (before it or after) and its options, which its own parser has accepted."""
    from raybrew.jobs.submit import VERBS

    verb = next((word for word in arguments if "=" not in word), None)
    if verb not in VERBS:
        given = f"given {verb!r}" if verb else "none given"
        raise typer.BadParameter(f"{given}; after `--` comes one of {', '.join(VERBS)} with its options")
    place = arguments.index(verb)
    before, after = arguments[:place], arguments[place + 1 :]
    assert context.parent is not None
    group = context.parent.command
    command = group.get_command(context.parent, verb)  # type: ignore[attr-defined]
    # Reads as the command will there, and raises what is wrong with it; nothing runs.
    parsed = command.make_context(verb, ["experiment.yaml", *after], parent=context.parent)
    own = parsed.params.get("overrides") or []
    return verb, [*before, *own], [word for word in after if word not in own]


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals and name not in os.environ:
        raise ConfigError(f"--env {name}: has no value here; give --env {name}=VALUE")
    return name, value if equals else os.environ[name]

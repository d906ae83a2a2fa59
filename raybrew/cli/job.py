"""raybrew job: ls, status, logs, stop."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from raybrew.cli.options import Address, AsJson
from raybrew.cli.terminal import print_json, results, write_line

if TYPE_CHECKING:
    from raybrew.jobs.handle import JobHandle, JobInfo

__all__ = ["follow", "job_app"]

job_app = typer.Typer(
    name="job",
    help="Look at jobs that were submitted, follow and stop them.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

JobId = Annotated[str, typer.Argument(metavar="ID", help="As `raybrew submit` and `raybrew job ls` name it.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the job has ended.")]


@job_app.command("ls")
def ls(address: Address = None, as_json: AsJson = False) -> None:
    """List the jobs of raybrew that the cluster knows, newest first."""
    from raybrew.jobs.client import connect
    from raybrew.jobs.handle import job_info

    found = [job_info(details) for details in connect(address).jobs()]
    found = sorted((info for info in found if info.run_id), key=lambda info: -(info.started or 0))
    if as_json:
        print_json([info.plain() for info in found])
        return
    if not found:
        write_line("no jobs of raybrew on this cluster")
        return
    from rich.table import Table

    table = Table("job", "command", "status", "exit code", "started")
    for info in found:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(info.started)) if info.started else ""
        code = "" if info.exit_code is None else str(info.exit_code)
        table.add_row(info.id, info.verb or "", info.status, code, started)
    results().print(table, markup=False)


@job_app.command("status")
def status(job: JobId, address: Address = None, as_json: AsJson = False) -> None:
    """Say how a job stands, with the exit code of its command once it has ended."""
    handle = _load(job, address)
    if as_json:
        print_json(handle.info().plain() | {"address": handle.address})
    else:
        _print_info(handle.info())


@job_app.command("logs")
def logs(
    job: JobId,
    address: Address = None,
    following: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
) -> int:
    """Write what a job has written so far; with --follow until it ends, and end with its exit code."""
    handle = _load(job, address)
    if following:
        return follow(handle, as_json=False)
    _write(handle.logs())
    return 0


@job_app.command("stop")
def stop(job: JobId, address: Address = None, wait: Wait = True) -> None:
    """Ask a job to save and stop. Submitted again, it goes on where it was."""
    handle = _load(job, address)
    if not handle.stop():
        write_line(f"job {job} had ended already", sys.stderr)
    elif wait:
        write_line("stopping: the run saves its state first", sys.stderr)
        handle.wait()
    _print_info(handle.info())


def follow(job: JobHandle, as_json: bool) -> int:
    """The log of a job on stdout (with `as_json` on stderr) until it ends; the exit code of its command."""
    from raybrew.errors import Interrupted

    try:
        code = job.follow((lambda text: _write(text, sys.stderr)) if as_json else _write)
    except KeyboardInterrupt:
        raise Interrupted(
            f"following; job {job.id} goes on: `raybrew job logs -f {job.id}` follows it again, `raybrew job stop "
            f"{job.id}` stops it"
        ) from None
    info = job.info()
    if as_json:
        print_json(info.plain() | {"address": job.address})
    else:
        write_line(_line(info), sys.stderr)
    return code


def _load(job: str, address: str | None) -> JobHandle:
    from raybrew.jobs.handle import JobHandle

    return JobHandle.load(job, address)


def _write(text: str, stream: TextIO | None = None) -> None:
    target = stream or sys.stdout
    target.write(text)
    target.flush()


def _line(info: JobInfo) -> str:
    return f"job {info.id}: {info.status.lower()}{f' ({info.message})' if info.message else ''}"


def _print_info(info: JobInfo) -> None:
    write_line(_line(info))
    write_line(f"command: {info.entrypoint}")
    if info.folder:
        write_line(f"folder:  {info.folder}")

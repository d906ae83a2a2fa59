"""`raybrew`: the app, its commands in the order of a day's work, and what errors become on a terminal."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Annotated

import typer

from raybrew.cli.capture import capture
from raybrew.cli.compare import compare
from raybrew.cli.demo import demo
from raybrew.cli.distill import distill
from raybrew.cli.doctor import doctor
from raybrew.cli.evaluate import evaluate
from raybrew.cli.export import export
from raybrew.cli.finetune import finetune
from raybrew.cli.init import init
from raybrew.cli.inspect import inspect
from raybrew.cli.job import job_app
from raybrew.cli.list import list_names
from raybrew.cli.plan import plan
from raybrew.cli.predict import predict
from raybrew.cli.report import report
from raybrew.cli.show import show
from raybrew.cli.store import store_app
from raybrew.cli.submit import submit
from raybrew.cli.sweep import sweep
from raybrew.cli.terminal import write_line
from raybrew.cli.validate import validate
from raybrew.errors import RaybrewError, first_line, machine_problem
from raybrew.runtime import quiet_libraries
from raybrew.secrets import scrub_message
from raybrew.version import __version__

__all__ = ["app", "main"]

_MAX_MESSAGE = 20_000

app = typer.Typer(
    name="raybrew",
    help="Distil transformers on Ray: run the teacher once, train any number of students from what it said.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"raybrew {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error. May stand anywhere.")] = False,
) -> None:
    pass


app.command("demo")(demo)
app.command("init")(init)
app.command("validate")(validate)
app.command("list")(list_names)
app.command("inspect")(inspect)
app.command("plan")(plan)
app.command("finetune")(finetune)
app.command("capture")(capture)
app.command("distill")(distill)
app.command("sweep")(sweep)
app.command("evaluate")(evaluate)
app.command("predict")(predict)
app.command("show")(show)
app.command("compare")(compare)
app.command("report")(report)
app.command("export")(export)
app.add_typer(store_app, name="store")
app.command("doctor")(doctor)
app.command("submit")(submit)
app.add_typer(job_app, name="job")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit.

    0 done, 1 run failed, 2 usage, 3 config invalid, 4 environment or cluster, 5 some trials failed,
    130 interrupted.
    """
    quiet_libraries()
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    with _sigterm_as_ctrl_c():
        code = _run([argument for argument in given if argument != "--debug"], debug)
    sys.exit(code)


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """What stops a job or a container says SIGTERM; by default that ends a process before it can tidy up."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGTERM)
    here = threading.current_thread() is threading.main_thread() and before == signal.SIG_DFL
    if here:
        signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if here:
            signal.signal(signal.SIGTERM, before)


def _run(arguments: list[str], debug: bool) -> int:
    try:
        result = app(args=arguments, prog_name="raybrew", standalone_mode=False)
    except typer.Exit as error:
        return error.exit_code
    except (typer.Abort, KeyboardInterrupt):
        _say("interrupted")
        return 130
    except RaybrewError as error:
        if debug:
            raise
        _say(f"{'stopped' if error.exit_code == 130 else 'error'}: {error}")
        # One code for a machine that cannot, whichever part of a command came upon it.
        return 4 if error.exit_code == 1 and machine_problem(error) is not None else error.exit_code
    except BrokenPipeError:
        # The reader of stdout (such as `head`) has what it wants.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if getattr(error, "exit_code", None) == 2 and hasattr(error, "show"):
            # A usage error: typer carries its own click, whose class has no public name.
            text = io.StringIO()
            error.show(file=text)
            write_line(_for_people(text.getvalue().rstrip("\n")), sys.stderr)
            return 2
        if debug:
            raise
        lacking = machine_problem(error)
        if lacking is not None:
            _say(f"error: {lacking} (--debug shows where)")
            return 4
        _say(f"error: unexpected {type(error).__name__}: {first_line(error)} (--debug shows where)")
        return 1
    return result if isinstance(result, int) else 0


def _say(message: str) -> None:
    write_line(f"raybrew: {_for_people(message)}", sys.stderr)


def _for_people(message: str) -> str:
    """What went wrong, without secrets, in a length that people read."""
    text = scrub_message(message[: 2 * _MAX_MESSAGE])
    return text if len(text) <= _MAX_MESSAGE else f"{text[: _MAX_MESSAGE - 3]}..."

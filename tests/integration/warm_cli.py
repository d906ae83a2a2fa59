"""`raybrew ...` in processes that are forked from one in which torch and transformers are imported already.

A command line imports them in seconds, which is most of what a tiny run takes. Ray and W&B read their environment when
they are imported, so they are not imported here; a command that needs another environment is a process of its own.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["WarmProcess"]

_PRELOAD = [
    "datasets",
    "torch",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
    "raybrew.cli.main",
    "raybrew.verbs.capture",
    "raybrew.verbs.distill",
    "raybrew.verbs.evaluate",
    "raybrew.verbs.finetune",
]


class WarmProcess:
    """A running command with what the tests use of subprocess.Popen; it leads a process group of its own."""

    def __init__(self, arguments: Sequence[str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOAD)
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        self._process = context.Process(
            target=_run, args=(list(arguments), dict(os.environ), os.getcwd(), [str(path) for path in self._outputs])
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; what it wrote to stdout and stderr."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("raybrew", timeout or 0)
        out, err = (path.read_text(encoding="utf-8") if path.exists() else "" for path in self._outputs)
        return out, err

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run(arguments: list[str], environment: dict[str, str], folder: str, outputs: list[str]) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    streams = [os.open(os.devnull, os.O_RDONLY), *(os.open(path, os.O_WRONLY | os.O_CREAT) for path in outputs)]
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False, buffering=1)
    sys.argv = ["raybrew", *arguments]
    from raybrew.cli.main import main

    try:
        main(arguments)
    finally:
        # A forked child ends without them: Ray and W&B tidy up there.
        atexit._run_exitfuncs()
        sys.stdout.flush()

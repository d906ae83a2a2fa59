"""`JobHandle`: a submitted job, to be looked at, followed and stopped, from any process that reaches its cluster."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import html
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raybrew.errors import ClusterError
from raybrew.jobs.client import Client, connect
from raybrew.secrets import scrub

__all__ = ["ENDED", "METADATA", "JobHandle", "JobInfo"]

#: What a job's metadata say, each with this before its name.
METADATA = "raybrew_"
#: Status of a job that does nothing more.
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_POLL_SECONDS = 0.5
#: An unbroken wait for a job whose cluster does not answer ends after this.
_PATIENCE_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class JobInfo:
    """What the cluster says of a job."""

    id: str
    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    exit_code: int | None
    """What `raybrew` returned there; 130 for a job that was stopped, None while it has not ended."""
    message: str
    """One line about how it stands."""
    entrypoint: str
    experiment: str | None
    verb: str | None
    run_id: str | None
    folder: str | None
    """Folder of its run or sweep, or root of its stores, as the cluster sees it."""
    started: float | None
    """Seconds since 1970."""
    ended: float | None

    def plain(self) -> dict[str, Any]:
        """As plain JSON values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class JobHandle:
    """A job on a cluster. `raybrew.submit` returns one; `JobHandle.load(id)` finds one again."""

    id: str
    client: Client = dataclasses.field(repr=False, compare=False)
    is_new: bool = True
    """False if the job ran already when it was submitted again."""

    @classmethod
    def load(cls, job: str, address: str | None = None) -> JobHandle:
        """The job `job` of the cluster at `address`; ClusterError if there is none."""
        handle = cls(job, connect(address), is_new=False)
        handle.info()
        return handle

    @property
    def address(self) -> str:
        """URL of the cluster's dashboard."""
        return str(scrub(self.client.address))

    def info(self) -> JobInfo:
        """How the job stands now."""
        return job_info(self.client.info(self.id))

    @property
    def status(self) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
        return self.info().status

    @property
    def folder(self) -> Path:
        """Folder of its run or sweep, for `Run.load` and `Sweep.load` where this machine shares that storage."""
        return Path(self.info().folder or "")

    def logs(self) -> str:
        """All that the job has written so far."""
        return self.client.logs(self.id)

    def follow(self, write: Callable[[str], None] | None = None) -> int:
        """Pass on what the job writes (default: print it) until it ends; returns its exit code, as `wait`."""
        told, write = 0, write or _print
        while True:
            told = _in_thread(functools.partial(self._tail, told, write))
            info = self._ended()
            if info is not None:
                # What came after the connection was closed.
                rest = self.logs()[told:]
                if rest:
                    write(rest)
                return info.exit_code or 0
            time.sleep(_POLL_SECONDS)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the exit code of the command there, or 130 if it was stopped.

        TimeoutError after `timeout` seconds. ClusterError if the cluster is lost meanwhile.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while (info := self._ended()) is None:
            if until is not None and time.monotonic() > until:
                raise TimeoutError(f"job {self.id} has not ended within {timeout:g} s")
            time.sleep(_POLL_SECONDS)
        return info.exit_code or 0

    def stop(self) -> bool:
        """Ask the job to save and stop, and do not wait; False if it had ended already.

        It has RAY_JOB_STOP_WAIT_TIME_S seconds for that (`raybrew submit` sets 120), then it is killed and goes on
        from its last checkpoint when it is submitted again.
        """
        return self.client.stop(self.id)

    def _ended(self) -> JobInfo | None:
        """How the job ended; None while it has not. A cluster that is away for a moment is asked again."""
        until = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                info = self.info()
                return info if info.status in ENDED else None
            except ClusterError as error:
                if time.monotonic() > until or "does not exist" in str(error):
                    raise ClusterError(f"{error}; the job may go on: `raybrew job status {self.id}`") from error
                time.sleep(2.0)

    def _tail(self, told: int, write: Callable[[str], None]) -> int:
        """Write the log from character `told` on until the connection ends; how many characters were written in all."""
        done = told

        async def tail() -> None:
            nonlocal done
            seen = 0
            async for piece in self.client.tail(self.id):
                fresh = piece[max(0, done - seen) :]
                seen += len(piece)
                if fresh:
                    write(fresh)
                    done += len(fresh)

        with contextlib.suppress(ClusterError):  # `_ended` asks whether the cluster is still there
            asyncio.run(tail())
        return done

    def __str__(self) -> str:
        info = self.info()
        return f"job {self.id}: {info.status.lower()}{f' ({info.message})' if info.message else ''}"

    def _repr_html_(self) -> str:
        """Status and places, for notebooks."""
        try:
            info = self.info()
        except ClusterError as error:
            return f"<p>job <b>{html.escape(self.id)}</b>: {html.escape(str(error))}</p>"
        rows = {
            "status": info.status + (f", exit code {info.exit_code}" if info.exit_code is not None else ""),
            "": info.message,
            "command": info.entrypoint,
            "folder": info.folder or "",
            "seconds": f"{(info.ended or time.time()) - info.started:.0f}" if info.started else "",
            "cluster": self.address,
        }
        cells = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td style='text-align:left'>{html.escape(value)}"
            "</td></tr>"
            for name, value in rows.items()
            if value
        )
        return f"<h4>job {html.escape(self.id)}</h4><table>{cells}</table>"


def job_info(details: Any) -> JobInfo:
    """A `JobDetails` in our words."""
    status = str(getattr(details.status, "value", details.status))
    told = details.metadata or {}
    message = (str(details.message or "").strip().splitlines() or [""])[0]
    return JobInfo(
        id=str(details.submission_id or details.job_id),
        status=status,
        exit_code=_exit_code(status, details.driver_exit_code, details.error_type),
        message=_message(status, details.driver_exit_code, message),
        entrypoint=details.entrypoint,
        experiment=told.get(f"{METADATA}experiment"),
        verb=told.get(f"{METADATA}verb"),
        run_id=told.get(f"{METADATA}run"),
        folder=told.get(f"{METADATA}folder"),
        started=details.start_time / 1000 if details.start_time else None,
        ended=details.end_time / 1000 if details.end_time else None,
    )


def _exit_code(status: str, given: int | None, error_type: str | None) -> int | None:
    if status not in ENDED:
        return None
    if status == "STOPPED":
        return 130
    if given is not None:
        return given if given >= 0 else 128 - given  # as a shell tells of a signal
    if status == "SUCCEEDED":
        return 0
    # It never ran: its environment could not be made, or its node was lost.
    return 1 if error_type == "JOB_ENTRYPOINT_COMMAND_ERROR" else 4


def _message(status: str, exit_code: int | None, message: str) -> str:
    if status == "FAILED" and exit_code == 127:
        return "exit code 127: the nodes of the cluster have no raybrew on their PATH"
    if status == "FAILED" and exit_code is not None:
        return f"exit code {exit_code}"
    if status == "STOPPED":
        return "submitted again, it goes on"
    return message if status != "SUCCEEDED" else ""


def _print(text: str) -> None:
    import sys

    sys.stdout.write(text)
    sys.stdout.flush()


def _in_thread(call: Callable[[], int]) -> int:
    """`call` in a thread of its own: in a notebook this one runs an event loop already. Ctrl-C is heard meanwhile."""
    found: list[int] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="raybrew-job-log", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.2)
    if failed:
        raise failed[0]
    return found[0]

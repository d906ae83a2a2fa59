"""A Ray cluster as people start one: `ray start --head` with a token, on free ports, ended by process id."""

from __future__ import annotations

import dataclasses
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

__all__ = ["Head", "ray_head"]

#: Ray gives these to workers and takes none of them for a service.
_WORKER_PORTS = range(10002, 20000)


@dataclasses.dataclass(frozen=True)
class Head:
    """A running head node of two CPUs."""

    address: str
    dashboard: str
    token: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a shell needs to reach it."""
        return {"RAY_API_SERVER_ADDRESS": self.dashboard, "RAY_AUTH_TOKEN_PATH": str(self.token)}


@contextmanager
def ray_head(folder: Path) -> Iterator[Head]:
    """The cluster for the length of a block; its files are below `folder`, which should be short."""
    token = folder / "auth_token"
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    gcs, dashboard, client, agent = _free_ports(4)
    scripts = str(Path(sys.executable).parent)
    environment = {
        **os.environ,
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",  # where the jobs find `raybrew`
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_worker_niceness": "0",
    }
    environment.pop("RAY_ADDRESS", None)
    log = (folder / "head.log").open("w", encoding="utf-8")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"),
            *("--num-cpus=2", "--object-store-memory=200000000", f"--temp-dir={folder / 'ray'}"),
            *(f"--port={gcs}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
            *("--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-agent-listen-port={agent}"),
        ],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not _listens(dashboard):
            assert process.poll() is None, (folder / "head.log").read_text()
            assert time.monotonic() < deadline, (folder / "head.log").read_text()
            time.sleep(0.2)
        yield Head(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", token)
    finally:
        found = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for each in found:
            try:
                each.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        process.wait()
        psutil.wait_procs(found, timeout=10)
        log.close()


def _free_ports(count: int) -> list[int]:
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < count:
            server = stack.enter_context(socket.socket())
            server.bind(("127.0.0.1", 0))
            if server.getsockname()[1] not in _WORKER_PORTS:
                found.append(server.getsockname()[1])
    return found


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0

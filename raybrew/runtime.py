"""Ray, started or joined quietly: one place for its environment, address, authentication and errors.

Importing this module imports no ray. `RAY_ADDRESS` (or `address`) joins a cluster; without it a private local one is
started, which the context manager stops again. A process that is connected already keeps its connection.

A local Ray listens on the loopback interface alone: its processes run whatever code they are sent. RAYBREW_NODE_IP, an
address of this machine or `auto`, makes it listen on all interfaces, for workers on other machines.

A cluster whose workers come on demand may have none yet. `RAYBREW_WAIT_FOR=GPU:8` asks for so many and waits for them,
up to `RAYBREW_WAIT_SECONDS`, so that what follows is planned for the cluster as it will be.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raybrew.errors import ClusterError, first_line
from raybrew.loopback import LOOPBACK, loopback_only, node_ip_of

__all__ = [
    "RayInfo",
    "auth_token",
    "check_resources",
    "ensure_ray",
    "probe",
    "quiet_libraries",
    "quiet_ray",
    "ray_connected",
    "ray_gpus",
    "ray_runtime",
    "stop_ray",
    "token_advice",
]

#: Set before ray is imported, unless the user has set them. Each removes noise or a wait.
_QUIET_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Workers run at nice 15 by default and starve on a machine that others use.
    "RAY_worker_niceness": "0",
}
_PROBE_SECONDS = 2.0
_LOGGERS = (
    *("ray", "ray.data", "ray.tune", "ray.train"),
    "ray.widgets.util",  # speaks while ray is imported, which sets the level of "ray" before
    # Those of jobs tell of every upload, and of the end of every connection.
    *("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"),
)
#: Where torchao is installed, transformers imports it, and it warns of GPU kernels that this machine cannot load.
_LOUD_LIBRARIES = ("torchao", "torch.utils._pytree")
#: Machines of a cloud with their image and environment are there after some minutes, when there is room at all.
_WAIT_SECONDS = 1200.0

logger = logging.getLogger("raybrew.runtime")


@dataclasses.dataclass(frozen=True)
class RayInfo:
    """The cluster in use. `started`: connected by this call, so that ending it is this caller's business.

    `dashboard_url` is known to the caller that connected, None to later ones.
    """

    started: bool
    address: str
    dashboard_url: str | None
    cpus: float
    gpus: float
    memory: float = 0.0  #: bytes of all nodes that Ray gives to processes


def quiet_ray() -> None:
    """Set the environment variables and log levels that keep Ray silent; variables that the user has set stay.

    Call it again after importing `ray.data` or `ray.job_submission`, which set levels when they are imported.
    """
    for name, value in _QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def quiet_libraries() -> None:
    """Keep libraries from warning of what is no fault of this machine or its user, when they are imported later."""
    for name in _LOUD_LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)


def ensure_ray(
    purpose: str, num_cpus: int | None = None, address: str | None = None, dashboard: bool = True
) -> RayInfo:
    """Connect this process to Ray for `purpose` (a few words for messages, such as `capture`).

    An existing connection is kept. Else `address`, else RAY_ADDRESS is joined; else a local cluster is started with
    `num_cpus` (default: all). ClusterError in one line when it cannot be reached or started.
    """
    quiet_ray()
    if ray_connected():
        return _info(started=False, dashboard_url=None)
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    arguments: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": "ERROR"}
    node_ip = None
    if address == "local":
        node_ip = node_ip_of(purpose)
        arguments |= {"num_cpus": num_cpus, "include_dashboard": dashboard, "_node_ip_address": node_ip}
    else:
        _check_address(address, purpose)
        _use_token(purpose)
    # Not before: ray reads its environment once, when it is imported.
    ray = _ray()
    quiet_ray()  # ray sets a level of its own when it is imported
    try:
        with _without_native_messages(), _own_sigterm(), loopback_only(node_ip == LOOPBACK):
            context = ray.init(**arguments)
    except (PermissionError, ray.exceptions.AuthenticationError) as error:
        how = "refuses this token: it is another cluster's" if auth_token(purpose) else "asks for a token"
        raise ClusterError(f"{purpose}: the Ray cluster at {address} {how}; {token_advice()}") from error
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        what = "start a local Ray" if address == "local" else f"join the Ray cluster at {address}"
        raise ClusterError(f"{purpose}: cannot {what}: {first_line(error)}") from error
    if address != "local":
        try:
            _wait_for(purpose, *_wanted(purpose))
        except BaseException:
            ray.shutdown()
            raise
    return _info(started=True, dashboard_url=context.dashboard_url)


@contextlib.contextmanager
def _without_native_messages() -> Iterator[None]:
    """Keep what Ray's C++ parts write to stderr while it starts away from the user; it is shown if the start fails."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as caught:
        stderr = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        except BaseException as error:
            caught.seek(0)
            messages = caught.read()
            if b"InvalidAuthToken" in messages:
                raise PermissionError("the token is not accepted") from error
            if not isinstance(error, KeyboardInterrupt):
                os.write(stderr, messages)
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's answer to SIGTERM where it has one: ray.init puts its own, an exit, in its place."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and callable(before):
            signal.signal(signal.SIGTERM, before)


def _wanted(purpose: str) -> tuple[dict[str, int], float]:
    """What RAYBREW_WAIT_FOR names, such as `GPU:8` or `GPU:8,CPU:64`, and the seconds to wait; empty without it."""
    given, limit = os.environ.get("RAYBREW_WAIT_FOR", ""), os.environ.get("RAYBREW_WAIT_SECONDS")
    wanted: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in given.split(","))):
        name, _, count = part.partition(":")
        if not name or not count.isdecimal():
            raise ClusterError(f"{purpose}: RAYBREW_WAIT_FOR: given {given!r}; allowed: such as GPU:8 or GPU:8,CPU:64")
        wanted[name] = int(count)
    try:
        seconds = _WAIT_SECONDS if limit is None else float(limit)
    except ValueError as error:
        raise ClusterError(f"{purpose}: RAYBREW_WAIT_SECONDS: given {limit!r}; allowed: a number") from error
    return wanted, seconds


def _wait_for(purpose: str, wanted: Mapping[str, int], seconds: float) -> None:
    """Ask the cluster's autoscaler for `wanted` and wait until it is there; ClusterError after `seconds`.

    It is asked by a placement group, which Ray drops with this process, however that ends: nobody pays for machines
    that a killed command has asked for.
    """
    from ray.util.placement_group import placement_group, remove_placement_group

    ray = _ray()
    if not _lacking(wanted, ray.cluster_resources()):
        return
    logger.warning("%s: waiting for %s", purpose, "; ".join(_lacking(wanted, ray.cluster_resources())))
    group = placement_group([{name: 1} for name, count in wanted.items() for _ in range(count)])
    until = time.monotonic() + seconds
    try:
        while not group.wait(timeout_seconds=1) and (lacking := _lacking(wanted, ray.cluster_resources())):
            if time.monotonic() > until:
                raise ClusterError(
                    f"{purpose}: after {seconds:g} seconds (RAYBREW_WAIT_SECONDS) the Ray cluster lacks "
                    f"{'; '.join(lacking)}; raise its limit of workers, wait longer, or lower RAYBREW_WAIT_FOR"
                )
    finally:
        remove_placement_group(group)


def _lacking(wanted: Mapping[str, float], total: Mapping[str, float]) -> list[str]:
    """What there is less of than wanted, in words."""
    return [
        f"{count:g} {name}s asked for, {total.get(name, 0):g} there"
        for name, count in wanted.items()
        if count > total.get(name, 0)
    ]


def stop_ray(info: RayInfo) -> None:
    """Disconnect, and stop the cluster if it is a local one, when `info` says that we connected."""
    if info.started:
        _ray().shutdown()


@contextlib.contextmanager
def ray_runtime(
    purpose: str, num_cpus: int | None = None, address: str | None = None, dashboard: bool = True
) -> Iterator[RayInfo]:
    """`ensure_ray` for the length of a block."""
    info = ensure_ray(purpose, num_cpus, address, dashboard)
    try:
        yield info
    finally:
        stop_ray(info)


def check_resources(cpus: float, gpus: float = 0, purpose: str = "this run") -> None:
    """ClusterError if the connected cluster has fewer CPUs or GPUs in all than asked for (Ray would wait forever)."""
    lacking = _lacking({"CPU": cpus, "GPU": gpus}, _ray().cluster_resources())
    if lacking:
        raise ClusterError(f"{purpose}: the Ray cluster is too small: {'; '.join(lacking)}")


def ray_gpus() -> float:
    """GPUs of the cluster that this process is connected to; 0 without a connection. Starts and imports nothing."""
    return float(_ray().cluster_resources().get("GPU", 0)) if ray_connected() else 0.0


def ray_connected() -> bool:
    """Whether this process is connected to a cluster. Starts and imports nothing."""
    ray: Any = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _info(started: bool, dashboard_url: str | None) -> RayInfo:
    ray = _ray()
    total = ray.cluster_resources()
    url = None if not dashboard_url else dashboard_url if "://" in dashboard_url else f"http://{dashboard_url}"
    amounts = (float(total.get(name, 0)) for name in ("CPU", "GPU", "memory"))
    return RayInfo(started, ray.get_runtime_context().gcs_address, url, *amounts)


def _check_address(address: str, purpose: str) -> None:
    """An explicit address: its form, a probe (ray.init would wait for minutes), and token authentication."""
    if address == "auto":
        return
    if address.startswith("ray://"):
        raise ClusterError(
            f"{purpose}: {address} is a Ray Client address, which Ray has deprecated; use <host>:6379, "
            "or send the command to the cluster by `ray job submit`"
        )
    parts = urlsplit(f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port is None:
        raise ClusterError(f"{purpose}: {address!r} is no Ray address; RAY_ADDRESS is <host>:<port>, auto or local")
    probe(host, port, address, purpose, "start it, correct RAY_ADDRESS, or unset it for a local one")


def probe(host: str, port: int, address: str, purpose: str, remedy: str) -> None:
    """ClusterError, with `remedy`, if nobody listens there; Ray's own clients would wait for minutes."""
    try:
        socket.create_connection((host, port), timeout=_PROBE_SECONDS).close()
    except OSError as error:
        reason = error.strerror or error
        raise ClusterError(f"{purpose}: no Ray cluster answers at {address} ({reason}); {remedy}") from error


def auth_token(purpose: str) -> str | None:
    """The token that this machine presents to clusters: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.

    None where there is none, or RAY_AUTH_MODE is `disabled`. ClusterError for a RAY_AUTH_TOKEN_PATH without a token.
    """
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return None
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"].strip()
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    if not named and not path.is_file():
        return None
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ClusterError(f"{purpose}: the token in {path} cannot be read ({error.strerror})") from error
    if not token and named:
        raise ClusterError(f"{purpose}: RAY_AUTH_TOKEN_PATH names {path}, which is empty")
    return token or None


def token_advice() -> str:
    """Where a cluster's token belongs, in words."""
    return (
        "copy the head node's ~/.ray/auth_token to that place here, or name it by RAY_AUTH_TOKEN_PATH "
        "(`ray get-auth-token` shows it there)"
    )


def _use_token(purpose: str) -> None:
    """`ray start --head` asks for a token where one exists, and a client with an explicit address sends none by itself.

    A local cluster makes and uses its own.
    """
    if auth_token(purpose):
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _ray() -> Any:
    import ray

    return ray

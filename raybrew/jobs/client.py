"""The way to a cluster's Jobs API: its address, its token, and its errors in one line."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psutil

from raybrew.errors import ClusterError, RaybrewError
from raybrew.runtime import auth_token, probe, quiet_ray, token_advice

__all__ = ["Client", "connect"]

_HTTP_SECONDS = 10.0
#: A cluster whose dashboard answers has its nodes by then.
_START_SECONDS = 20.0
_DEFAULT = "http://127.0.0.1:8265"
#: They would take the place of an address that is given in so many words.
_RAY_ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


class Client:
    """A connection to the Jobs API at `address` (a URL). Every method raises ClusterError in one line."""

    def __init__(self, address: str, client: Any, headers: dict[str, str]) -> None:
        self.address = address
        self._client = client
        self._headers = headers

    def submit(self, **arguments: Any) -> str:
        """As `JobSubmissionClient.submit_job`."""
        with _errors(self.address, "the job was not accepted"):
            return str(self._client.submit_job(**arguments))

    def info(self, job: str) -> Any:
        """What the cluster knows of a job: a `JobDetails`."""
        with _errors(self.address, f"job {job}"):
            return self._client.get_job_info(job)

    def jobs(self) -> list[Any]:
        """`JobDetails` of all jobs that the cluster knows."""
        with _errors(self.address, "the list of jobs"):
            return list(self._client.list_jobs())

    def logs(self, job: str) -> str:
        """All that a job has written so far."""
        with _errors(self.address, f"the log of job {job}"):
            return str(self._client.get_job_logs(job))

    async def tail(self, job: str) -> Any:
        """The log from its beginning, in pieces, until the job ends or the connection does."""
        with _errors(self.address, f"the log of job {job}"):
            async for piece in self._client.tail_job_logs(job):
                yield piece

    def stop(self, job: str) -> bool:
        """Ask a job to stop; False if it had ended already."""
        with _errors(self.address, f"job {job}"):
            return bool(self._client.stop_job(job))

    def is_this_machine(self) -> bool:
        """Whether all nodes of the cluster are this machine, so that a path means the same there as here."""
        ours = {address.address for found in psutil.net_if_addrs().values() for address in found}
        until = time.monotonic() + _START_SECONDS
        while not (nodes := [node["node_ip"] for node in self._nodes() if node.get("state") == "ALIVE"]):
            if time.monotonic() > until:
                raise ClusterError(f"{self.address}: the cluster has no node that is alive")
            time.sleep(0.5)
        return ours.issuperset(nodes)

    def _nodes(self) -> list[dict[str, Any]]:
        with _errors(self.address, "the list of nodes"):
            found = json.loads(_get(f"{self.address}/api/v0/nodes", self._headers))
        return list(found["data"]["result"]["result"])


def connect(address: str | None = None) -> Client:
    """The Jobs API of the cluster at `address`: `http://<head>:8265`, or a Ray address `<head>:6379`.

    Default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, else the cluster that runs on this machine. ClusterError if nobody
    answers there, or the cluster wants another token.
    """
    given = address or next((os.environ[name] for name in _RAY_ADDRESSES if os.environ.get(name)), None)
    url = _url_of(given)
    token = auth_token("submit")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with _errors(url, "no Jobs API there"):
        version = json.loads(_get(f"{url}/api/version", headers)).get("ray_version")
    if not version:
        raise ClusterError(f"{url} answers, but is no Ray dashboard; the address is http://<head>:8265")
    quiet_ray()
    from ray.job_submission import JobSubmissionClient

    quiet_ray()  # ray sets levels of its own when it is imported, and so do the modules of its client
    with _errors(url, "no Jobs API there"), _without_ray_addresses():
        return Client(url, JobSubmissionClient(url, headers=dict(headers)), headers)


def _url_of(given: str | None) -> str:
    """`given` as the URL of a dashboard that somebody listens at."""
    if given is None or given in ("auto", "local"):
        return _running_here()
    if given.startswith("ray://"):
        raise ClusterError(
            f"submit: {given} is a Ray Client address, which takes no jobs; give that of the dashboard, "
            "http://<head>:8265"
        )
    url = given.rstrip("/") if "://" in given else f"http://{given}"
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        host = port = None
    if not host or port is None or parts.scheme not in ("http", "https") or (port == 80 and "://" not in given):
        raise ClusterError(
            f"submit: {given!r} is no address of a cluster; --address (or RAY_ADDRESS) is http://<head>:8265 or "
            "<head>:6379"
        )
    probe(host, port, given, "submit", "start it, or correct --address (or RAY_ADDRESS)")
    if "://" in given or _speaks_http(url):
        return url
    return _dashboard_of(given)


def _running_here() -> str:
    """The dashboard of the cluster that was started on this machine."""
    try:
        return _dashboard_of("auto")
    except ClusterError:
        probe("127.0.0.1", 8265, _DEFAULT, "submit", "start one (`ray start --head`), or give --address or RAY_ADDRESS")
        return _DEFAULT


def _dashboard_of(address: str) -> str:
    """Where the dashboard of the cluster at a Ray address is."""
    quiet_ray()
    if auth_token("submit"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.dashboard.utils import ray_address_to_api_server_url

    with _errors(address, "the dashboard's address is not known; give it as http://<head>:8265"):
        return str(ray_address_to_api_server_url(address))


def _speaks_http(url: str) -> bool:
    try:
        _get(f"{url}/api/version", {})
    except urllib.error.HTTPError:
        return True  # it refuses, in HTTP
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return True


def _get(url: str, headers: dict[str, str]) -> str:
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=_HTTP_SECONDS) as answer:
        return str(answer.read().decode())


@contextlib.contextmanager
def _without_ray_addresses() -> Iterator[None]:
    """Ray lets these win over the address that it is given."""
    kept = {name: os.environ.pop(name) for name in _RAY_ADDRESSES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


@contextlib.contextmanager
def _errors(address: str, what: str) -> Iterator[None]:
    """What Ray's client raises as a ClusterError of one line."""
    try:
        yield
    except RaybrewError:
        raise
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise ClusterError(_refused(address, missing=error.code == 401)) from error
        raise ClusterError(f"{address}: {what}: {error.code} {error.reason}") from error
    except Exception as error:
        name = type(error).__name__
        text = str(error).strip()
        if name == "AuthenticationError":
            raise ClusterError(_refused(address, missing="required" in text.splitlines()[0])) from error
        foreign = type(error).__module__.split(".")[0] in ("aiohttp", "http", "requests", "ray")
        if foreign or isinstance(error, (OSError, RuntimeError, ValueError)):
            # Of an error on the server Ray sends the traceback; its last line says what it was.
            lines = [line for line in text.splitlines() if line.strip(" .")]
            known = next((line for line in lines if "does not exist" in line or "already" in line), None)
            shown = known or (lines[-1] if "Traceback" in text and lines else lines[0] if lines else name)
            raise ClusterError(f"{address}: {what}: {shown.strip()[:300]}") from error
        raise


def _refused(address: str, missing: bool) -> str:
    given = auth_token("submit")
    how = "asks for a token" if missing or not given else "refuses this token: it is another cluster's"
    return f"the cluster at {address} {how}; {token_advice()}"

"""Every node of the connected Ray cluster, asked one by one: what it is, and whether it sees the same storage."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import socket
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from raybrew.errors import ClusterError, RaybrewError
from raybrew.files import write_bytes

__all__ = [
    "Folder",
    "Needed",
    "Node",
    "Place",
    "alive_nodes",
    "check_seen",
    "check_shared",
    "gpu_nodes",
    "on_each_node",
    "on_gpu",
    "places_problems",
]

#: A node that has not answered by then (its first process has to start, and to import) is given up.
_ANSWER_SECONDS = 120.0
#: A file that one machine has written is seen by others only after a while, where NFS keeps directories in mind.
_SEEN_SECONDS = 10.0


class Place(Protocol):
    """Where files are written by one node and read by others; travels to them."""

    def write(self, name: str, data: bytes) -> None:
        """A file, whole or not at all."""
        ...

    def read(self, name: str) -> bytes:
        """Its content; FileNotFoundError."""
        ...

    def delete(self, names: Collection[str]) -> None:
        """Remove files; missing ones are none to remove."""
        ...


class Needed(Protocol):
    """What every node reads; travels to them."""

    def read(self, name: str) -> bytes:
        """The content of a file; FileNotFoundError."""
        ...

    def lacking(self) -> str | None:
        """What keeps this node from reading all of it, in a sentence."""
        ...


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder as a `Place`."""

    path: Path

    def write(self, name: str, data: bytes) -> None:
        write_bytes(self.path / name, data)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def delete(self, names: Collection[str]) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def lacking(self) -> str | None:
        return None


@dataclasses.dataclass(frozen=True)
class Node:
    """A node of the cluster."""

    id: str
    address: str
    host: str

    @property
    def name(self) -> str:
        """As a person knows it: `worker-3 (10.0.0.7)`."""
        return self.address if self.host in ("", self.address) else f"{self.host} ({self.address})"


def alive_nodes() -> list[Node]:
    """All nodes that are alive, that of this process first."""
    import ray

    here = ray.get_runtime_context().get_node_id()
    found = [
        Node(node["NodeID"], node["NodeManagerAddress"], node.get("NodeManagerHostname", ""))
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]
    return sorted(found, key=lambda node: (node.id != here, node.address, node.id))


def gpu_nodes() -> list[Node]:
    """Those of `alive_nodes` that have GPUs."""
    import ray

    found = {node["NodeID"] for node in ray.nodes() if node["Resources"].get("GPU")}  # type: ignore[no-untyped-call]
    return [node for node in alive_nodes() if node.id in found]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a node answered, or why it did not; `delay` is its clock minus ours in seconds, as the answer came."""

    value: Any = None
    error: str | None = None
    delay: float = 0.0


def on_each_node(
    nodes: Collection[Node], function: Callable[..., Any], *arguments: Any, sees_gpus: bool = False
) -> dict[str, Answer]:
    """Id -> answer of `function(node, *arguments)`, a function of a module, run on each of `nodes` at the same time.

    It reserves nothing, not even with `sees_gpus`, and then looks at GPUs that others may be using.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0}
    if sees_gpus:
        # Ray may hide GPUs from what reserves none. The process ends with the answer, as it holds memory of them.
        options |= {"runtime_env": {"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}}, "max_calls": 1}
    remote = ray.remote(**options)(_answer)
    waiting = {
        remote.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
            function, node, *arguments
        ): node
        for node in nodes
    }
    found: dict[str, Answer] = {}
    until = time.monotonic() + _ANSWER_SECONDS
    while waiting and (left := until - time.monotonic()) > 0:
        done, _ = ray.wait(list(waiting), num_returns=1, timeout=left)
        now = time.time()
        for reference in done:
            node = waiting.pop(reference)
            try:
                value, error, clock = ray.get(reference)
                found[node.id] = Answer(value, error, clock - now)
            except Exception as error:  # whatever ended the process there is what is to be told
                found[node.id] = Answer(error=_last_line(error))
    for reference, node in waiting.items():
        ray.cancel(reference, force=True)
        found[node.id] = Answer(error=f"no answer within {_ANSWER_SECONDS:g} s")
    return found


def on_gpu(purpose: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` in a process of the connected cluster that reserves a GPU; waits for one.

    Errors of ours are raised as they are, others as ClusterError.
    """
    import ray

    remote = ray.remote(num_cpus=1, num_gpus=1, max_calls=1)(function)
    try:
        return ray.get(remote.remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, RaybrewError):
            raise error.cause from None
        raise ClusterError(f"{purpose}: {_last_line(error)}") from error
    except ray.exceptions.RayError as error:
        raise ClusterError(f"{purpose}: {_reason(error)}") from error


def check_shared(places: Mapping[str, Place], purpose: str) -> None:
    """ClusterError that names the nodes of the connected cluster that do not see each of `places` as this one does.

    `places` are named by key and location, such as `store.path (/data/store)`. Nothing to do where there is one node.
    """
    nodes = alive_nodes()
    if len(nodes) < 2:
        return
    problems = [line for name, place in places.items() for line in places_problems(name, place, nodes)]
    if problems:
        raise ClusterError(
            f"{purpose}: {'; '.join(problems)}; it must be storage that all nodes share (NFS or the like"
            + (", or s3://, gs://)" if any("store.path" in line for line in problems) else ")")
        )


def check_seen(places: Mapping[str, Needed], purpose: str) -> None:
    """ClusterError that names the nodes that do not have in each of `places` what this process reads there.

    Folders are compared by names and sizes of their files, others by their manifest. Nothing to do for one node.
    """
    nodes = alive_nodes()
    if len(nodes) < 2 or not places:
        return
    here = {name: _content(place) for name, place in places.items()}
    answers = on_each_node(nodes, _other_content, places, here)
    problems = []
    for node in nodes:
        answer = answers[node.id]
        if answer.error is not None:
            problems.append(f"node {node.name} cannot be asked: {answer.error}")
        else:
            problems += [f"{name} on node {node.name}: {what}" for name, what in answer.value.items()]
    if problems:
        raise ClusterError(
            f"{purpose}: {'; '.join(problems)}; every node must read the same files: use storage that all nodes "
            "share, or copy them to each node"
        )


def _other_content(node: Node, places: Mapping[str, Needed], expected: Mapping[str, Any]) -> dict[str, str]:
    """On a node: what is wrong with each place; nothing for those that hold what is expected."""
    found: dict[str, str] = {}
    for name, place in places.items():
        try:
            content, lacking = _content(place), place.lacking()
        except Exception as error:  # as of many storages
            found[name] = f"cannot be read: {_reason(error)}"
            continue
        if content != expected[name]:
            found[name] = "holds other files" if content else "is not there"
        elif lacking is not None:
            found[name] = lacking
    return found


def _content(place: Needed) -> Any:
    """What tells whether two nodes read the same."""
    if not isinstance(place, Folder):
        return place.read("manifest.json")
    files = sorted(path for path in place.path.rglob("*") if path.is_file() and not path.name.startswith("."))
    return [(path.relative_to(place.path).as_posix(), path.stat().st_size) for path in files]


def places_problems(name: str, place: Place, nodes: Collection[Node]) -> list[str]:
    """What is wrong with a place, a line for each node: a file written there by any node must be read by the others.

    Files are written beside their final names and renamed, as everything that counts is. None is left behind.
    """
    token = uuid.uuid4().hex
    ours = f".probe-{token}.tmp"
    theirs = {node.id: f".probe-{token}-{node.id}.tmp" for node in nodes}
    try:
        try:
            place.write(ours, token.encode())
        except Exception as error:  # as of many storages
            return [f"{name} cannot be written from here: {_reason(error)}"]
        problems = []
        for node, answer in ((node, found) for node, found in _ordered(nodes, place, ours, theirs)):
            if answer.error is not None:
                problems.append(f"node {node.name} cannot be asked about {name}: {answer.error}")
            elif answer.value is not None:
                problems.append(f"{name} on node {node.name}: {answer.value}")
            elif _read(place, theirs[node.id]) != node.id.encode():
                problems.append(f"{name}: what node {node.name} writes there is not seen from here")
        return problems
    finally:
        with contextlib.suppress(Exception):
            place.delete([ours, *theirs.values()])


def _ordered(nodes: Collection[Node], place: Place, ours: str, theirs: Mapping[str, str]) -> list[tuple[Node, Answer]]:
    found = on_each_node(nodes, _try_place, place, ours, theirs)
    return [(node, found[node.id]) for node in nodes]


def _try_place(node: Node, place: Place, ours: str, theirs: Mapping[str, str]) -> str | None:
    """On a node: what is wrong with the place there."""
    try:
        if _read(place, ours) is None:
            return "does not hold what this process has written to it"
        place.write(theirs[node.id], node.id.encode())
    except Exception as error:  # as of many storages
        return f"cannot be read and written: {_reason(error)}"
    return None


def _read(place: Place, name: str) -> bytes | None:
    """The file, once it is seen."""
    until = time.monotonic() + _SEEN_SECONDS
    while True:
        try:
            return place.read(name)
        except FileNotFoundError:
            if time.monotonic() > until or not _parent_exists(place):
                return None
            time.sleep(0.2)


def _parent_exists(place: Place) -> bool:
    return not isinstance(place, Folder) or place.path.is_dir()


def _answer(function: Callable[..., Any], node: Node, *arguments: Any) -> tuple[Any, str | None, float]:
    """Result, error and clock of this node. Errors are told, not raised: Ray would print them."""
    try:
        return function(node, *arguments), None, time.time()
    except Exception as error:  # to be told where it can be
        return None, f"{type(error).__name__}: {_reason(error)}", time.time()


def describe_node(node: Node) -> dict[str, Any]:
    """On a node: its versions and machine."""
    import importlib.metadata

    import psutil

    from raybrew.version import __version__

    versions = {"raybrew": __version__, "python": platform.python_version()}
    for package in ("ray", "torch", "transformers", "datasets", "pyarrow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    shared_memory = Path("/dev/shm")
    return {
        "host": socket.gethostname(),
        "versions": versions,
        "memory": psutil.virtual_memory().total,
        "shared_memory": psutil.disk_usage(str(shared_memory)).total if shared_memory.is_dir() else None,
    }


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

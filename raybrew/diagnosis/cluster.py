"""Findings about a Ray cluster: its nodes, their versions and clocks, and the storage that they must share."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from raybrew.config import Experiment
from raybrew.diagnosis.findings import Finding, Status
from raybrew.diagnosis.machine import shared_memory
from raybrew.errors import ClusterError, StoreError
from raybrew.nodes import Answer, Folder, Node, Place, alive_nodes, describe_node, on_each_node, places_problems
from raybrew.runtime import ensure_ray, stop_ray
from raybrew.storage.open import is_remote, open_storage, stores_root

__all__ = ["cluster", "jobs_api"]

#: Clocks that differ by more than this confuse leases on stores in object stores, whose holders renew every 5 s.
_BAD_SKEW, _ODD_SKEW = 10.0, 2.0
_COMPARED = ("raybrew", "python", "ray", "torch", "transformers", "datasets", "pyarrow")


def cluster(experiment: Experiment | None, address: str | None) -> Iterator[Finding]:
    """Join the cluster at `address` (default: RAY_ADDRESS), and ask all of its nodes."""
    given = address or os.environ.get("RAY_ADDRESS")
    if not given or given == "local":
        yield Finding("Ray", "ok", "no cluster is named (--address, RAY_ADDRESS): commands start Ray on this machine")
        return
    try:
        info = ensure_ray("doctor", address=address)
    except ClusterError as error:
        message, _, remedy = str(error).removeprefix("doctor: ").partition("; ")
        yield Finding("Ray", "problem", message, remedy)
        return
    try:
        nodes = alive_nodes()
        where = f"{info.address}, dashboard {info.dashboard_url}" if info.dashboard_url else info.address
        count = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}"
        yield Finding("Ray", "ok", f"{where}: {count}, {info.cpus:g} CPUs, {info.gpus:g} GPUs")
        yield from _enough(experiment, info.cpus, info.gpus)
        answers = on_each_node(nodes, describe_node)
        yield from _versions(nodes, answers)
        yield from _clocks(nodes, answers)
        for node in nodes:
            told = answers[node.id].value
            if told is not None:
                yield from shared_memory(told["shared_memory"], f"node {node.name}")
        if experiment is not None:
            yield from _storage(experiment, [node for node in nodes if answers[node.id].error is None])
    finally:
        stop_ray(info)


def jobs_api(address: str | None) -> Iterator[Finding]:
    """The Jobs API at an http address: whether it takes jobs from here."""
    from raybrew.jobs.client import connect

    try:
        client = connect(address)
        known = len(client.jobs())
    except ClusterError as error:
        message, _, remedy = str(error).removeprefix("submit: ").partition("; ")
        yield Finding("Ray", "problem", message, remedy)
        return
    yield Finding("Ray", "ok", f"{client.address} takes jobs from here (it knows {known})")
    yield Finding(
        "Ray",
        "warning",
        "the cluster's nodes and their storage can only be looked at from inside",
        "raybrew submit EXPERIMENT -- doctor",
    )


def _enough(experiment: Experiment | None, cpus: float, gpus: float) -> Iterator[Finding]:
    if experiment is None:
        return
    train, store = experiment.train, experiment.store
    wanted = max(train.worker_range[0] * train.cpus_per_worker, store.fewest_actors * store.cpus_per_actor)
    if wanted > cpus:
        yield Finding(
            "Ray",
            "problem",
            f"the experiment asks for {wanted:g} CPUs at once, the cluster has {cpus:g}",
            "fewer train.workers, train.cpus_per_worker, store.actors or store.cpus_per_actor; or a larger cluster",
        )
    if "cuda" in (train.device, experiment.teacher.device) and not gpus:
        remedy = "device auto; or a cluster with GPUs (RAYBREW_WAIT_FOR=GPU:1 waits for one that comes on demand)"
        yield Finding("Ray", "problem", "the experiment asks for cuda, the cluster has no GPU", remedy)


def _versions(nodes: Sequence[Node], answers: Mapping[str, Answer]) -> Iterator[Finding]:
    ours = {"python": platform.python_version()} | describe_node(nodes[0])["versions"]
    differing = False
    for node in nodes:
        answer = answers[node.id]
        if answer.error is not None:
            differing = True
            yield Finding(
                "nodes",
                "problem",
                f"node {node.name} cannot run raybrew: {answer.error}",
                "install raybrew there with the versions of constraints.txt (cluster/README.md)",
            )
            continue
        theirs: dict[str, str] = answer.value["versions"]
        other = [
            f"{name} {theirs.get(name, 'missing')} there, {ours.get(name, 'missing')} here"
            for name in _COMPARED
            if theirs.get(name) != ours.get(name)
        ]
        if other:
            differing = True
            yield Finding(
                "nodes", "problem", f"node {node.name}: {', '.join(other)}", "the same environment on all nodes"
            )
    if not differing:
        yield Finding("nodes", "ok", f"the same versions on {'all of ' if len(nodes) > 1 else ''}{len(nodes)}")


def _clocks(nodes: Sequence[Node], answers: Mapping[str, Answer]) -> Iterator[Finding]:
    asked = {node.name: answers[node.id].delay for node in nodes if answers[node.id].error is None}
    wrong = {name: delay for name, delay in asked.items() if abs(delay) >= _ODD_SKEW}
    for name, delay in wrong.items():
        status: Status = "problem" if abs(delay) >= _BAD_SKEW else "warning"
        way = "ahead of" if delay > 0 else "behind"
        yield Finding(
            "clocks", status, f"node {name} is {abs(delay):.1f} s {way} this one", "run chrony or ntpd on all"
        )
    if asked and not wrong:
        yield Finding("clocks", "ok", f"within {max(map(abs, asked.values())):.2f} s of this one")


def _storage(experiment: Experiment, nodes: Sequence[Node]) -> Iterator[Finding]:
    """Runs and stores: written, read and renamed by every node, and seen by this one."""
    store = experiment.store
    runs = Path(store.storage_path).expanduser().absolute()
    root = stores_root(store)
    places: dict[str, Place] = {f"store.storage_path ({runs})": Folder(runs)}
    if is_remote(root) or not Path(root).is_relative_to(runs):
        places[f"store.path ({root})"] = open_storage(root, store.cache)
    for name, place in places.items():
        if isinstance(place, Folder):
            try:
                place.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = f"{name} cannot be made: {error.strerror}"
                yield Finding("storage", "problem", reason, "another folder, or other rights")
                continue
        try:
            problems = places_problems(name, place, nodes)
        except StoreError as error:
            problems = [str(error)]
        for line in problems:
            remedy = "storage that all nodes share: NFS or the like"
            yield Finding("storage", "problem", line, remedy + ("; or s3://, gs://" if "store.path" in name else ""))
        if not problems:
            where = f"from each of {len(nodes)} nodes" if len(nodes) > 1 else "from its node"
            yield Finding("storage", "ok", f"{name} is written, renamed and read {where}")

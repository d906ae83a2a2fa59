"""A local Ray is this machine's own: all its processes listen on the loopback interface, unless asked otherwise."""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import subprocess
import sys

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]

#: Starts Ray as commands do, runs a task, and prints where the processes of that Ray listen.
PROGRAM = """
import json, os, psutil
from raybrew.runtime import ray_runtime
with ray_runtime("test", num_cpus=1):
    import ray

    pid = ray.get(ray.remote(lambda: os.getpid()).remote())
    session = ray._private.worker._global_node.get_session_dir_path()
    here = {os.getpid(), pid, *(child.pid for child in psutil.Process().children(recursive=True))}
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        if process.info["pid"] in here or session in " ".join(process.info["cmdline"] or ()):
            for place in process.net_connections("inet"):
                if place.status == psutil.CONN_LISTEN:
                    found.append([process.name(), place.laddr.ip])
print(json.dumps(found))
"""

#: Trains with two workers, and prints where they listen.
WORKERS = """
import json, tempfile
from pathlib import Path
from raybrew.config.train import TrainConfig
from raybrew.training.launch import launch

def job(spec, context):
    import psutil
    from torch import distributed as dist

    group = dist.new_group(backend="gloo")
    dist.barrier(group)
    found = [place.laddr.ip for place in psutil.Process().net_connections("inet") if place.status == psutil.CONN_LISTEN]
    return {"found": [[f"worker {rank}", ip] for rank, ips in enumerate(context.gather(found)) for ip in ips]}

with tempfile.TemporaryDirectory() as folder:
    config = TrainConfig(workers=2, cpus_per_worker=0.5, threads=1)
    print(json.dumps(launch(job, {}, config, Path(folder), lambda line: None)["found"]))
"""


def listening(
    program: str = PROGRAM, **environment: str
) -> list[tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address]]:
    """(process, address) of all that listens."""
    without = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAYBREW_NODE_IP")}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**without, **environment}, capture_output=True, text=True, check=True
    )
    found = []
    for name, text in json.loads(done.stdout.splitlines()[-1]):
        address = ipaddress.ip_address(text)
        found.append((name, getattr(address, "ipv4_mapped", None) or address))
    return found


def test_a_local_ray_listens_on_the_loopback_interface() -> None:
    found = listening()
    assert {"gcs_server", "raylet"} <= {name for name, _ in found}
    assert [(name, str(address)) for name, address in found if not address.is_loopback] == []


def test_workers_of_a_local_ray_find_each_other_on_the_loopback_interface() -> None:
    found = listening(WORKERS)
    assert {name for name, _ in found} == {"worker 0", "worker 1"}
    assert [(name, str(address)) for name, address in found if not address.is_loopback] == []


@pytest.mark.skipif(
    all(
        ipaddress.ip_address(address.address).is_loopback
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET
    ),
    reason="this machine has no other interface",
)
def test_or_on_all_interfaces_where_that_is_asked_for() -> None:
    found = listening(RAYBREW_NODE_IP="auto")
    assert any(name == "gcs_server" and not address.is_loopback for name, address in found)

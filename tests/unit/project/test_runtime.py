"""Joining Ray: addresses that cannot work are said at once, without importing ray."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from raybrew.errors import ClusterError
from raybrew.loopback import node_ip_of
from raybrew.runtime import _wait_for, _wanted, ensure_ray, quiet_ray


def test_an_address_where_nobody_answers_is_said_at_once() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        start = time.monotonic()
        with pytest.raises(ClusterError, match=rf"^training: no Ray cluster answers at \S+:{port} \(.*RAY_ADDRESS"):
            ensure_ray("training", address=f"127.0.0.1:{port}")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("ray://head:10001", "Ray Client address"),
        ("head", "'head' is no Ray address"),
        ("head:port", "'head:port' is no Ray address"),
        (":6379", "':6379' is no Ray address"),
    ],
)
def test_addresses_of_other_forms_are_refused(address: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ClusterError, match=f"^capture: .*{message}") as caught:
        ensure_ray("capture")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_local_ray_uses_the_loopback_interface_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYBREW_NODE_IP", raising=False)
    assert node_ip_of("training") == "127.0.0.1"
    for given, address in (
        ("::1", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("192.0.2.7", "192.0.2.7"),
        ("auto", None),
    ):
        monkeypatch.setenv("RAYBREW_NODE_IP", given)
        assert node_ip_of("training") == address
    for given in ("0.0.0.0.0", "host", "192.0.2.7:6379"):
        monkeypatch.setenv("RAYBREW_NODE_IP", given)
        with pytest.raises(ClusterError, match=rf"RAYBREW_NODE_IP: given '{given}'; allowed: an IP address"):
            ensure_ray("training")


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_BACKEND_LOG_LEVEL", "info")
    monkeypatch.delenv("RAY_AIR_NEW_OUTPUT", raising=False)
    quiet_ray()
    assert os.environ["RAY_BACKEND_LOG_LEVEL"] == "info"
    assert os.environ["RAY_AIR_NEW_OUTPUT"] == "0"


def test_asking_imports_no_ray() -> None:
    code = (
        "import sys; from raybrew.runtime import ray_gpus; from raybrew.store import reader\n"
        "print(ray_gpus(), sorted({'ray', 'torch', 'transformers', 'sklearn'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout == "0.0 []\n", done.stderr


def test_what_to_wait_for_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYBREW_WAIT_FOR", raising=False)
    monkeypatch.delenv("RAYBREW_WAIT_SECONDS", raising=False)
    assert _wanted("sweep") == ({}, 1200.0)
    monkeypatch.setenv("RAYBREW_WAIT_FOR", "GPU:8, CPU:64")
    monkeypatch.setenv("RAYBREW_WAIT_SECONDS", "90")
    assert _wanted("sweep") == ({"GPU": 8, "CPU": 64}, 90.0)


@pytest.mark.parametrize(
    ("name", "given"),
    [("RAYBREW_WAIT_FOR", "8"), ("RAYBREW_WAIT_FOR", "GPU:some"), ("RAYBREW_WAIT_SECONDS", "long")],
)
def test_what_cannot_be_waited_for_is_refused(name: str, given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYBREW_WAIT_FOR", "GPU:8")
    monkeypatch.setenv(name, given)
    with pytest.raises(ClusterError, match=f"^sweep: {name}: given '{given}'; allowed: "):
        _wanted("sweep")


class _Cluster:
    """A cluster whose autoscaler adds a GPU each time somebody waits, up to a limit."""

    def __init__(self, most: int) -> None:
        self.gpus, self.most, self.groups = 0, most, []

    def cluster_resources(self) -> dict[str, float]:
        return {"GPU": self.gpus} if self.gpus else {}

    def placement_group(self, bundles: list[dict[str, float]]) -> _Cluster:
        self.groups.append(bundles)
        return self

    def wait(self, timeout_seconds: float) -> bool:
        self.gpus = min(self.most, self.gpus + 1)
        return self.gpus >= len(self.groups[-1])

    def remove_placement_group(self, group: _Cluster) -> None:
        self.groups.append([])


@pytest.mark.parametrize("most", [3, 1])
def test_waiting_asks_for_workers_and_lets_them_go(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = _Cluster(most)
    monkeypatch.setattr("raybrew.runtime._ray", lambda: cluster)
    monkeypatch.setitem(sys.modules, "ray.util.placement_group", cluster)
    if most == 3:
        _wait_for("sweep", {"GPU": 3}, 5.0)
        _wait_for("sweep", {"GPU": 2}, 5.0)  # they are there: nobody is asked
    else:
        with pytest.raises(ClusterError, match=r"^sweep: after 0\.01 seconds .* 3 GPUs asked for, 1 there; raise"):
            _wait_for("sweep", {"GPU": 3}, 0.01)
    assert cluster.groups == [[{"GPU": 1}] * 3, []], "what was asked for is given back to whoever runs next"

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
from raybrew.runtime import ensure_ray, quiet_ray


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
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout == "0.0 []\n", done.stderr

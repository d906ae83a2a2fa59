"""The Ray Serve example as it is used: deployed on a cluster, asked over HTTP by several at once."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from export_helpers import ROWS, make_model, serve_example

import raybrew
from raybrew.runtime import ensure_ray, stop_ray

serve = pytest.importorskip("ray.serve", reason="needs the extra serve")
pytest.importorskip("starlette", reason="needs the extra serve")

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def example(repo_root: Path) -> ModuleType:
    """As a module that workers do not have to find."""
    from ray import cloudpickle

    module = serve_example(repo_root)
    cloudpickle.register_pickle_by_value(module)
    return module


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    make_model(folder / "model")
    return raybrew.export(folder / "model", folder / "out").path


@pytest.fixture(scope="module")
def url(example: ModuleType, exported: Path) -> Iterator[str]:
    """Where a deployed student answers, on a local cluster or the one that this process is connected to already."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    info = ensure_ray("tests", num_cpus=2, address="local", dashboard=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(example.app(example.Arguments(folder=str(exported), batch_wait_seconds=0.2)))
        yield f"http://127.0.0.1:{port}/"
    finally:
        serve.shutdown()
        stop_ray(info)


def ask(url: str, body: bytes) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_many_ask_at_once(url: str, exported: Path) -> None:
    rows = ROWS["text"]
    expected = raybrew.load_student(exported).predict(rows)
    with ThreadPoolExecutor(len(rows)) as threads:
        found = list(threads.map(lambda row: ask(url, json.dumps(row).encode()), rows))
    assert [status for status, _ in found] == [200] * len(rows)
    for (_, answer), wanted in zip(found, expected, strict=True):
        assert answer["label"] == wanted["label"]
        assert answer["scores"] == pytest.approx(wanted["scores"], abs=1e-4)
    status, several = ask(url, json.dumps(rows).encode())
    assert status == 200
    assert [row["label"] for row in several] == [row["label"] for row in expected]
    assert ask(url, b"no json") == (400, {"error": "the body is no JSON"})
    status, wrong = ask(url, json.dumps([rows[0], {"txt": ""}]).encode())
    assert status == 400
    assert "label" in wrong[0]
    assert "column 'text': missing" in wrong[1]["error"]

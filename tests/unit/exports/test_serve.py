"""The Ray Serve example in Serve's local testing mode: what it answers, what it batches, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from export_helpers import ROWS, make_model, serve_example

import raybrew

serve = pytest.importorskip("ray.serve", reason="needs the extra serve")
requests = pytest.importorskip("starlette.requests", reason="needs the extra serve")


@pytest.fixture(scope="module")
def example(repo_root: Path) -> ModuleType:
    return serve_example(repo_root)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    make_model(folder / "model")
    return raybrew.export(folder / "model", folder / "out").path


@pytest.fixture(scope="module")
def batches() -> list[int]:
    """Rows of each forward pass so far."""
    return []


@pytest.fixture(scope="module")
def replica(example: ModuleType, exported: Path, batches: list[int]) -> Iterator[Any]:
    """One replica that waits for up to 4 rows; Serve keeps one queue for all of a process."""
    answers_of = example.answers_of

    def counted(student: Any, rows: list[Any]) -> Any:
        batches.append(len(rows))
        return answers_of(student, rows)

    # Local testing mode has no such context, which Serve asks how many requests may wait.
    context = SimpleNamespace(_deployment_config=SimpleNamespace(max_ongoing_requests=64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "get_replica_context", lambda: context)
        patch.setattr(example, "answers_of", counted)
        arguments = example.Arguments(folder=str(exported), batch_rows=4, batch_wait_seconds=0.3)
        yield serve.run(example.app(arguments), _local_testing_mode=True)


def post(body: bytes) -> Any:
    """A request as the server gives it."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    return requests.Request({"type": "http", "method": "POST", "headers": [], "path": "/"}, receive)


def test_requests_that_come_together_share_a_forward_pass(replica: Any, exported: Path, batches: list[int]) -> None:
    expected = raybrew.load_student(exported).predict(ROWS["text"])
    bodies = [*ROWS["text"], ROWS["text"][:2]]
    waiting = [replica.remote(post(json.dumps(body).encode())) for body in bodies]
    *single, several = [response.result(timeout_s=60) for response in waiting]
    assert [response.status_code for response in single] == [200] * len(expected)
    found = [json.loads(response.body) for response in single]
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in expected], abs=1e-5)
    assert len(json.loads(several.body)) == 2
    assert sum(batches) == len(expected) + 2
    assert max(batches) == 4


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"no json", "the body is no JSON"),
        (b'["text"]', "a row (an object) or up to 1024 of them"),
        (b'{"txt": "fine"}', "row 0: column 'text': missing; the row has txt"),
    ],
)
def test_what_cannot_be_answered(replica: Any, body: bytes, said: str) -> None:
    response = replica.remote(post(body)).result(timeout_s=60)
    assert response.status_code == 400
    assert json.loads(response.body) == {"error": said}


def test_a_wrong_row_harms_no_other(example: ModuleType, exported: Path) -> None:
    student = raybrew.load_student(exported)
    rows = [ROWS["text"][1], {"txt": "no text"}, ROWS["text"][2]]
    found = example.answers_of(student, rows)
    assert [row["label"] for row in found[::2]] == [row["label"] for row in student.predict(rows[::2])]
    assert found[1] == {"error": "row 0: column 'text': missing; the row has txt"}


def test_the_folder_is_checked_before_anything_is_deployed(
    example: ModuleType, tmp_path: Path, exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"holds no raybrew\.json; name an export"):
        example.app(example.Arguments(folder=str(tmp_path)))
    with pytest.raises(ValueError, match="folders"):
        example.Arguments(folders="x")
    monkeypatch.setenv("RAYBREW_STUDENT", str(exported))
    assert example.app(example.Arguments()) is not None


def test_the_command_that_it_shows_is_what_serve_takes(example: ModuleType, repo_root: Path, exported: Path) -> None:
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
    from ray.serve.scripts import cli

    (line,) = [line.strip() for line in (example.__doc__ or "").splitlines() if line.strip().startswith("serve run")]
    understood = cli.commands["run"].make_context("run", line.split()[2:]).params
    assert (repo_root / understood["app_dir"] / "student.py").is_file()
    assert understood["working_dir"] == understood["app_dir"]
    assert understood["config_or_import_path"] == "student:app"
    # All that a command line gives is text; Serve makes an `Arguments` of it, by the annotation of `app`.
    (name,) = [argument.partition("=")[0] for argument in understood["arguments"]]
    given = {name: str(exported), "replicas": "2", "batch_wait_seconds": "0.5"}
    assert call_user_app_builder_with_args_if_necessary(example.app, given) is not None
    with pytest.raises(ValueError, match="folders"):
        call_user_app_builder_with_args_if_necessary(example.app, {"folders": str(exported)})

"""Pushing an export: against a local server that speaks the hub's requests."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from export_helpers import make_model

import raybrew
from raybrew.errors import ConfigError, EnvironmentProblem, RunError
from raybrew.exports import hub as module
from raybrew.exports.hub import check_push, push_folder

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz012345"


class Hub(ThreadingHTTPServer):
    """Repositories in memory: name -> (private, file -> content)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, tuple[bool, dict[str, bytes]]] = {}
        self.tokens: set[str] = set()
        self.refusal: tuple[int, str] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, status: int, content: Any, **headers: str) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _repository(self) -> str:
        return "/".join(self.path.split("?")[0].removeprefix("/api/models/").split("/")[:2])

    def do_GET(self) -> None:
        self.server.tokens.add(self.headers.get("Authorization", ""))
        name = self._repository()
        if name not in self.server.repositories:
            self._answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return
        private, files = self.server.repositories[name]
        siblings = [{"rfilename": file} for file in files]
        self._answer(200, {"id": name, "private": private, "siblings": siblings, "sha": "0" * 40, "tags": []})

    def do_POST(self) -> None:
        self.server.tokens.add(self.headers.get("Authorization", ""))
        body = self._body()
        if self.server.refusal is not None:
            status, message = self.server.refusal
            self._answer(status, {"error": message})
        elif self.path == "/api/repos/create":
            given = json.loads(body)
            private = given.get("private", given.get("visibility") == "private")
            name = "/".join(part for part in (given.get("organization"), given["name"]) if part)
            self.server.repositories[name] = (private, {})
            self._answer(200, {"url": f"{self.server.url}/{name}", "id": name})
        elif "/preupload/" in self.path:
            files = [{"path": each["path"], "uploadMode": "regular"} for each in json.loads(body)["files"]]
            self._answer(200, {"files": [{**each, "shouldIgnore": False} for each in files]})
        elif "/commit/" in self.path:
            files_there = self.server.repositories[self._repository()][1]
            for line in body.splitlines():
                record = json.loads(line)
                if record["key"] == "file":
                    files_there[record["value"]["path"]] = base64.b64decode(record["value"]["content"])
            url = f"{self.server.url}/{self._repository()}/commit/{'1' * 40}"
            self._answer(200, {"success": True, "commitOid": "1" * 40, "commitUrl": url, "hookOutput": ""})
        else:
            self._answer(200, {})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running hub, online and with a token for it."""
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # The client reads the hub's address once, when it is imported.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    made = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda **values: made(endpoint=server.url, **values))
    yield server
    server.shutdown()
    server.server_close()


def test_a_push_is_private_and_whole(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_model(tmp_path / "model")
    found = raybrew.export(tmp_path / "model", tmp_path / "out", push="someone/student")
    private, files = hub.repositories["someone/student"]
    assert private
    local = {str(path.relative_to(found.path)): path for path in found.path.rglob("*") if path.is_file()}
    sent = {name: content for name, content in files.items() if name != ".gitattributes"}
    assert sent == {name: path.read_bytes() for name, path in local.items()}
    assert 'model="someone/student"' in files["README.md"].decode()
    assert found.url == f"{hub.url}/someone/student"
    # The check of the card alone needs no token.
    assert hub.tokens - {""} == {f"Bearer {TOKEN}"}
    said = "".join(capsys.readouterr())
    assert TOKEN not in said
    assert all(TOKEN.encode() not in content for content in files.values())
    # Once more: the repository is there, and still private.
    push_folder(found.path, "someone/student")


def test_a_public_repository_is_not_written_by_accident(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("x", encoding="utf-8")
    hub.repositories["someone/open"] = (False, {})
    with pytest.raises(RunError, match="someone/open is there already and public; add --public"):
        push_folder(tmp_path, "someone/open")
    assert hub.repositories["someone/open"] == (False, {})
    push_folder(tmp_path, "someone/open", public=True)
    assert hub.repositories["someone/open"][1]["README.md"] == b"x"
    push_folder(tmp_path, "someone/new", public=True)
    assert not hub.repositories["someone/new"][0]


def test_a_refusal_is_one_line_without_the_token(hub: Hub, tmp_path: Path) -> None:
    hub.refusal = (403, f"You may not write with {TOKEN}")
    with pytest.raises(EnvironmentProblem, match="the hub refused or does not answer") as caught:
        push_folder(tmp_path, "someone/student")
    assert TOKEN not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_what_is_checked_before_any_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("student", "a/b/c", "some one/x"):
        with pytest.raises(ConfigError, match="--push: given"):
            check_push(name)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentProblem, match="switched off by HF_HUB_OFFLINE"):
        raybrew.export(tmp_path / "nothing", tmp_path / "out", push="someone/student")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(EnvironmentProblem, match="no token for the hub; run `hf auth login` or set HF_TOKEN"):
        check_push("someone/student")
    with pytest.raises(ConfigError, match="--public: applies to --push"):
        raybrew.export(tmp_path / "nothing", tmp_path / "out", public=True)
    assert module.__all__ == ["check_push", "push_folder"]
